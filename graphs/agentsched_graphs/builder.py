"""Folds events into execution graphs, one a program, and learns from all of them.

Implements `kernel.GraphBuilder`. Equal events give equal graphs. Each event costs a few
microseconds, however long the history and however many the programs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from agentsched.model import (
    Command,
    ConfigError,
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    Event,
    Instant,
    Limits,
    Lineage,
    Nanos,
    ProgramClosed,
    ProgramId,
    ProgramOpened,
    Reject,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    StepState,
    TenantId,
    ToolFinished,
    ToolName,
    ToolStarted,
    WorkflowDeclared,
)
from agentsched.model.events import FOR_ROOM
from agentsched_graphs.forecast import Forecasts
from agentsched_graphs.gaps import age_of
from agentsched_graphs.graph import ExecutionGraph, GraphLimits
from agentsched_graphs.nodes import StepNode, Thread
from agentsched_graphs.outlook import PROBABLY, Learnt, Outlook
from agentsched_graphs.templates import END
from agentsched_graphs.workflow import Workflow, read_workflow

#: Of many tools called at once, so many are compared for the one that takes longest.
_COMPARED: Final = 8
#: Declared workflows beyond this are not taken.
WORKFLOWS_MAX: Final = 1_024
#: Pauses that are watched for that; of more, the longest is given up early.
_AWAY_MAX: Final = 65_536


class GraphBuilder:
    """Keeps the graphs of live programs, and of some that closed lately."""

    def __init__(
        self,
        *,
        limits: GraphLimits | None = None,
        workflows: Iterable[Workflow] = (),
        forecasts: Forecasts | None = None,
    ) -> None:
        self._limits = limits or GraphLimits()
        #: How many graphs may be live: more than the limit while a lowered one is being reached.
        self._live_max = self._limits.programs_max
        self._forecasts = forecasts or Forecasts(programs_max=self._limits.programs_max)
        self._learnt = Learnt()
        for workflow in workflows:
            self._learnt.workflows[workflow.agent] = workflow
        #: Outlooks of live programs, the one idle for longest first.
        self._live: OrderedDict[ProgramId, Outlook] = OrderedDict()
        #: Of closed ones, the one closed first first.
        self._closed: OrderedDict[ProgramId, Outlook] = OrderedDict()
        #: Steps that are not in a final state.
        self._steps: dict[StepId, tuple[ExecutionGraph, StepNode]] = {}
        #: The graph of each ended step that is kept, by the step's ordinal; first ended first.
        self._ended: OrderedDict[int, ExecutionGraph] = OrderedDict()
        self._ordinal = 0
        #: Conversations that pause and are not given up, the one that pauses longest first.
        self._away: OrderedDict[tuple[ProgramId, ConversationId], Thread] = OrderedDict()

    def observe(self, event: Event, *, now: Instant) -> None:
        """Take in one event."""
        self._forecasts.observe(event, now=now)
        self._learnt.now, self._learnt.silence = now, self._forecasts.silence
        self._give_up(now=now)
        match event:
            case StepArrived():
                self._arrive(event, now=now)
            case StepStarted():
                found = self._steps.get(event.step)
                if found is not None:
                    found[0].start(found[1], now=now)
            case StepFinished():
                self._finish(event, now=now)
            case StepFailed(is_retryable=True):
                found = self._steps.get(event.step)
                if found is not None:
                    found[0].put_back(found[1])
            case StepFailed():
                self._end(event.step, StepState.FAILED, now=now)
            case StepCancelled():
                self._end(event.step, StepState.CANCELLED, now=now)
            case ToolStarted() if event.program in self._live:
                graph = self._live[event.program].graph
                if event.call_id and event.call_id not in graph.tools:
                    self._wait_for(graph, event)
                graph.start_tool(event, now=now)
            case ToolFinished() if event.program in self._live:
                self._live[event.program].graph.finish_tool(event, now=now)
            case ProgramOpened():
                outlook = self._open(event.program, event.tenant, event.parent, now=now)
                outlook.graph.agent = event.agent or outlook.graph.agent
            case ProgramClosed():
                self._close(event.program, event.reason, now=now)
            case ContinuedElsewhere() if event.program in self._live:
                graph = self._live[event.program].graph
                graph.is_elsewhere = not graph.active_steps
                self._let_go(graph, event.conversation)
            case WorkflowDeclared():
                self._declare(event.text)
            case _:
                pass

    def _declare(self, text: str) -> None:
        """One more workflow; the newest word about an agent counts. Hosts checked it before."""
        try:
            workflow = read_workflow(text)
        except ConfigError:
            return
        known = self._learnt.workflows
        if workflow.agent in known or len(known) < WORKFLOWS_MAX:
            known[workflow.agent] = workflow

    def redeclare(self, *, before: Iterable[Workflow], after: Iterable[Workflow]) -> None:
        """The configuration said `before`, and says `after` from now on: what it changes counts.

        About all other agents the newest word stands, whoever said it.
        """
        known = self._learnt.workflows
        old = {workflow.agent: workflow for workflow in before}
        new = {workflow.agent: workflow for workflow in after}
        for agent, workflow in old.items():
            if agent not in new and known.get(agent) == workflow:
                del known[agent]
        known.update((agent, w) for agent, w in new.items() if w != old.get(agent))

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        """Take in what the scheduler decided in this turn: where steps go, who is turned away."""
        for command in commands:
            if isinstance(command, Dispatch):
                found = self._steps.get(command.step)
                if found is not None:
                    found[0].dispatch(found[1], command.engine, now=now)
            elif isinstance(command, Reject):
                # No event says so: the forecasts must not count it as live for ever.
                gone = StepCancelled(step=command.step, reason="rejected")
                self._forecasts.observe(gone, now=now)
                found = self._steps.get(command.step)
                self._end(command.step, StepState.REJECTED, now=now)
                if found is not None and _is_refused(found[0]) and found[0].program in self._live:
                    # The scheduler need not know it: it makes room before those that it knows.
                    self._live.move_to_end(found[0].program, last=False)
                    self._forecasts.forget(found[0].program)

    def set_limits(self, limits: Limits) -> None:
        """Follow the scheduler's ceilings, which were set anew."""
        self._limits = self._limits.under(limits)
        self._bound_live(len(self._live))
        for outlook in (*self._live.values(), *self._closed.values()):
            outlook.graph.set_limits(self._limits)

    def view(self, program: ProgramId) -> Outlook | None:
        """What policies may ask about a live program; None for one that is not known."""
        return self._live.get(program)

    def graph(self, program: ProgramId) -> ExecutionGraph | None:
        """The graph of a program that is live or was closed lately. Not to be changed."""
        outlook = self._live.get(program) or self._closed.get(program)
        return outlook.graph if outlook is not None else None

    @property
    def programs(self) -> Mapping[ProgramId, Outlook]:
        """Live programs, the one idle for longest first. Read only."""
        return self._live

    @property
    def learnt(self) -> Learnt:
        """What all programs taught. Read only."""
        return self._learnt

    def check(self) -> None:
        """Assert every invariant; for tests."""
        limits = self._limits
        assert len(self._live) <= self._live_max
        assert len(self._closed) <= limits.closed_max
        assert not set(self._live) & set(self._closed)
        assert len(self._ended) <= limits.steps_max
        graphs = [outlook.graph for outlook in (*self._live.values(), *self._closed.values())]
        assert sum(len(graph.ended()) for graph in graphs) == len(self._ended)
        for graph in graphs:
            assert len(graph.ended()) <= limits.steps_per_program_max
            graph.check()

    # Inside.

    def _bound_live(self, live: int) -> None:
        """Have no more live graphs than the limit, or than these that there are already.

        The scheduler comes to a lowered limit by closing programs: no graph goes before its own.
        """
        self._live_max = max(self._limits.programs_max, live)
        self._forecasts.set_bound(programs_max=self._live_max)

    def _open(
        self, program: ProgramId, tenant: TenantId, parent: ProgramId | None, *, now: Instant
    ) -> Outlook:
        outlook = self._live.get(program)
        if outlook is not None:
            self._live.move_to_end(program)
            return outlook
        outlook = self._closed.pop(program, None)
        if outlook is not None:
            outlook.graph.reopen()
            known = self._parent_of(outlook.graph)
            if known is not None:
                known.reopen_child(program)
        else:
            graph = ExecutionGraph(program, tenant=tenant, limits=self._limits, now=now)
            outlook = Outlook(graph, self._learnt, others=self._live)
        self._live[program] = outlook
        if parent is not None and parent != program and parent in self._live:
            outlook.graph.parent = parent
            self._live[parent].graph.add_child(program, now=now)
        if len(self._live) > self._live_max:
            self._close(next(iter(self._live)), FOR_ROOM, now=now)
        if self._live_max > self._limits.programs_max:
            first = next(iter(self._live.values())).graph
            if _is_refused(first) and first.program != program:
                self._close(first.program, FOR_ROOM, now=now)
            self._bound_live(len(self._live))
        return outlook

    def _arrive(self, event: StepArrived, *, now: Instant) -> None:
        if event.step in self._steps:
            return
        outlook = self._open(event.program, event.tenant, event.parent, now=now)
        graph = outlook.graph
        outlook.remaining = progress = self._forecasts.view(event.program)
        self._learn_return(graph, event, now=now)
        had_ended = graph.parent is not None and outlook.has_ended
        node = graph.arrive(event, ordinal=self._ordinal, now=now)
        if node is None:
            return
        if node.is_work:
            if progress is not None:
                # They know no sub-agents, and took this step's agent type for the program's.
                progress.agent = graph.agent or progress.agent
            self._join(outlook, event)
            parent = self._parent_of(graph)
            if parent is not None and had_ended:
                parent.await_child(graph.program)
        self._ordinal += 1
        self._steps[event.step] = (graph, node)

    def _parent_of(self, graph: ExecutionGraph) -> ExecutionGraph | None:
        return self.graph(graph.parent) if graph.parent is not None else None

    def _join(self, outlook: Outlook, event: StepArrived) -> None:
        """A conversation goes on: it waits no more for the sub-programs that it opened."""
        talks = outlook.graph.threads
        acts = {event.conversation}
        if event.lineage is Lineage.COMPACTS and event.parent_conversation is not None:
            acts.add(event.parent_conversation)
        for child in outlook.graph.children.values():
            if child.conversation in acts or child.conversation not in talks:
                child.is_awaited = False
                if child.joined_by is None and not outlook.is_open(child):
                    child.joined_by = event.step

    def _learn_return(self, graph: ExecutionGraph, event: StepArrived, *, now: Instant) -> None:
        """A paused conversation is back: itself, or rewritten under another id."""
        thread = graph.threads.get(event.conversation)
        if thread is None and event.lineage is Lineage.COMPACTS and event.parent_conversation:
            thread = graph.threads.get(event.parent_conversation)
        if thread is None or thread.paused_at is None or thread.paused_for is None:
            return
        if not event.step_class.is_work:
            return
        self._away.pop((graph.program, thread.conversation), None)
        self._learnt.gaps.returned(
            agent=thread.agent,
            tool=thread.paused_for,
            gap=Nanos(max(0, now - thread.paused_at)),
            age=thread.age,
            given_up_after=thread.given_up_after,
        )
        self._learn_final(thread, is_last=False)
        thread.paused_at = thread.paused_for = thread.given_up_after = None

    def _let_go(self, graph: ExecutionGraph, conversation: ConversationId) -> None:
        """Another replica serves a conversation now: it came back, when exactly is not known."""
        thread = graph.threads.get(conversation)
        if thread is None or thread.paused_at is None or thread.paused_for is None:
            return
        self._away.pop((graph.program, conversation), None)
        self._learn_final(thread, is_last=False)
        thread.paused_at = thread.paused_for = thread.given_up_after = None

    def _learn_final(self, thread: Thread, *, is_last: bool) -> None:
        """A pause was the conversation's last, or not; an earlier word on it is taken back."""
        assert thread.paused_for is not None
        finals, agent = self._learnt.finals, thread.agent
        tool, steps = thread.paused_for, thread.steps_before
        if thread.given_up_after is not None and not is_last:
            finals.took_back(agent=agent, tool=tool, steps=steps)
        finals.ended(agent=agent, tool=tool, steps=steps, is_last=is_last)

    def _give_up(self, *, now: Instant) -> None:
        """Count the longest pauses as such that nobody comes back from; two at most.

        Until somebody does. Waiting for the program's end would teach that only after an hour.
        """
        for _ in range(2):
            if not self._away:
                return
            key, thread = next(iter(self._away.items()))
            assert thread.paused_at is not None
            assert thread.paused_for is not None
            gap = Nanos(max(0, now - thread.paused_at))
            if gap < self._forecasts.silence and len(self._away) <= _AWAY_MAX:
                return
            del self._away[key]
            self._learn_final(thread, is_last=True)
            thread.given_up_after = gap
            agent, tool = thread.agent, thread.paused_for
            self._learnt.gaps.gave_up(agent=agent, tool=tool, gap=gap, age=thread.age)

    def _finish(self, event: StepFinished, *, now: Instant) -> None:
        found = self._steps.pop(event.step, None)
        if found is None:
            return
        graph, node = found
        graph.finish(node, event, now=now)
        self._keep(graph, node)
        thread = graph.threads.get(node.conversation)
        if thread is None or not node.is_work:
            return
        tools = event.tool_calls
        first = tools[0].tool if tools else END
        self._learnt.templates.followed(agent=thread.agent, context=thread.context, tool=first)
        thread.context = (*thread.context[-1:], first)
        self._advance(thread, first)
        if not thread.active:
            waits_for = first if len(tools) < 2 else self._slowest(thread.agent, event)
            self._pause(graph, thread, waits_for, now=now)

    def _pause(
        self, graph: ExecutionGraph, thread: Thread, tool: ToolName, *, now: Instant
    ) -> None:
        thread.paused_at, thread.paused_for = now, tool
        thread.steps_before = steps = graph.steps_done
        thread.age = age_of(steps)
        thread.final = self._learnt.finals.chance(agent=thread.agent, tool=tool, steps=steps)
        if thread.final > PROBABLY and thread.parent is None:
            self._forecasts.suspect(graph.program)
        key = (graph.program, thread.conversation)
        self._away[key] = thread
        self._away.move_to_end(key)

    def _wait_for(self, graph: ExecutionGraph, event: ToolStarted) -> None:
        """A tool began that no answer was seen to call: whoever seemed done waits for it."""
        talks = graph.threads
        named = talks.get(event.conversation) if event.conversation else None
        done = [t for t in talks.values() if t.paused_at is not None and t.paused_for == END]
        thread = named or max(done, key=lambda t: (t.paused_at, t.conversation), default=None)
        if thread is not None and thread.paused_for == END and thread.given_up_after is None:
            self._forecasts.goes_on(graph.program)
            thread.paused_for = event.tool
            thread.final = self._learnt.finals.chance(
                agent=thread.agent, tool=event.tool, steps=thread.steps_before
            )

    def _slowest(self, agent: str, event: StepFinished) -> ToolName:
        """Of tools that run side by side, the one that is waited for."""
        gaps = self._learnt.gaps
        # max takes the first of equals, so the order of the calls decides.
        compared = event.tool_calls[:_COMPARED]
        return max(compared, key=lambda call: gaps.middle(agent=agent, tool=call.tool)).tool

    def _advance(self, thread: Thread, tool: ToolName) -> None:
        workflow = self._learnt.workflows.get(thread.agent)
        if workflow is not None and thread.parent is None:
            known = thread.place if thread.place in workflow.steps else None
            thread.place = workflow.follow(known, tool)
            thread.is_astray = thread.place is None

    def _end(self, step: StepId, state: StepState, *, now: Instant) -> None:
        found = self._steps.pop(step, None)
        if found is not None:
            graph, node = found
            graph.end(node, state, now=now)
            self._keep(graph, node)

    def _keep(self, graph: ExecutionGraph, node: StepNode) -> None:
        """Remember that this step has ended, and fold what is too much now."""
        if self._is_gone(graph):
            return
        self._ended[node.ordinal] = graph
        # Two at most for one that comes: what is too old goes little by little.
        for _ in range(2):
            if graph.foldable is None:
                break
            del self._ended[graph.fold().ordinal]
        if len(self._ended) > self._limits.steps_max:
            oldest = next(iter(self._ended.values()))
            del self._ended[oldest.fold().ordinal]

    def _is_gone(self, graph: ExecutionGraph) -> bool:
        """Whether it was closed and has been forgotten since, with this step under way."""
        if graph.closed_at is None:
            return False
        kept = self._closed.get(graph.program)
        return kept is None or kept.graph is not graph

    def _learn_end(
        self, graph: ExecutionGraph, thread: Thread, *, is_end: bool, now: Instant
    ) -> None:
        """A conversation that pauses is forgotten; at its program's end it will not come back."""
        assert thread.paused_at is not None
        assert thread.paused_for is not None
        if self._away.pop((graph.program, thread.conversation), None) is not None:
            gap = Nanos(max(0, now - thread.paused_at))
            agent, tool = thread.agent, thread.paused_for
            if is_end:
                self._learn_final(thread, is_last=True)
            self._learnt.gaps.gave_up(agent=agent, tool=tool, gap=gap, age=thread.age)
        thread.paused_at = thread.paused_for = thread.given_up_after = None

    def _close(self, program: ProgramId, reason: str, *, now: Instant) -> None:
        outlook = self._live.pop(program, None)
        if outlook is None:
            return
        graph = outlook.graph
        outlook.remaining = None
        for thread in graph.threads.values():
            if thread.paused_at is not None and thread.paused_for is not None:
                self._learn_end(graph, thread, is_end=reason != FOR_ROOM, now=now)
        graph.close(reason, now=now)
        parent = self._parent_of(graph)
        if parent is not None:
            parent.close_child(program, now=now)
        self._closed[program] = outlook
        if len(self._closed) > self._limits.closed_max:
            _, gone = self._closed.popitem(last=False)
            for node in gone.graph.ended():
                del self._ended[node.ordinal]


def _is_refused(graph: ExecutionGraph) -> bool:
    """Whether nothing is known of a program but that it was turned away."""
    if graph.steps_done or graph.active_steps or not graph.steps:
        return False
    return all(node.state is StepState.REJECTED for node in graph.ended())
