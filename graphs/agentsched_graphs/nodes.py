"""The plain records that execution graphs are made of; written in the scheduler's turn, so small.

Edges are kept by the later of their two ends, as the id of the earlier one: an edge never points
into the past, so the graph has no cycles, and folding away an old step touches no other record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agentsched.model import (
    CallId,
    ConversationId,
    EngineId,
    Instant,
    Lineage,
    Nanos,
    PrefixId,
    ProgramId,
    StepClass,
    StepId,
    StepState,
    ToolName,
)


class EdgeKind(StrEnum):
    """What an edge means; it leads from what came first to what came of it."""

    CONTROL = "control"  # step -> the next step of its conversation
    CALLS = "calls"  # step -> a tool that its answer calls
    DATA = "data"  # tool -> the step whose prompt brings its result
    SPAWNS = "spawns"  # step -> first step of a sub-agent, or a sub-program
    JOINS = "joins"  # last step of a sub-agent, or a sub-program -> the step that goes on
    FORKS = "forks"  # step -> first step of a branch that shares its prefix
    COMPACTS = "compacts"  # last step before a prompt was rewritten -> first step after


class ToolState(StrEnum):
    """Where a tool call is in its life."""

    ASKED = "asked"  # the model asked for it
    RUNNING = "running"  # its start was reported
    FINISHED = "finished"  # its end was reported
    FAILED = "failed"  # likewise, with an error
    ANSWERED = "answered"  # its result came with a prompt


@dataclass(slots=True)
class ToolNode:
    """One tool call. Without reports it seems to last from the answer to the next prompt."""

    call_id: CallId
    tool: ToolName
    asked_by: StepId
    asked_at: Instant
    state: ToolState = ToolState.ASKED
    started_at: Instant | None = None
    finished_at: Instant | None = None
    answered_by: StepId | None = None
    answered_at: Instant | None = None
    is_error: bool = False
    #: When its runner thinks that it ends, where it said so.
    expected_at: Instant | None = None


@dataclass(slots=True)
class StepNode:
    """One LLM call. `ordinal` counts steps of all programs in the order of their arrival."""

    step: StepId
    conversation: ConversationId
    ordinal: int
    arrived_at: Instant
    step_class: StepClass
    is_work: bool
    lineage: Lineage
    links: tuple[tuple[StepId, EdgeKind], ...]
    depth: int
    prompt_tokens: int
    prefix: PrefixId | None
    state: StepState = StepState.WAITING
    engine: EngineId | None = None
    attempts: int = 0
    dispatched_at: Instant | None = None
    started_at: Instant | None = None
    ended_at: Instant | None = None
    cached_tokens: int | None = None
    output_tokens: int = 0
    finish_reason: str = ""
    tools: list[ToolNode] = field(default_factory=list)
    tools_left_out: int = 0

    @property
    def reach(self) -> int:
        """Working steps on the longest chain up to its end: an attempt that came to nothing is no
        step of it, and what is asked instead comes in its place."""
        is_vain = self.state.is_final and self.state is not StepState.FINISHED
        return self.depth - (self.is_work and is_vain)


@dataclass(slots=True)
class ChildNode:
    """A sub-program, which has a graph of its own."""

    program: ProgramId
    opened_at: Instant
    spawned_by: StepId | None
    #: The conversation that opened it, where that is known; and whether it has not gone on since.
    conversation: ConversationId | None = None
    is_awaited: bool = True
    closed_at: Instant | None = None
    joined_by: StepId | None = None


@dataclass(slots=True)
class Folded:
    """What became of a conversation's oldest steps: their sums."""

    conversation: ConversationId
    since: Instant
    until: Instant
    steps: int = 0
    tools: int = 0
    prompt_tokens: int = 0
    #: None as long as no engine said it of any of them.
    cached_tokens: int | None = None
    output_tokens: int = 0

    def take(self, step: StepNode) -> None:
        """Add a step that goes."""
        assert step.ended_at is not None
        self.since = min(self.since, step.arrived_at)
        self.until = max(self.until, step.ended_at)
        self.steps += 1
        self.tools += len(step.tools) + step.tools_left_out
        self.prompt_tokens += step.prompt_tokens
        self._add_cached(step.cached_tokens)
        self.output_tokens += step.output_tokens

    def merge(self, other: Folded) -> None:
        """Add another conversation's sums."""
        self.since = min(self.since, other.since)
        self.until = max(self.until, other.until)
        self.steps += other.steps
        self.tools += other.tools
        self.prompt_tokens += other.prompt_tokens
        self._add_cached(other.cached_tokens)
        self.output_tokens += other.output_tokens

    def _add_cached(self, tokens: int | None) -> None:
        if tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + tokens


@dataclass(slots=True)
class Thread:
    """The growing end of one conversation."""

    conversation: ConversationId
    #: Steps that nothing follows yet: several while steps run in parallel.
    tips: tuple[StepNode, ...] = ()
    latest: StepNode | None = None
    parent: ConversationId | None = None
    #: Its own agent type: a sub-agent's need not be its program's.
    agent: str = ""
    active: int = 0
    #: Its latest answer asked for no tool: as far as anyone can tell it was the last.
    is_over: bool = False
    #: It goes on under another id.
    is_replaced: bool = False
    #: Whether its parent has not gone on since, while this one did nothing.
    is_awaited: bool = True
    #: Sub-agents whose parent it is, that are awaited and not over.
    open_children: int = 0
    #: Last steps of its sub-agents that are over and that no step of it has followed yet.
    returned: dict[StepId, None] = field(default_factory=dict)
    #: What it paused for, from its last step's end to its next step; None while one is live.
    paused_at: Instant | None = None
    paused_for: ToolName | None = None
    #: The program's age when it paused, as a key of gaps; and after how long it was given up.
    age: int = 0
    given_up_after: Nanos | None = None
    #: Its program's steps when it paused; and how likely that pause was then to be its last.
    steps_before: int = 0
    final: float = 0.0
    #: Its latest tools, the one before first: what templates go by.
    context: tuple[ToolName, ...] = ()
    #: Its place in a declared workflow; None before the first step, and while it is astray.
    place: str | None = None
    #: It called what the workflow does not know.
    is_astray: bool = False
