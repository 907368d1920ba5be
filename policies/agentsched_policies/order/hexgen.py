"""HexGen-Flow: least slack first, for stages of a workflow (arXiv 2505.05286).

    budget(stage) = (SLO - elapsed) x t_stage / (t_stage + sum of the stages to come)
    U = t_stage - (budget - waited)                              greatest first

`t_stage` is the mean time on an engine of this agent's steps (they know their templates' stages;
here the stages to come are the graph's expected steps at that same mean). The SLO is the program's
deadline, else `slo_s` after it began.

Fails without deadlines, where it turns into "longest expected remainder first", and for programs
that are late beyond rescue: their urgency only grows, and everyone waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import (
    Command,
    Event,
    Instant,
    Nanos,
    StepFinished,
    after,
    between,
    in_seconds,
    seconds,
)
from agentsched.policy import SortKey, StepView, World
from agentsched_policies.step_log import StepLog

_RATE = 0.1
_AGENTS_MAX = 256
#: Before any step has ended, and without a graph's opinion.
_TIME_FIRST = float(seconds(1))
_STEPS_LEFT = 10.0


class Hexgen:
    """Urgency first; `slo_s` seconds for programs without a deadline."""

    def __init__(self, *, slo_s: float = 60.0) -> None:
        if slo_s <= 0:
            raise ValueError(f"slo_s must be positive, not {slo_s}")
        self._slo = seconds(slo_s)
        self._log = StepLog()
        #: Mean nanoseconds on an engine of a step, by agent.
        self._times: dict[str, float] = {}

    def observe(self, event: Event, *, now: Instant) -> None:
        step = self._log.observe(event, now=now)
        if step is None or step.dispatched_at is None or not isinstance(event, StepFinished):
            return
        mean = self._times.get(step.agent)
        if mean is None and len(self._times) >= _AGENTS_MAX:
            return
        took = float(step.took(now=now))
        self._times[step.agent] = took if mean is None else mean + _RATE * (took - mean)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._log.decided(commands, now=now)

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        return (-self._urgency(step, world, now=now),)

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        # Engines take lower numbers first; a thousandth of a second is fine enough. Never 0.
        return -round(self._urgency(step, world, now=now) * 1_000) or 1

    def _urgency(self, step: StepView, world: World, *, now: Instant) -> float:
        """U, in seconds."""
        program = world.programs[step.program]
        takes = self._times.get(program.agent, _TIME_FIRST)
        due = program.deadline or step.deadline or after(program.opened_at, self._slo)
        graph = world.graph(step.program)
        left = graph.steps_left() if graph is not None else None
        stages = 1.0 + (left if left is not None else _STEPS_LEFT)
        budget = between(now, due) / stages
        waited = between(step.arrived_at, now)
        return in_seconds(Nanos(round(takes - (budget - waited))))
