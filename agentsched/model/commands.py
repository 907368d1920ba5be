"""Everything that the scheduler may ask of its host. A host performs each to the end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentsched.model.ids import ConversationId, EngineId, PinId, ProgramId, StepId
from agentsched.model.program import Prefix
from agentsched.model.time import Instant, Nanos


class RejectReason(StrEnum):
    """Why a step was turned away. The host maps it to a status and a text."""

    QUEUE_FULL = "queue_full"  # 429
    PROGRAMS_FULL = "programs_full"  # 429
    TENANT_QUEUE = "tenant_queue"  # 429: as many steps of this tenant wait as may
    TENANT_PROGRAMS = "tenant_programs"  # 429: it has as many programs as it may
    WAIT_BOUND = "wait_bound"  # 429: could not be served within the promised wait
    NO_ENGINE = "no_engine"  # 503
    UNKNOWN_MODEL = "unknown_model"  # 404: no engine serves this model
    REFUSED = "refused"  # 429: the admission policy says no
    ENGINE_FAILED = "engine_failed"  # 502: it was tried as often as it may be


class CancelReason(StrEnum):
    """Why a running step must stop."""

    PROGRAM_CLOSED = "program_closed"
    YIELDED = "yielded"  # background work gave way to other work; it waits again


class UnpinReason(StrEnum):
    """Why a retention ended. Exactly one ends each pin."""

    RESUMED = "resumed"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CLOSED = "closed"
    BUDGET = "budget"
    ENGINE_LOST = "engine_lost"
    REFUSED = "refused"
    RELEASED = "released"
    YIELDED = "yielded"  # a warm-up gave way to real work


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Send this step to this engine now.

    `priority` is for engines with a priority queue (lower first, 0 = leave their order alone).
    `order`, `place` and `pin` are short words that explain the decision to people;
    `bypassed` counts later steps that went before this one while it was held.
    """

    step: StepId
    engine: EngineId
    priority: int = 0
    order: str = ""
    place: str = ""
    pin: str = ""
    bypassed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Turn this step away. `retry_after` is when it would be worth trying again."""

    step: StepId
    reason: RejectReason
    retry_after: Nanos | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Abort this step upstream; its client gets an error where it still listens.

    With reason YIELDED it is to be sent again later: the host answers with a `StepFailed` that is
    retryable, unless the answer has begun to reach the client by then; in that case it goes on.
    """

    step: StepId
    reason: CancelReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Retain this conversation's KV until `expires_at`; `value` ranks pins (greater is dearer)."""

    pin: PinId
    program: ProgramId
    conversation: ConversationId
    engine: EngineId
    prefix: Prefix
    expires_at: Instant
    value: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpin:
    """End a retention."""

    pin: PinId
    engine: EngineId
    reason: UnpinReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Warm this prefix on this engine, so that it is ready at `wanted_by`.

    Ends with `HintAnswered`, or before that with an `Unpin` of the same id: then it must stop.
    """

    pin: PinId
    program: ProgramId
    conversation: ConversationId
    engine: EngineId
    prefix: Prefix
    wanted_by: Instant


Command = Dispatch | Reject | Cancel | Pin | Unpin | Prefetch
