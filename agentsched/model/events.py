"""Everything that can happen. Hosts make events; scheduler, graphs and policies read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agentsched.model.choice import Choice
from agentsched.model.ids import (
    CallId,
    ConversationId,
    EngineId,
    PinId,
    ProgramId,
    StepId,
    TenantId,
    ToolName,
)
from agentsched.model.limits import Limits
from agentsched.model.program import (
    Capabilities,
    EngineLoad,
    HintOutcome,
    Lineage,
    Prefix,
    StepClass,
    ToolCall,
    Usage,
)
from agentsched.model.tenant_limits import TenantLimits
from agentsched.model.time import Instant, Nanos

#: Why a program was forgotten that nobody ended: a new one came, and there were as many as may be.
FOR_ROOM: Final = "forgotten for room"
#: Finish reasons of an answer that ends a turn by itself, in the three dialects.
_LAST_WORDS: Final = frozenset({"stop", "end_turn", "completed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOpened:
    """A program announced itself. Optional: its first step opens it as well."""

    program: ProgramId
    tenant: TenantId
    parent: ProgramId | None = None
    agent: str = ""
    deadline: Instant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepArrived:
    """A client asks for an LLM call.

    `prompt_tokens` is the host's estimate. `prefixes` are hashes of ever longer beginnings of the
    prompt, shortest first, the whole prompt last; equal hashes mean equal beginnings, so a shared
    system prompt is recognised between programs. `answers` are tool calls whose results the
    prompt brings. `deadline` is when the client wants the program done, `priority` what the client
    may set for itself (smaller is sooner). `retries` is the step that the client asks for again
    with this one: its place in the queue passes on, so the promise of a bounded wait counts on.
    `home` is the engine where another replica ran this conversation last, and `home_tokens` the
    context that it left there. `goes_on`: the request shows that its program was begun before it,
    by answers in its prompt, say, at a time when that is believed (`Scheduler.believes`).
    """

    step: StepId
    program: ProgramId
    conversation: ConversationId
    tenant: TenantId
    prompt_tokens: int
    prefixes: tuple[Prefix, ...] = ()
    step_class: StepClass = StepClass.STEP
    lineage: Lineage = Lineage.NEW
    parent: ProgramId | None = None
    parent_conversation: ConversationId | None = None
    answers: tuple[CallId, ...] = ()
    model: str = ""
    agent: str = ""
    output_tokens_max: int | None = None
    output_tokens_expected: int | None = None
    deadline: Instant | None = None
    priority: int = 0
    is_last: bool = False
    retries: StepId | None = None
    home: EngineId | None = None
    home_tokens: int = 0
    goes_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """The first token of the answer came back."""

    step: StepId


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """The answer is complete. `prefix` names prompt plus answer where the host can name it."""

    step: StepId
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    prefix: Prefix | None = None

    @property
    def is_last_word(self) -> bool:
        """It ended its turn by itself and asked for no tool: as far as anyone can tell, an end."""
        return not self.tool_calls and self.finish_reason in _LAST_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """The engine gave no complete answer.

    `is_retryable` means that no byte reached the client, so the host would like to have it
    dispatched again; the scheduler decides whether and where.
    """

    step: StepId
    reason: str
    is_retryable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCancelled:
    """The client went away, or an operator took the step out."""

    step: StepId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStarted:
    """A tool began to run. `expected` is how long the agent thinks that it will take."""

    program: ProgramId
    call_id: CallId
    tool: ToolName
    conversation: ConversationId | None = None
    expected: Nanos | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFinished:
    """A tool ended. `took` is its own time where it was measured; its program will return soon."""

    program: ProgramId
    call_id: CallId
    tool: ToolName
    conversation: ConversationId | None = None
    took: Nanos | None = None
    is_error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramClosed:
    """A program said its last word, was released, or was forgotten: for its age, or for room."""

    program: ProgramId
    reason: str

    @property
    def is_end(self) -> bool:
        """Nobody expects more of it; one that others needed the room of may well go on."""
        return self.reason != FOR_ROOM


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReported:
    """An engine is there, and this is what it can do and how loaded it is.

    `heard_at` is when a byte of an answer last came from it, on the host's clock.
    """

    engine: EngineId
    capabilities: Capabilities
    load: EngineLoad
    heard_at: Instant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineUnanswered:
    """A look at an engine, begun at `since`, got no answer. It is not given up for that yet."""

    engine: EngineId
    since: Instant
    reason: str
    heard_at: Instant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost:
    """An engine stopped answering; its cache is written off."""

    engine: EngineId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDrained:
    """An engine is taken out of (or back into) placement; running steps go on.

    `is_lasting`: an operator said so, and it holds over restarts. The end of any other drain, of an
    ejection for failures say, is known to the process that began it alone.
    """

    engine: EngineId
    is_draining: bool
    is_lasting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HintAnswered:
    """What an engine said to a pin, an unpin or a prefetch. `until` where it clipped a pin."""

    pin: PinId
    outcome: HintOutcome
    until: Instant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantConfigured:
    """An operator set a tenant's share and ceilings. Weights are relative; 1.0 is ordinary.

    `limits` None leaves them as they are.
    """

    tenant: TenantId
    weight: float = 1.0
    limits: TenantLimits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconfigured:
    """An operator changed policies or limits while the scheduler runs. Nothing that waits is lost.

    `choices` names the policy of each point; those whose choice stays go on with what they learnt.
    `limits` None leaves them as they are.
    """

    profile: str
    choices: Mapping[str, Choice]
    limits: Limits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReported:
    """Another replica of this proxy says what it has on an engine: all of it, at this moment."""

    engine: EngineId
    peer: str
    running_steps: int
    resident_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedElsewhere:
    """Another replica served so much more to a tenant; it is charged as if it had been here.

    `idle_token_s`: KV tokens times seconds that the tenant's paused conversations kept there.
    `waits`: a step of the tenant waits on some other replica now, as far as they said.
    """

    tenant: TenantId
    uncached_tokens: int
    output_tokens: int
    idle_token_s: int = 0
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuedElsewhere:
    """Another replica serves this conversation now: nothing is kept or planned for it here."""

    program: ProgramId
    conversation: ConversationId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowDeclared:
    """Somebody declared an agent's workflow (text as `agentsched_graphs.workflow` reads it)."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """The instant that the scheduler asked for has come."""


Event = (
    ProgramOpened
    | StepArrived
    | StepStarted
    | StepFinished
    | StepFailed
    | StepCancelled
    | ToolStarted
    | ToolFinished
    | ProgramClosed
    | EngineReported
    | EngineUnanswered
    | EngineLost
    | EngineDrained
    | HintAnswered
    | TenantConfigured
    | Reconfigured
    | PeerReported
    | ServedElsewhere
    | ContinuedElsewhere
    | WorkflowDeclared
    | TimerFired
)
