"""The forms of the control plane's answers: types, so that its description tells all that may come.

Seconds are `..._s`. What is only an operator's to see is left out for everybody else.
"""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field

from agentsched.kernel import SchedulerStatistics
from agentsched.kernel.doing import ProgramState
from agentsched.model import (
    CallId,
    Capabilities,
    EngineLoad,
    Limits,
    Lineage,
    RejectReason,
    StepClass,
    StepState,
    ToolName,
)
from agentsched.proxy.identity import Evidence, IdentityStatistics


class _Program(Struct, frozen=True, kw_only=True):
    program: str
    tenant: str
    parent: str | None
    agent: str
    state: ProgramState
    held_for: str
    opened_s: float
    idle_s: float
    steps_done: int
    active_steps: int
    prompt_tokens: int
    cached_tokens: int
    untold_tokens: int
    output_tokens: int
    served_tokens: int


class ListedProgram(_Program, frozen=True, kw_only=True):
    """One line of the list of programs. Times are seconds ago; `held_for` is why it waits."""

    conversations: int


class ProgramList(Struct, frozen=True, kw_only=True):
    """A page of live programs, the latest first; `total` counts all that were asked for."""

    programs: tuple[ListedProgram, ...]
    total: int
    offset: int


class HeldPin(Struct, frozen=True, kw_only=True):
    """What retains a conversation's KV; pins of greater value are dearer."""

    engine: str
    expires_in_s: float
    tokens: int
    value: float


class ShownConversation(Struct, frozen=True, kw_only=True):
    """One KV lineage of a program; `waits_for` are tools by their calls' ids."""

    conversation: str
    parent: str | None
    engine: str | None
    is_resident: bool
    context_tokens: int
    growth_tokens: float
    steps_done: int
    active_steps: int
    paused_s: float | None
    waits_for: dict[CallId, ToolName]
    pin: HeldPin | None


class LiveStep(Struct, frozen=True, kw_only=True):
    """One step that waits or runs; `bypassed` counts later ones that went before it."""

    step: str
    program: str
    conversation: str
    state: StepState
    step_class: StepClass = field(name="class")
    engine: str | None
    prompt_tokens: int
    age_s: float
    held_for: str
    bypassed: int
    attempts: int


class Returns(Struct, frozen=True, kw_only=True):
    """When a paused conversation comes back, in seconds from now."""

    has_skill: bool
    p50_s: float | None
    p90_s: float | None


class ConversationForecast(Struct, frozen=True, kw_only=True):
    """What is expected of a conversation; `returns` is null while it does not pause."""

    next_tools: dict[str, float]
    returns: Returns | None


class Forecast(Struct, frozen=True, kw_only=True):
    """What is expected of a program."""

    steps_left: float | None
    critical_path_left: float | None
    fan_out: int
    is_waiting_for_children: bool
    conversations: dict[str, ConversationForecast]


class ShownProgram(_Program, frozen=True, kw_only=True):
    """One live program; without `forecast` where no graph of it is built."""

    conversations: tuple[ShownConversation, ...]
    live_steps: tuple[LiveStep, ...]
    forecast: Forecast | None


class EngineHealth(Struct, frozen=True, kw_only=True):
    """Whether an engine gets no work for its failures, and when it is tried again."""

    is_ejected: bool
    failures_in_a_row: int
    ejections: int
    returns_in_s: float | UnsetType | None = UNSET


class LearntCost(Struct, frozen=True, kw_only=True):
    """What an engine's work takes, as learnt from traffic; confidences from 0 to 1."""

    samples: int
    prefill_us_per_token: float
    reload_us_per_token: float
    decode_ms_per_token: float
    first_token_s_of_8k: float
    prefill_confidence: float
    decode_confidence: float
    law: dict[str, float]


class ShownEngine(Struct, frozen=True, kw_only=True):
    """One engine. A tenant is told the first three; one that never reported has no more than six.

    `last_error` is "" where the latest look went well.
    """

    engine: str
    is_up: bool
    is_draining: bool
    url: str | UnsetType = UNSET
    last_error: str | UnsetType = UNSET
    health: EngineHealth | UnsetType = UNSET
    capabilities: Capabilities | UnsetType = UNSET
    load: EngineLoad | UnsetType = UNSET
    silent_for_s: float | UnsetType | None = UNSET
    running_steps: int | UnsetType = UNSET
    running_tokens: int | UnsetType = UNSET
    pinned_tokens: int | UnsetType = UNSET
    wanted_tokens: int | UnsetType = UNSET
    is_contended: bool | UnsetType = UNSET
    cost: LearntCost | UnsetType = UNSET


class EngineList(Struct, frozen=True, kw_only=True):
    """All engines."""

    engines: tuple[ShownEngine, ...]


class WaitBound(Struct, frozen=True, kw_only=True):
    """The operator's wait bound, and the least one that the present load allows."""

    max_wait_s: float
    sensible_s: float | None
    is_too_tight: bool


class Statistics(Struct, frozen=True, kw_only=True):
    """Rules in force; and, for operators, counts since the start and what the load allows."""

    profile: str
    policies: dict[str, str]
    limits: Limits
    scheduler: SchedulerStatistics | UnsetType = UNSET
    identity: IdentityStatistics | UnsetType = UNSET
    clients: dict[str, int] | UnsetType = UNSET
    wait_bound: WaitBound | UnsetType = UNSET


class PlannedEngine(Struct, frozen=True, kw_only=True):
    """What an engine would have to do for the step."""

    engine: str
    is_up: bool
    is_silent: bool
    running_steps: int
    missing_tokens: int
    prefill_s: float


class _Planned(Struct, frozen=True, kw_only=True):
    program: str
    conversation: str
    tenant: str
    step_class: StepClass = field(name="class")
    lineage: Lineage
    evidence: Evidence
    prompt_tokens: int
    engines: tuple[PlannedEngine, ...] | UnsetType = UNSET
    releases: tuple[str, ...] | UnsetType = UNSET


class PlanDispatch(_Planned, frozen=True, kw_only=True, tag_field="verdict", tag="dispatch"):
    """It would be sent now. Operators also see all engines, and pins that would give way."""

    engine: str
    order: str
    place: str
    pin: str
    priority: int


class PlanHold(_Planned, frozen=True, kw_only=True, tag_field="verdict", tag="hold"):
    """It would wait behind `ahead` others, until the wait bound brings its turn."""

    reason: str
    ahead: int
    due_in_s: float | None


class PlanReject(_Planned, frozen=True, kw_only=True, tag_field="verdict", tag="reject"):
    """It would be turned away."""

    reason: RejectReason
    detail: str
    retry_after_s: float | None


Plan = PlanDispatch | PlanHold | PlanReject
