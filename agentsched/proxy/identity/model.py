"""What identification says about one request, and the ceilings that it works under."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agentsched.model import (
    CallId,
    ConversationId,
    Lineage,
    Prefix,
    ProgramId,
    StepClass,
    TenantId,
)
from agentsched.model.errors import ConfigError
from agentsched.model.time import MINUTE, Nanos


class Evidence(StrEnum):
    """What tied a request to its program, strongest first."""

    OURS = "ours"  # `x-agentsched-*` headers or the body object `agentsched`
    AGENTIC_CONTEXT = "agentic_context"  # `vllm_xargs.agentic_context`
    NVEXT = "nvext"
    PROGRAM_ID = "program_id"  # body `program_id`, `job_id`
    NATIVE = "native"  # headers of a known agent; `Identity.source` says which
    SESSION_ID = "session_id"  # generic ids and the operator's extra headers
    CACHE_KEY = "cache_key"  # `prompt_cache_key`, `conversation`
    RESPONSE_ID = "response_id"  # `previous_response_id`
    CALL_ID = "call_id"  # tool-call ids that we handed out
    PREFIX = "prefix"  # the prompt begins with a known prompt and the answer we returned
    TEXT = "text"  # an assistant message is a long text that we returned, elsewhere
    CONTAINMENT = "containment"  # a text that we returned occurs inside the prompt
    NONE = "none"  # a program of its own

    @property
    def is_declared(self) -> bool:
        """Whether the client named its program, rather than we having found it."""
        return self in _DECLARED


_DECLARED = frozenset(
    {
        Evidence.OURS,
        Evidence.AGENTIC_CONTEXT,
        Evidence.NVEXT,
        Evidence.PROGRAM_ID,
        Evidence.NATIVE,
        Evidence.SESSION_ID,
        Evidence.CACHE_KEY,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the client said about its program besides its name. None: it said nothing.

    With `is_last` the program is over, with `is_last_word` this conversation of it alone.
    `deadline_s` is seconds from now; `priority` is in the client's own terms except that smaller is
    sooner; `tool_ms` are (tool, milliseconds) of the tools run since the last answer.
    """

    is_last: bool = False
    is_last_word: bool = False
    deadline_s: float | None = None
    priority: int | None = None
    output_tokens: int | None = None
    step: int | None = None
    tool_ms: tuple[tuple[str, float], ...] = ()


NOTHING_DECLARED = Declared()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose request this is.

    `program` and `conversation` are unique over all tenants. `step` counts the program's working
    steps from 1; a retry has its step's number. `answers` are the tool calls whose results this
    request brings. `prefixes` name ever longer beginnings of the prompt, tools and system prompt
    first, the whole prompt last. `prompt_tokens` is an estimate; `is_told` means that all that it
    counts stands in the request as text, so that engines' counts can correct it. `turn` is the
    index's own handle for `answered`/`abandoned`, `retries` that of the turn which a retry
    replaces. `goes_on`: the request itself shows that its program was begun before it.
    """

    program: ProgramId
    conversation: ConversationId
    tenant: TenantId
    step_class: StepClass
    lineage: Lineage
    evidence: Evidence
    source: str = ""
    parent: ProgramId | None = None
    parent_conversation: ConversationId | None = None
    agent: str = ""
    step: int = 1
    is_retry: bool = False
    answers: tuple[CallId, ...] = ()
    prefixes: tuple[Prefix, ...] = ()
    prompt_tokens: int = 0
    is_told: bool = True
    declared: Declared = field(default=NOTHING_DECLARED)
    turn: int = 0
    retries: int = 0
    goes_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityLimits:
    """Ceilings of the index. Each has an answer when it is reached: see the comment beside it."""

    programs_max: int = 20_000  # the idlest program is forgotten
    program_idle_ns_max: Nanos = Nanos(60 * MINUTE)  # then `expire` forgets it
    conversations_per_program_max: int = 64  # the idlest conversation is forgotten
    turns_per_program_max: int = 1_024  # the oldest turn is forgotten
    turns_max: int = 1_000_000  # over all programs; the idlest program is forgotten
    messages_max: int = 400_000  # remembered messages, long ones for more; the least used go
    needles_per_tenant_max: int = 256  # texts that a new prompt may contain; the oldest goes
    candidates_max: int = 64  # turns with equal prompts that are told apart; the oldest goes
    id_characters_max: int = 128  # longer ids are replaced by their hash
    calls_per_turn_max: int = 256  # further calls of one answer are not indexed
    head_retry_ns_max: Nanos = Nanos(5 * MINUTE)  # a first prompt sent again later is a new program
    retry_ns_max: Nanos = Nanos(60 * MINUTE)  # likewise for later prompts
    needle_ns_max: Nanos = Nanos(30 * MINUTE)  # a sub-agent starts within this time of its call

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ConfigError(f"identity limit {name} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityStatistics:
    """Counts since the start, and what is held now."""

    programs: int
    conversations: int
    turns: int
    messages: int
    identified: int
    by_evidence: dict[str, int]
    retries: int
    repeated_call_ids: int
    forgotten: int
