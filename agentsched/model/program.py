"""What programs and engines are made of: small frozen values that events carry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentsched.model.ids import CallId, ConversationId, PrefixId, ToolName


class StepState(StrEnum):
    """Where a step is in its life; `kernel.transitions` says how it moves."""

    WAITING = "waiting"  # arrived, held by us
    DISPATCHED = "dispatched"  # sent to an engine, no token yet
    RUNNING = "running"  # its first token was seen
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({StepState.FINISHED, StepState.FAILED, StepState.CANCELLED, StepState.REJECTED})


class StepClass(StrEnum):
    """What a request is for. Only STEP and SUBAGENT count as steps and are worth retaining."""

    STEP = "step"
    SUBAGENT = "subagent"
    AUXILIARY = "auxiliary"  # titles, names, summaries beside the work
    COMPACTION = "compaction"
    PROBE = "probe"
    TOKEN_COUNT = "token_count"
    BATCH = "batch"  # background work that yields to everything else

    @property
    def is_work(self) -> bool:
        return self in (StepClass.STEP, StepClass.SUBAGENT)


class Lineage(StrEnum):
    """How a step's prompt relates to what its program sent before."""

    NEW = "new"
    EXTENDS = "extends"
    FORKS = "forks"  # shares an old prefix, the branch it left may still be alive
    COMPACTS = "compacts"  # the prefix was rewritten; the old lineage is over
    SPAWNED = "spawned"  # a sub-agent's first step


class HintOutcome(StrEnum):
    """An engine's answer to a hint. Hints are advisory: correctness never depends on one."""

    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    REFUSED = "refused"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one step. `cached_tokens` is None where the engine does not say."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call that the model asked for."""

    call_id: CallId
    tool: ToolName


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The first `tokens` tokens of a prompt, named by a hash of the messages that make them."""

    prefix: PrefixId
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do; probed, never assumed. Unknown numbers are None."""

    prefix_cache: bool = False
    priority: bool = False  # honours a per-request priority, lower first
    session_id: bool = False  # takes a `session_id` body field
    cache_salt: bool = False  # takes a `cache_salt` body field
    cached_tokens: bool = False  # reports cached prompt tokens in its usage
    pins: bool = False  # our plugin, or another sink that retains for real
    tier: bool = False  # memory below its cache has given back what the cache dropped
    warm: bool = True  # a one-token request makes a prefix recent
    block_size: int | None = None  # tokens per KV block
    kv_tokens: int | None = None  # tokens that its KV pool holds
    running_max: int | None = None  # requests it batches at once
    context_max: int | None = None  # tokens of prompt and answer together
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """One reading of an engine's own gauges; None where it has no such gauge."""

    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None  # 0..1; blocks that are cached but free do not count
    preemptions: int | None = None
    #: Prompt and output tokens since its start: grows while it works.
    computed_tokens: int | None = None
    #: Conversations of whose latest step it has nothing in its cache any more, as of this reading.
    gone: tuple[ConversationId, ...] = ()
