"""What policies may ask about a program's future; satisfies `policy.GraphView`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from agentsched.model import MINUTE, ConversationId, Instant, Nanos, ProgramId, ToolName
from agentsched_graphs.finals import FinalPauses
from agentsched_graphs.gaps import Gaps, ReturnForecast
from agentsched_graphs.graph import ExecutionGraph
from agentsched_graphs.nodes import ChildNode, Thread
from agentsched_graphs.templates import ToolTemplates
from agentsched_graphs.workflow import Workflow

#: A pause that is the last with this probability counts as the program's end, until it goes on.
PROBABLY: Final = 0.5
#: Sub-programs of sub-programs further down are not looked at.
_DEPTH_MAX: Final = 4


class StepsLeft(Protocol):
    """Whoever forecasts a program's remaining steps."""

    def steps_left(self) -> float | None: ...


class Learnt:
    """What all programs taught, and what was declared: shared by the outlooks."""

    def __init__(self) -> None:
        self.gaps = Gaps()
        self.templates = ToolTemplates()
        self.finals = FinalPauses()
        #: The instant of the latest event, and how long a silence counts as an end.
        self.now = Instant(0)
        self.silence: Nanos = MINUTE
        #: Declared workflows by agent type.
        self.workflows: dict[str, Workflow] = {}


class Outlook:
    """The future of one program, from its graph, its declared workflow and others like it."""

    __slots__ = ("_learnt", "_others", "graph", "remaining")

    def __init__(
        self,
        graph: ExecutionGraph,
        learnt: Learnt,
        *,
        others: Mapping[ProgramId, Outlook] | None = None,
    ) -> None:
        """`others` are all live programs, sub-programs of this one among them."""
        self.graph = graph
        self._learnt = learnt
        self._others = others if others is not None else {}
        #: Set by the builder while the forecasts know the program.
        self.remaining: StepsLeft | None = None

    def steps_left(self) -> float | None:
        """Expected number of steps to come, the declared one first; None without an opinion."""
        declared = self._declared()
        if declared is not None:
            workflow, thread = declared
            return workflow.steps_left(thread.place)
        return self.remaining.steps_left() if self.remaining is not None else None

    def critical_path_left(self) -> float | None:
        """Expected number of those that must follow one another.

        As many of the steps to come as of the steps so far are taken to run beside others.
        """
        left = self.steps_left()
        known = self.graph.steps_done + self.graph.active_steps
        if left is None or not known:
            return left
        return left * min(1.0, self.graph.depth / known)

    def fan_out(self) -> int:
        """Conversations that have a live step at this moment, and open sub-programs."""
        live = sum(1 for thread in self.graph.threads.values() if thread.active)
        return live + sum(1 for child in self.graph.children.values() if self.is_open(child))

    def is_waiting_for_children(self) -> bool:
        """Whether a conversation pauses until its sub-agents or sub-programs are done."""
        graph = self.graph
        if any(t.open_children and not t.active for t in graph.threads.values()):
            return True
        return not graph.active_steps and any(True for _ in self._awaited())

    def subagents_beside(self, conversation: ConversationId) -> int | None:
        """How many others the join of a sub-agent waits for; None: nobody waits for this one."""
        threads = self.graph.threads
        thread = threads.get(conversation)
        parent = threads.get(thread.parent) if thread is not None and thread.parent else None
        if thread is None or parent is None or parent.active:
            return None
        if thread.is_over or not thread.is_awaited:
            return None
        return parent.open_children - 1 + sum(1 for _ in self._awaited())

    def subprograms_beside(self, program: ProgramId) -> int | None:
        """How many others the join of a sub-program waits for; None: nobody waits for this one."""
        if self.graph.active_steps:
            return None
        awaited = [child.program for child in self._awaited()]
        if program not in awaited:
            return None
        return len(awaited) - 1 + sum(t.open_children for t in self.graph.threads.values())

    def _awaited(self) -> Iterator[ChildNode]:
        """Sub-programs that are not over and whose opener has not gone on since."""
        children = self.graph.children.values()
        return (child for child in children if child.is_awaited and self.is_open(child))

    def is_open(self, child: ChildNode, *, depth: int = 0) -> bool:
        """Whether something is still to come from a sub-program, as far as anyone can tell."""
        if child.closed_at is not None:
            return False
        outlook = self._others.get(child.program)
        if outlook is None:
            return True
        return outlook.graph.parent == self.graph.program and not outlook.is_over(depth=depth)

    def is_over(self, *, depth: int = 0) -> bool:
        """Whether it did its last step as far as anyone can tell: it said so, or is silent."""
        graph = self.graph
        if graph.active_steps:
            return False
        if self.has_ended or self._pauses_for_good():
            return True
        if graph.is_elsewhere or self._learnt.now - graph.last_at <= self._learnt.silence:
            return False
        # Silent, but not for itself. Names may be such that programs are each other's children.
        return depth >= _DEPTH_MAX or not any(
            child.is_awaited and self.is_open(child, depth=depth + 1)
            for child in graph.children.values()
        )

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs, and each conversation of its own said its last word."""
        mains = list(self._mains())
        return not self.graph.active_steps and bool(mains) and all(t.is_over for t in mains)

    def _pauses_for_good(self) -> bool:
        """Whether each of them said its last word or pauses for what probably ends it."""
        mains = list(self._mains())
        return bool(mains) and all(
            t.is_over or self.last_pause_chance(t.conversation) > PROBABLY for t in mains
        )

    def _mains(self) -> Iterator[Thread]:
        """Its conversations that work and are nobody's sub-agents."""
        for thread in self.graph.threads.values():
            is_own = thread.parent is None and not thread.is_replaced
            if is_own and thread.latest is not None and thread.latest.is_work:
                yield thread

    def next_tools(self, conversation: ConversationId) -> tuple[tuple[ToolName, float], ...]:
        """Tools by how likely the conversation's next answer calls them, the likeliest first.

        `(end)` among them stands for an answer that calls none. Empty where nothing is known.
        """
        thread = self.graph.threads.get(conversation)
        context = thread.context if thread is not None else ()
        if thread is not None:
            workflow = self._workflow_of(thread)
            if workflow is not None:
                return workflow.next_tools(thread.place)
        agent = self._agent_of(thread) if thread is not None else self.graph.agent
        return self._learnt.templates.forecast(agent=agent, context=context).tools

    def returns(self, conversation: ConversationId, *, now: Instant) -> ReturnForecast | None:
        """When a paused conversation comes back to the engine; None for one that is not paused."""
        thread = self.graph.threads.get(conversation)
        if thread is None or thread.paused_at is None or thread.paused_for is None:
            return None
        return self._learnt.gaps.forecast(
            agent=self._agent_of(thread),
            tool=thread.paused_for,
            elapsed=Nanos(max(0, now - thread.paused_at)),
            age=thread.age,
        )

    def last_pause_chance(self, conversation: ConversationId) -> float:
        """How likely its pause was, when it began, to be its last; 0 while it does not pause.

        Certain, either way, where a workflow is declared.
        """
        thread = self.graph.threads.get(conversation)
        if thread is None or thread.paused_at is None:
            return 0.0
        workflow = self._workflow_of(thread)
        if workflow is not None and thread.place is not None:
            return 0.0 if workflow.steps[thread.place].successors else 1.0
        return thread.final

    def expected_return(self, conversation: ConversationId, *, now: Instant) -> Instant | None:
        """When it should come back: as declared where it is, else at the forecast's middle.

        What its tools' runners report comes first. None where nobody says; in the past where it is
        overdue.
        """
        thread = self.graph.threads.get(conversation)
        if thread is None or thread.paused_at is None:
            return None
        reported = _as_reported(thread)
        if reported is not None:
            return reported
        workflow = self._workflow_of(thread)
        if workflow is not None and thread.place is not None:
            declared = workflow.steps[thread.place].expected
            if declared is not None:
                return Instant(thread.paused_at + declared)
        forecast = self.returns(conversation, now=now)
        middle = forecast.quantile(0.5) if forecast is not None else None
        return Instant(now + middle) if middle is not None else None

    def _declared(self) -> tuple[Workflow, Thread] | None:
        """The workflow, and the conversation that was busy last and keeps to it."""
        if not self._learnt.workflows:
            return None
        for key in reversed(self.graph.threads):
            thread = self.graph.threads[key]
            workflow = self._workflow_of(thread)
            latest = thread.latest
            # Titles and the like, asked for beside the work, begin no workflow.
            is_beside = thread.place is None and latest is not None and not latest.is_work
            if workflow is not None and not is_beside:
                return workflow, thread
        return None

    def _agent_of(self, thread: Thread) -> str:
        return thread.agent or self.graph.agent

    def _workflow_of(self, thread: Thread) -> Workflow | None:
        """The workflow that a conversation keeps to; none of a sub-agent, or rewritten, does."""
        workflow = self._learnt.workflows.get(self._agent_of(thread))
        if workflow is None or thread.is_astray:
            return None
        if thread.parent is not None or thread.is_replaced:
            return None
        # Its place may be one of a workflow that was declared anew since, or of another agent's.
        return workflow if thread.place is None or thread.place in workflow.steps else None


def _as_reported(thread: Thread) -> Instant | None:
    """When the last of the tools that it waits for ends, where each was told of."""
    tools = thread.latest.tools if thread.latest is not None else []
    ends = [tool.finished_at or tool.expected_at for tool in tools]
    told = [end for end in ends if end is not None]
    return max(told) if told and len(told) == len(ends) else None
