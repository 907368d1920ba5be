"""A scheduler that is told the truth: how much each program has left, and when it comes back.

The truth takes the place of the execution graphs' forecasts, so every policy that asks for a
forecast gets it and is otherwise what it was. `TrueOrder` goes further and serves the shortest
remaining work first, by the engine's own costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentsched.model import (
    Command,
    ConversationId,
    Event,
    Instant,
    Limits,
    Nanos,
    ProgramId,
    StepClass,
    ToolName,
    between,
)
from agentsched.policy import GraphView, ReturnView, SortKey, StepView, World
from agentsched_graphs.builder import GraphBuilder


class Future(Protocol):
    """Who knows what comes."""

    def steps_left(self, program: ProgramId) -> int | None:
        """Calls that a program has still to make, sub-agents' among them."""
        ...

    def work_left_s(self, program: ProgramId) -> float | None:
        """Seconds that those calls would take alone, with all of their prefixes cached."""
        ...

    def returns_at(self, conversation: ConversationId) -> Instant | None:
        """When a conversation that pauses calls again; None where that hangs on others."""
        ...


class TrueGraph:
    """A program's graph, with the truth where it would have forecast."""

    def __init__(
        self,
        graph: GraphView,
        program: ProgramId,
        future: Future,
        *,
        steps: bool,
        returns: bool,
    ) -> None:
        self._graph = graph
        self._program = program
        self._future = future
        self._knows_steps = steps
        self._knows_returns = returns

    def steps_left(self) -> float | None:
        left = self._future.steps_left(self._program) if self._knows_steps else None
        return self._graph.steps_left() if left is None else float(left)

    def critical_path_left(self) -> float | None:
        return self.steps_left() if self._knows_steps else self._graph.critical_path_left()

    def fan_out(self) -> int:
        return self._graph.fan_out()

    def is_waiting_for_children(self) -> bool:
        return self._graph.is_waiting_for_children()

    def subagents_beside(self, conversation: ConversationId) -> int | None:
        return self._graph.subagents_beside(conversation)

    def subprograms_beside(self, program: ProgramId) -> int | None:
        return self._graph.subprograms_beside(program)

    def next_tools(self, conversation: ConversationId) -> tuple[tuple[ToolName, float], ...]:
        return self._graph.next_tools(conversation)

    def returns(self, conversation: ConversationId, *, now: Instant) -> ReturnView | None:
        forecast = self._graph.returns(conversation, now=now)
        at = self._future.returns_at(conversation) if self._knows_returns else None
        return forecast if at is None or forecast is None else TrueReturn(at, now=now)

    def last_pause_chance(self, conversation: ConversationId) -> float:
        at = self._future.returns_at(conversation) if self._knows_returns else None
        return self._graph.last_pause_chance(conversation) if at is None else 0.0

    def expected_return(self, conversation: ConversationId, *, now: Instant) -> Instant | None:
        at = self._future.returns_at(conversation) if self._knows_returns else None
        return self._graph.expected_return(conversation, now=now) if at is None else at


class TrueReturn:
    """A return that is certain."""

    def __init__(self, at: Instant, *, now: Instant) -> None:
        self._left = Nanos(max(0, at - now))

    @property
    def has_skill(self) -> bool:
        return True

    def probability_within(self, span: Nanos) -> float:
        return 1.0 if span >= self._left else 0.0

    def chances(self, spans: Sequence[Nanos]) -> Sequence[float]:
        return [self.probability_within(span) for span in spans]

    def quantile(self, share: float) -> Nanos | None:
        return self._left


class TrueGraphs:
    """The execution graphs, seen through somebody who knows the future."""

    def __init__(
        self, graphs: GraphBuilder, future: Future, *, steps: bool = True, returns: bool = True
    ) -> None:
        """`steps`, `returns`: whether the true count of calls left, the true returns are told."""
        self._graphs = graphs
        self._future = future
        self._steps = steps
        self._returns = returns

    def observe(self, event: Event, *, now: Instant) -> None:
        self._graphs.observe(event, now=now)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        # Where steps go and who is turned away is in no event: without it the forecasts that an
        # oracle leaves as they are would be others than its profile's.
        self._graphs.decided(commands, now=now)

    def set_limits(self, limits: Limits) -> None:
        self._graphs.set_limits(limits)

    def view(self, program: ProgramId) -> GraphView | None:
        graph = self._graphs.view(program)
        if graph is None:
            return None
        return TrueGraph(graph, program, self._future, steps=self._steps, returns=self._returns)


class TrueOrder:
    """Shortest remaining work first, known exactly; work grows light as its wait bound nears."""

    def __init__(self, future: Future, *, ageing: float = 1.0) -> None:
        self._future = future
        self._ageing = ageing

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        waited = between(step.arrived_at, now) / (self._ageing * world.wait_ns_max)
        work_s = self._future.work_left_s(step.program) or 0.0
        is_resident = world.conversation(step).is_resident
        is_background = step.step_class is StepClass.BATCH
        work = work_s * max(0.0, 1.0 - waited)
        return (float(is_background), float(not is_resident), work)

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        return 0
