"""One program's execution graph, grown event by event.

Theory. Everything here runs in the scheduler's turn, so an event touches a fixed number of plain
records, however long the history; networkx's graph is made from them when somebody looks. A step
follows the *tips* of its conversation: the steps that ended and that nothing follows. Two steps in
flight at once (a retry, a parallel request) follow the same ones and are both tips, so that the
next step joins them. Old steps are folded into one sum for each conversation, in the order in
which they ended; what is folded is a source in the graph, and edges into it are gone.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agentsched.model import (
    CallId,
    ConversationId,
    EngineId,
    Instant,
    Limits,
    Lineage,
    ProgramId,
    StepArrived,
    StepClass,
    StepFinished,
    StepId,
    StepState,
    TenantId,
    ToolCall,
    ToolFinished,
    ToolName,
    ToolStarted,
)
from agentsched.model.time import MINUTE, Nanos
from agentsched_graphs.nodes import (
    ChildNode,
    EdgeKind,
    Folded,
    StepNode,
    Thread,
    ToolNode,
    ToolState,
)

if TYPE_CHECKING:
    import networkx

#: Finish reasons of an answer that ends a turn by itself, in the three dialects.
LAST_WORDS: Final = frozenset({"stop", "end_turn", "completed"})

#: Folded conversations beyond the limit are summed up under this id.
OTHERS: Final = ConversationId("")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLimits:
    """Ceilings of all graphs together and of each. What goes beyond is folded or left out."""

    programs_max: int = 20_000  # the idlest graph is closed
    closed_max: int = 256  # closed graphs that can still be looked at; the oldest goes
    steps_max: int = 100_000  # ended steps of all graphs; the oldest is folded
    steps_per_program_max: int = 256  # ended steps of one graph; the oldest is folded
    age_ns_max: Nanos = Nanos(120 * MINUTE)  # older steps are folded when their program goes on
    tools_per_step_max: int = 64  # further tool calls of a step are counted, not kept
    conversations_per_program_max: int = 64  # the idlest conversation's end is forgotten
    children_per_program_max: int = 64  # the oldest sub-program is forgotten

    def under(self, limits: Limits) -> GraphLimits:
        """These ceilings, with those of the scheduler's in place of their like."""
        return replace(
            self,
            # One more: a program that is turned away at the door is seen before it is known to be.
            programs_max=limits.programs_max + 1,
            conversations_per_program_max=limits.conversations_per_program_max,
            tools_per_step_max=limits.tools_per_program_max,
        )


class ExecutionGraph:
    """The execution graph of one program. `check` asserts what must hold."""

    def __init__(
        self, program: ProgramId, *, tenant: TenantId, limits: GraphLimits, now: Instant
    ) -> None:
        self.program = program
        self.tenant = tenant
        self.agent = ""
        self.parent: ProgramId | None = None
        self.opened_at = now
        self.last_at = now
        self.closed_at: Instant | None = None
        self.close_reason = ""
        self.steps_done = 0
        self.active_steps = 0
        #: Another replica serves it: its silence here says nothing.
        self.is_elsewhere = False
        #: Working steps on the longest chain so far.
        self.depth = 0
        self._limits = limits
        #: The largest ceiling of one step's tools so far: what was kept under it stays.
        self._tools_most = limits.tools_per_step_max
        self._steps: dict[StepId, StepNode] = {}
        #: Steps in a final state, in the order in which they ended: the next to be folded first.
        #: Few, and a deque takes three times the bytes of a list, for each program.
        self._ended: list[StepNode] = []
        #: Tool calls of the steps above.
        self._calls: dict[CallId, ToolNode] = {}
        #: Answers that came with a prompt before the step that asked for them was seen to end.
        self._early: OrderedDict[CallId, StepNode] = OrderedDict()
        #: The growing ends, the one idle for longest first.
        self._threads: OrderedDict[ConversationId, Thread] = OrderedDict()
        self._children: OrderedDict[ProgramId, ChildNode] = OrderedDict()
        self._folded: dict[ConversationId, Folded] = {}

    # What happened.

    def arrive(self, event: StepArrived, *, ordinal: int, now: Instant) -> StepNode | None:
        """Add a step; None when this graph has seen it before."""
        if event.step in self._steps:
            return None
        thread = self._threads.get(event.conversation)
        links = self._follow(thread, event) if thread is not None else self._begin(event)
        thread = self._threads[event.conversation]
        self._threads.move_to_end(event.conversation)
        is_work = event.step_class.is_work
        if is_work and thread.open_children:
            self._wait_no_more(thread)
        node = StepNode(
            event.step,
            event.conversation,
            ordinal,
            now,
            event.step_class,
            is_work,
            event.lineage,
            links,
            self._depth(links) + is_work,
            event.prompt_tokens,
            event.prefixes[-1].prefix if event.prefixes else None,
        )
        self._steps[event.step] = node
        self._take_tip(thread, node)
        for call in event.answers:
            self._answer(call, node, now=now)
        self.is_elsewhere = False
        if is_work or not thread.agent:
            thread.agent = event.agent or thread.agent or self.agent
        # A sub-agent's branch is nobody's child, and a sub-agent still.
        is_own = thread.parent is None and event.step_class is not StepClass.SUBAGENT
        if is_own or not self.agent:
            self.agent = event.agent or self.agent
        self.last_at = now
        self.active_steps += 1
        if node.depth > self.depth:
            self.depth = node.depth
        return node

    def dispatch(self, node: StepNode, engine: EngineId, *, now: Instant) -> None:
        """It was sent to an engine."""
        node.state, node.engine = StepState.DISPATCHED, engine
        node.dispatched_at, node.started_at = now, None
        node.attempts += 1

    def start(self, node: StepNode, *, now: Instant) -> None:
        """Its first token was seen."""
        node.state, node.started_at = StepState.RUNNING, now

    def put_back(self, node: StepNode) -> None:
        """Its engine failed before the first byte: it waits again."""
        node.state, node.engine = StepState.WAITING, None
        node.dispatched_at = node.started_at = None

    def finish(self, node: StepNode, event: StepFinished, *, now: Instant) -> None:
        """Its answer is complete; the tools that it asks for join the graph."""
        usage = event.usage
        node.prompt_tokens = usage.prompt_tokens or node.prompt_tokens
        node.cached_tokens, node.output_tokens = usage.cached_tokens, usage.output_tokens
        node.finish_reason = event.finish_reason
        if event.prefix is not None:
            # The answer's end tells more than the prompt's: forks start there.
            node.prefix = event.prefix.prefix
        for call in event.tool_calls:
            self._ask(node, call, now=now)
        self.steps_done += node.is_work
        self.end(node, StepState.FINISHED, now=now)
        thread = self._threads.get(node.conversation)
        if thread is not None and thread.latest is node:
            is_over = not event.tool_calls and event.finish_reason in LAST_WORDS
            self._set_over(thread, is_over=is_over)

    def end(self, node: StepNode, state: StepState, *, now: Instant) -> None:
        """It is in a final state. `finish` calls this itself."""
        assert state.is_final
        node.state, node.ended_at = state, now
        self.active_steps -= 1
        self.last_at = now
        self._ended.append(node)
        thread = self._threads.get(node.conversation)
        if thread is not None and thread.active:
            thread.active -= 1

    def start_tool(self, event: ToolStarted, *, now: Instant) -> None:
        """A tool's start was reported; one that nobody asked for hangs on the latest step."""
        tool = self._reported(event, now=now)
        if tool is None:
            return
        if event.expected is not None:
            # Told again while it runs, the later word counts.
            tool.expected_at = Instant(now + max(0, event.expected))
        if tool.started_at is None:
            tool.started_at = now
            if tool.state is ToolState.ASKED:
                tool.state = ToolState.RUNNING

    def finish_tool(self, event: ToolFinished, *, now: Instant) -> None:
        """A tool's end was reported."""
        tool = self._reported(event, now=now)
        if tool is None or tool.finished_at is not None:
            return
        tool.finished_at = now
        tool.is_error = event.is_error
        if event.took is not None:
            # What was measured counts more than when a start was told, which may have been late.
            began = max(tool.asked_at, Instant(now - max(0, event.took)))
            tool.started_at = min(tool.started_at or began, began)
        if tool.state is not ToolState.ANSWERED:
            tool.state = ToolState.FAILED if event.is_error else ToolState.FINISHED

    def add_child(self, program: ProgramId, *, now: Instant) -> None:
        """A sub-program was opened."""
        if program in self._children:
            return
        latest = next(reversed(self._threads.values()), None)
        spawned_by = latest.latest.step if latest is not None and latest.latest else None
        conversation = latest.conversation if latest is not None else None
        self._children[program] = ChildNode(program, now, spawned_by, conversation)
        if len(self._children) > self._limits.children_per_program_max:
            self._children.popitem(last=False)

    def close_child(self, program: ProgramId, *, now: Instant) -> None:
        """A sub-program was closed."""
        child = self._children.get(program)
        if child is not None and child.closed_at is None:
            child.closed_at = now

    def reopen_child(self, program: ProgramId) -> None:
        """A sub-program that was closed is there again."""
        child = self._children.get(program)
        if child is not None:
            child.closed_at = None

    def await_child(self, program: ProgramId) -> None:
        """A sub-program that had come to its end was asked again: somebody waits for it anew."""
        child = self._children.get(program)
        if child is not None:
            child.is_awaited = True

    def close(self, reason: str, *, now: Instant) -> None:
        """The program said its last word; should it go on, `closed_at` is taken back."""
        self.closed_at, self.close_reason = now, reason

    def reopen(self) -> None:
        """It goes on after all."""
        self.closed_at, self.close_reason = None, ""

    # Bounds.

    def set_limits(self, limits: GraphLimits) -> None:
        """Other ceilings from now on. What is above a lower one goes as others come."""
        self._limits = limits
        self._tools_most = max(self._tools_most, limits.tools_per_step_max)
        while len(self._folded.keys() - {OTHERS}) > limits.conversations_per_program_max:
            self._merge_folded(self.opened_at)

    @property
    def foldable(self) -> StepNode | None:
        """The step that would be folded next, where it should be: too many, or too old."""
        if not self._ended:
            return None
        oldest = self._ended[0]
        is_old = oldest.arrived_at < self.last_at - self._limits.age_ns_max
        return oldest if is_old or len(self._ended) > self._limits.steps_per_program_max else None

    def fold(self) -> StepNode:
        """Fold the step that ended first into its conversation's sum."""
        node = self._ended.pop(0)
        del self._steps[node.step]
        for tool in node.tools:
            del self._calls[tool.call_id]
        self._folded_in(node.conversation, since=node.arrived_at).take(node)
        return node

    def ended(self) -> Sequence[StepNode]:
        """Steps in a final state that are kept, in the order in which they ended."""
        return self._ended

    # Questions.

    @property
    def steps(self) -> Mapping[StepId, StepNode]:
        """The steps that are kept, by arrival. Read only."""
        return self._steps

    @property
    def tools(self) -> Mapping[CallId, ToolNode]:
        """Tool calls of these steps. Read only."""
        return self._calls

    @property
    def children(self) -> Mapping[ProgramId, ChildNode]:
        """Sub-programs. Read only."""
        return self._children

    @property
    def folded(self) -> Mapping[ConversationId, Folded]:
        """Sums of the steps that are not kept. Read only."""
        return self._folded

    @property
    def threads(self) -> OrderedDict[ConversationId, Thread]:
        """The growing ends of its conversations, the idlest first. Read only."""
        return self._threads

    def edges(self) -> Iterator[tuple[str, str, EdgeKind]]:
        """Every edge as (from node, to node, kind); ends are the names of `node_of`'s making."""
        for node in self._steps.values():
            for step, kind in node.links:
                source = self._source(step, node.conversation, kind)
                if source is not None:
                    yield source, f"step:{node.step}", kind
            for tool in node.tools:
                yield f"step:{node.step}", f"tool:{tool.call_id}", EdgeKind.CALLS
                if tool.answered_by in self._steps:
                    yield f"tool:{tool.call_id}", f"step:{tool.answered_by}", EdgeKind.DATA
        for child in self._children.values():
            if child.spawned_by in self._steps:
                yield f"step:{child.spawned_by}", f"program:{child.program}", EdgeKind.SPAWNS
            if child.joined_by in self._steps:
                yield f"program:{child.program}", f"step:{child.joined_by}", EdgeKind.JOINS

    def to_networkx(self) -> networkx.DiGraph:
        """A networkx graph of its own: changing it changes nothing here.

        Nodes are named `step:ID`, `tool:CALL`, `program:ID` and `folded:CONVERSATION`; attributes
        are the records' fields, times in nanoseconds, and `kind`; edges have a `kind`.
        """
        from agentsched_graphs.convert import to_networkx

        return to_networkx(self)

    def check(self) -> None:
        """Assert every invariant; for tests."""
        limits = self._limits
        assert len(self._ended) + self.active_steps == len(self._steps)
        assert all(node.state.is_final for node in self._ended)
        assert len(self._children) <= limits.children_per_program_max
        assert len(self._folded) <= limits.conversations_per_program_max + 1
        kept = [tool for node in self._steps.values() for tool in node.tools]
        assert {tool.call_id for tool in kept} == set(self._calls)
        assert len(kept) == len(self._calls)
        assert all(len(n.tools) <= self._tools_most for n in self._steps.values())
        threads = self._threads.values()
        awaited = Counter(t.parent for t in threads if t.is_awaited and not t.is_over)
        assert all(thread.open_children == awaited[thread.conversation] for thread in threads)
        assert all(len(thread.returned) <= limits.steps_per_program_max for thread in threads)
        assert sum(t.active for t in self._threads.values()) <= self.active_steps

    # Inside.

    def _begin(self, event: StepArrived) -> tuple[tuple[StepId, EdgeKind], ...]:
        """Open a conversation, and tie it to the one that it came from."""
        parent = self._threads.get(event.parent_conversation or OTHERS)
        if parent is not None:
            self._threads.move_to_end(parent.conversation)
        thread = self._threads[event.conversation] = Thread(event.conversation)
        kind = self._tie(thread, parent, event.lineage) if parent is not None else None
        # Usually one; after the limit was lowered all that are above it. That may be the parent.
        for _ in range(len(self._threads) - self._limits.conversations_per_program_max):
            self._forget_thread()
        if parent is None or kind is None:
            return ()
        source = self._forked_at(event) if kind is EdgeKind.FORKS else None
        source = source or (parent.latest.step if parent.latest is not None else None)
        return ((source, kind),) if source is not None else ()

    def _tie(self, thread: Thread, parent: Thread, lineage: Lineage) -> EdgeKind | None:
        match lineage:
            case Lineage.SPAWNED:
                thread.parent = parent.conversation
                parent.open_children += 1
                return EdgeKind.SPAWNS
            case Lineage.COMPACTS:
                self._inherit(thread, parent)
                return EdgeKind.COMPACTS
            case Lineage.FORKS:
                return EdgeKind.FORKS
            case _:
                return None

    def _inherit(self, thread: Thread, old: Thread) -> None:
        """A conversation goes on under another id: parent and sub-agents have that one now."""
        thread.parent, old.parent = old.parent, None
        old.is_replaced = True
        grand = self._threads.get(thread.parent) if thread.parent is not None else None
        if grand is not None and (old.is_over or not old.is_awaited):
            grand.open_children += 1
        for child in self._threads.values():
            if child.parent == old.conversation:
                child.parent = thread.conversation
        thread.open_children, old.open_children = old.open_children, 0
        thread.returned, old.returned = old.returned, {}
        thread.agent, thread.context = old.agent, old.context
        thread.place, thread.is_astray = old.place, old.is_astray

    def _forked_at(self, event: StepArrived) -> StepId | None:
        """The step whose prompt or answer is the longest beginning of this one's prompt."""
        # Forks are few, and an index of all ends would be as large as that of the steps.
        ends = {node.prefix: node.step for node in self._steps.values()}
        known = (ends.get(prefix.prefix) for prefix in reversed(event.prefixes))
        return next((step for step in known if step is not None), None)

    def _follow(self, thread: Thread, event: StepArrived) -> tuple[tuple[StepId, EdgeKind], ...]:
        """Ties of a further step of a known conversation."""
        kind = EdgeKind.COMPACTS if event.lineage is Lineage.COMPACTS else EdgeKind.CONTROL
        ended = [tip for tip in thread.tips if tip.ended_at is not None]
        if ended:
            links = tuple((tip.step, kind) for tip in ended)
        else:
            # In parallel with one that is still live: it follows what that one follows.
            links = thread.tips[0].links if thread.tips else ()
        if thread.returned:
            links += tuple((step, EdgeKind.JOINS) for step in thread.returned)
            thread.returned.clear()
        if not thread.is_awaited:
            thread.is_awaited = True
            parent = self._threads.get(thread.parent) if thread.parent is not None else None
            if parent is not None:
                parent.open_children += 1
        if thread.is_over:
            self._set_over(thread, is_over=False)
        return links

    def _wait_no_more(self, thread: Thread) -> None:
        """It goes on: sub-agents that do nothing then need not say a last word (they may have been
        cancelled, or cut). One that runs, or goes on later, is waited for.
        """
        for child in self._threads.values():
            is_counted = child.is_awaited and not child.is_over
            if child.parent == thread.conversation and is_counted and not child.active:
                child.is_awaited = False
                thread.open_children -= 1

    def _take_tip(self, thread: Thread, node: StepNode) -> None:
        live = tuple(tip for tip in thread.tips if tip.ended_at is None) if thread.active else ()
        thread.tips = (*live, node)
        thread.latest = node
        thread.active += 1

    def _depth(self, links: tuple[tuple[StepId, EdgeKind], ...]) -> int:
        steps = self._steps
        if len(links) == 1:
            node = steps.get(links[0][0])
            return node.reach if node is not None else self.depth
        return max((steps[step].reach for step, _ in links if step in steps), default=0)

    def _set_over(self, thread: Thread, *, is_over: bool) -> None:
        if thread.is_over is is_over:
            return
        thread.is_over = is_over
        parent = self._threads.get(thread.parent) if thread.parent is not None else None
        if parent is None or thread.latest is None:
            return
        parent.open_children += -1 if is_over else 1
        if is_over:
            parent.returned[thread.latest.step] = None
            if len(parent.returned) > self._limits.steps_per_program_max:
                # As many have ended since: it is folded, and no edge can start there any more.
                del parent.returned[next(iter(parent.returned))]
        else:
            for tip in thread.tips:
                parent.returned.pop(tip.step, None)

    def _forget_thread(self) -> None:
        """The idlest conversation without a live step goes; its steps stay."""
        idle = next((t for t in self._threads.values() if not t.active and t.latest), None)
        if idle is None:
            return
        parent = self._threads.get(idle.parent) if idle.parent is not None else None
        if parent is not None and idle.is_awaited and not idle.is_over:
            parent.open_children -= 1
        del self._threads[idle.conversation]
        for thread in self._threads.values():
            if thread.parent == idle.conversation:
                thread.parent = None

    def _ask(self, node: StepNode, call: ToolCall, *, now: Instant) -> None:
        if call.call_id in self._calls:
            return
        if len(node.tools) >= self._limits.tools_per_step_max:
            node.tools_left_out += 1
            return
        tool = ToolNode(call.call_id, call.tool, node.step, now)
        node.tools.append(tool)
        self._calls[call.call_id] = tool
        if self._early:
            follower = self._early.pop(call.call_id, None)
            # A step that arrived before this one cannot follow it.
            if follower is not None and follower.ordinal > node.ordinal:
                self._give(tool, follower, now=follower.arrived_at)

    def _answer(self, call: CallId, node: StepNode, *, now: Instant) -> None:
        tool = self._calls.get(call)
        if tool is None:
            self._early[call] = node
            while len(self._early) > self._limits.tools_per_step_max:
                self._early.popitem(last=False)
        elif tool.answered_by is None and tool.asked_by != node.step:
            self._give(tool, node, now=now)

    def _give(self, tool: ToolNode, node: StepNode, *, now: Instant) -> None:
        tool.answered_by, tool.answered_at = node.step, now
        tool.state = ToolState.ANSWERED

    def _reported(self, event: ToolStarted | ToolFinished, *, now: Instant) -> ToolNode | None:
        if not event.call_id:
            return self._latest_open(event.conversation, event.tool)
        tool = self._calls.get(event.call_id)
        if tool is not None:
            return tool
        thread = self._threads.get(event.conversation) if event.conversation is not None else None
        thread = thread or next(reversed(self._threads.values()), None)
        node = thread.latest if thread is not None else None
        if node is None or node.step not in self._steps:
            return None
        self._ask(node, ToolCall(call_id=event.call_id, tool=event.tool), now=now)
        return self._calls.get(event.call_id)

    def _latest_open(self, conversation: ConversationId | None, tool: ToolName) -> ToolNode | None:
        """The call that a report without a call id is about, if there is but one such call."""
        thread = self._threads.get(conversation or OTHERS)
        node = thread.latest if thread is not None else None
        found = [t for t in node.tools if t.tool == tool and not t.finished_at] if node else []
        return found[0] if len(found) == 1 else None

    def _folded_in(self, conversation: ConversationId, *, since: Instant) -> Folded:
        folded = self._folded.get(conversation)
        if folded is None:
            if len(self._folded) >= self._limits.conversations_per_program_max:
                self._merge_folded(since)
            folded = self._folded[conversation] = Folded(conversation, since, since)
        return folded

    def _merge_folded(self, since: Instant) -> None:
        """Make room: the sums of the conversation folded first join those of others."""
        first = next(key for key in self._folded if key != OTHERS)
        others = self._folded.setdefault(OTHERS, Folded(OTHERS, since, since))
        others.merge(self._folded.pop(first))

    def _source(self, step: StepId, conversation: ConversationId, kind: EdgeKind) -> str | None:
        if step in self._steps:
            return f"step:{step}"
        if kind is EdgeKind.CONTROL and conversation in self._folded:
            return f"folded:{conversation}"
        return None
