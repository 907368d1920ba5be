"""The scheduler's own records. Policies see them through the read-only views of `policy.views`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from agentsched.kernel.cold import ColdSteps
from agentsched.kernel.costs import EngineCost
from agentsched.model import (
    CallId,
    Capabilities,
    ConversationId,
    EngineId,
    EngineLoad,
    Instant,
    Lineage,
    Nanos,
    PeerReported,
    Prefix,
    ProgramId,
    StepArrived,
    StepClass,
    StepId,
    StepState,
    TenantId,
    ToolName,
)

#: Of each conversation: as many as one answer calls at once, and reports of them come soon.
_ANSWERED_KEPT: Final = 32


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """One live step; it is dropped when it reaches a final state."""

    arrived: StepArrived
    #: Its program's tenant, whatever the request itself said.
    tenant: TenantId
    #: When its client asked first; a retry has its first request's.
    arrived_at: Instant
    #: When it began to wait: arrival, or the failure that put it back.
    waiting_since: Instant
    #: What it asked for, as far as its tenant may.
    priority: int = 0
    #: Its program's.
    deadline: Instant | None = None
    state: StepState = StepState.WAITING
    #: Whether it was asked to make way for other work, and its host has not answered yet.
    is_yielding: bool = False
    bypassed: int = 0
    attempts: int = 0
    #: Engines that failed this step; avoided while another one is up.
    failed_on: tuple[EngineId, ...] = ()
    engine: EngineId | None = None
    dispatched_at: Instant | None = None
    started_at: Instant | None = None
    #: Prompt tokens that its engine had to compute, as far as we knew when it was sent.
    missing_tokens: int = 0
    #: Those of them that its conversation had there before it was let go.
    given_up_tokens: int = 0
    #: Those that its engine was computing for others when it was sent.
    ahead_tokens: int = 0
    #: When its prefill should be over, for engines that do not show a first token.
    cold_until: Instant = field(default=Instant(0))
    #: The estimate that its tenant was charged when it was sent; 0 when it is not out.
    uncached_charged: int = 0
    output_charged: int = 0
    #: Why it waits, in the admission policy's words.
    held_for: str = ""
    #: Of `arrived`, what is asked for at every turn.
    step: StepId = field(init=False)
    program: ProgramId = field(init=False)
    conversation: ConversationId = field(init=False)
    prompt_tokens: int = field(init=False)
    prefixes: tuple[Prefix, ...] = field(init=False)
    model: str = field(init=False)

    def __post_init__(self) -> None:
        arrived = self.arrived
        self.step = arrived.step
        self.program = arrived.program
        self.conversation = arrived.conversation
        self.prompt_tokens = arrived.prompt_tokens
        self.prefixes = arrived.prefixes
        self.model = arrived.model

    @property
    def step_class(self) -> StepClass:
        return self.arrived.step_class

    @property
    def lineage(self) -> Lineage:
        return self.arrived.lineage

    @property
    def output_tokens_expected(self) -> int | None:
        return self.arrived.output_tokens_expected

    @property
    def output_tokens_max(self) -> int | None:
        return self.arrived.output_tokens_max


@dataclass(slots=True, kw_only=True)
class ConversationRecord:
    """One KV lineage of a program."""

    conversation: ConversationId
    program: ProgramId
    parent: ConversationId | None = None
    engine: EngineId | None = None
    is_resident: bool = False
    context_tokens: int = 0
    growth_tokens: float = 0.0
    prefixes: tuple[Prefix, ...] = ()
    steps_done: int = 0
    active_steps: int = 0
    #: Those of them that are on an engine.
    running_steps: int = 0
    paused_at: Instant | None = None
    last_at: Instant
    #: Tool calls it waits for, oldest first.
    tools: dict[CallId, ToolName] = field(default_factory=dict)
    #: Calls that were answered last: a report about one of them may still come.
    answered: dict[CallId, ToolName] = field(default_factory=dict)
    is_warmed: bool = False
    is_over: bool = False
    #: It goes on under another id, until a step of its own says otherwise.
    is_replaced: bool = False
    #: Whether it began as a sub-agent of `parent`.
    is_spawned: bool = False
    #: Tokens of KV that its tenant is charged for while it pauses.
    kept_tokens: int = 0

    @property
    def may_go_on(self) -> bool:
        """It neither said its last word nor goes on under another id, as far as anyone can tell."""
        return not (self.is_over or self.is_replaced)

    def grow(self, *, context_tokens: int) -> None:
        """Take in the context after a step; keeps the mean growth per step."""
        if self.steps_done:
            grown = max(0, context_tokens - self.context_tokens)
            self.growth_tokens += (grown - self.growth_tokens) / self.steps_done
        self.context_tokens = context_tokens
        self.steps_done += 1

    def answer(self, calls: Iterable[CallId]) -> None:
        """A step brings the results of these calls: it does not wait for them any more."""
        for call in calls:
            tool = self.tools.pop(call, None)
            if tool is None:
                continue
            self.answered[call] = tool
            if len(self.answered) > _ANSWERED_KEPT:
                del self.answered[next(iter(self.answered))]

    def go_on(self, step: StepArrived) -> None:
        """A step of it is here, and not counted yet: what it waits for from now on.

        Where nothing else of it is under way it waits for nothing that was called before: what the
        prompt leaves out is of an answer that was lost and asked for again, or was taken back.
        """
        is_alone = step.step_class.is_work and not self.active_steps
        self.answer((*step.answers, *self.tools) if is_alone else step.answers)


@dataclass(slots=True, kw_only=True)
class ProgramRecord:
    """One agent run."""

    program: ProgramId
    tenant: TenantId
    ordinal: int
    opened_at: Instant
    last_at: Instant
    parent: ProgramId | None = None
    agent: str = ""
    deadline: Instant | None = None
    steps_done: int = 0
    #: Whether a step of what it is for was answered, batch or not, here, by another replica or by
    #: the process before this one: from then on it is no newcomer.
    was_served: bool = False
    active_steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    #: Of `prompt_tokens` those of steps whose engines did not say how much of them was cached:
    #: `cached_tokens` has none of theirs.
    untold_tokens: int = 0
    output_tokens: int = 0
    served_tokens: int = 0
    conversations: dict[ConversationId, ConversationRecord] = field(default_factory=dict)
    #: Live programs that named it as their parent, the one opened first coming first.
    children: dict[ProgramId, None] = field(default_factory=dict)
    #: Its latest journal entries, packed: a small part of the size of the objects.
    story: list[bytes] = field(default_factory=list)

    def tell(self, packed: bytes, *, entries_max: int) -> None:
        """One entry more; the oldest ones fall out."""
        self.story.append(packed)
        if len(self.story) > entries_max:
            del self.story[: len(self.story) - entries_max]


@dataclass(slots=True, kw_only=True)
class EngineRecord:
    """One serving engine."""

    engine: EngineId
    capabilities: Capabilities = field(default_factory=Capabilities)
    load: EngineLoad = field(default_factory=EngineLoad)
    #: Whether it reported and was not lost since.
    is_alive: bool = False
    is_draining: bool = False
    #: Whether that holds over restarts, for an operator said so.
    is_drain_lasting: bool = False
    #: Steps that we sent and that have not ended, in the order of dispatch.
    running: dict[StepId, StepRecord] = field(default_factory=dict)
    #: Those of them whose prefill may still be under way.
    cold: ColdSteps = field(default_factory=ColdSteps)
    #: Batch steps among them.
    background_steps: int = 0
    running_tokens: int = 0
    starting_tokens: int = 0
    pinned_tokens: int = 0
    #: Steps sent to it, plus what others had been sent when it joined or was put back.
    dispatched_total: int = 0
    lost_reason: str = ""
    lost_at: Instant = field(default=Instant(0))
    #: When it last came back, after a loss or a drain: its share of work grows from here on.
    returned_at: Instant | None = None
    #: When something last came from it, or its gauges moved, or its first step was sent there.
    moved_at: Instant = field(default=Instant(0))
    #: Whether the latest look at it got no answer.
    is_unanswered: bool = False
    #: Since when it answers nothing though steps are inside (`silence`); None while it is well.
    silent_since: Instant | None = None
    #: What other replicas have here: steps and resident tokens, by replica.
    peers: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: The pressure gate: programs under way want more of its cache than it has.
    is_contended: bool = False
    wanted_tokens: int = 0
    #: The share of warmed tokens that were used, lately.
    warm_paid: float = 1.0
    cost: EngineCost = field(default_factory=EngineCost)

    @property
    def reload_ns(self) -> float:
        return self.cost.reload_ns_per_token

    def reload(self, tokens: int) -> Nanos:
        return self.cost.reload(tokens)

    @property
    def prefill_ns(self) -> float:
        return self.cost.prefill_ns_per_token

    @property
    def is_priced(self) -> bool:
        return self.cost.samples > 0

    @property
    def decode_ns(self) -> float:
        return self.cost.decode_ns_per_token

    def cold_tokens(self, *, now: Instant) -> int:
        ratio = self.cost.reload_ns_per_token / self.cost.prefill_ns_per_token
        return self.cold.tokens(ratio=ratio, now=now)

    def cold_until(self, *, now: Instant) -> Instant | None:
        return self.cold.earliest(now=now)

    @property
    def is_up(self) -> bool:
        return self.is_alive and not self.is_draining

    @property
    def running_steps(self) -> int:
        return len(self.running)

    @property
    def peer_steps(self) -> int:
        return sum(steps for steps, _ in self.peers.values())

    @property
    def peer_tokens(self) -> int:
        return sum(tokens for _, tokens in self.peers.values())

    def hear(self, event: PeerReported) -> None:
        """Take in what another replica has here; one that has nothing is forgotten."""
        if event.running_steps or event.resident_tokens:
            self.peers[event.peer] = (event.running_steps, event.resident_tokens)
        else:
            self.peers.pop(event.peer, None)

    def serves(self, model: str) -> bool:
        """Whether it has this model; an engine that lists none is taken to have it."""
        models = self.capabilities.models
        return not model or not models or model in models

    def take(self, step: StepRecord) -> None:
        """Count a step as running here."""
        assert step.step not in self.running
        self.running[step.step] = step
        self.cold.add(
            step.step,
            until=step.cold_until,
            missing=step.missing_tokens,
            given_up=step.given_up_tokens,
            now=step.dispatched_at or Instant(0),
        )
        self.background_steps += step.step_class is StepClass.BATCH
        self.running_tokens += step.prompt_tokens
        self.starting_tokens += step.prompt_tokens
        self.dispatched_total += 1

    def start(self, step: StepRecord) -> None:
        """Its prefill is over. Whoever was asked to make way did not: another may be asked."""
        step.is_yielding = False
        self.cold.drop(step.step, until=step.cold_until)
        self.starting_tokens -= step.prompt_tokens

    def give_back(self, step: StepRecord) -> None:
        """Count a step out; it ended, or never got through."""
        del self.running[step.step]
        self.cold.drop(step.step, until=step.cold_until)
        self.background_steps -= step.step_class is StepClass.BATCH
        self.running_tokens -= step.prompt_tokens
        if step.started_at is None:
            self.starting_tokens -= step.prompt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A conversation between two steps; satisfies `policy.PauseView`."""

    program: ProgramId
    conversation: ConversationId
    tenant: TenantId
    tools: dict[CallId, ToolName]
    since: Instant
    engine: EngineId
    prefix: Prefix
