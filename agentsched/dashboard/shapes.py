"""What the dashboard's feed says, as JSON. Instants are seconds on the proxy's own clock.

A frame says `now` on the same clock, so ages follow by subtraction and a program at rest need not
be sent again for having grown older.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentsched.kernel.doing import ProgramState

#: A sample has at most so many tenants, the busiest.
SAMPLE_TENANTS_MAX: Final = 12


class ProgramRow(msgspec.Struct, frozen=True, kw_only=True):
    """One live program. `since` is when its state began; `tool` what it waits for, or ""."""

    program: str
    tenant: str
    agent: str
    parent: str | None
    state: ProgramState
    since: float
    opened: float
    last: float
    tool: str
    held_for: str
    engine: str
    steps: int
    live: int
    conversations: int
    pins: int
    context_tokens: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    #: Of `prompt_tokens` those of which no engine said how much was cached; none is in the cached.
    untold_tokens: int = 0


class EngineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One engine. Tokens: what lies in its cache, is pinned there, and is wanted there.

    To who may not see all tenants `url` is "", and None stands for what tells of others.
    """

    engine: str
    url: str
    is_up: bool
    is_draining: bool
    last_error: str
    running_steps: int | None
    running_max: int | None
    waiting: int | None
    kv_usage: float | None
    kv_tokens: int | None
    held_tokens: int | None
    pinned_tokens: int | None
    pins: int | None
    wanted_tokens: int | None
    is_contended: bool
    preemptions: int | None
    can_pin: bool
    can_order: bool
    has_prefix_cache: bool
    prefill_us: float
    decode_ms: float
    samples: int
    models: tuple[str, ...]
    #: Since when it answers nothing, with steps of ours inside; None while it is well.
    silent_since: float | None = None


class TenantRow(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's account; `entitled` is its part by weight among tenants that have work now.

    `charged_tokens` counts what other replicas served as well; steps and other tokens are of here.
    """

    tenant: str
    weight: float
    entitled: float | None
    charged_tokens: float
    served_tokens: int
    prompt_tokens: int
    uncached_tokens: int
    output_tokens: int
    idle_kv_tokens: int
    steps: int
    programs: int
    waiting_steps: int
    running_steps: int


class GoneReplica(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that was heard and is not any more, since an instant."""

    replica: str
    since: float


class Replicas(msgspec.Struct, frozen=True, kw_only=True):
    """This replica and those that it hears over the bus; without a broker it decides alone."""

    replica: str
    is_connected: bool
    others: tuple[str, ...]
    gone: tuple[GoneReplica, ...]


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy at one glance. Waits are of steps dispatched lately, in seconds.

    `replicas` is None without a bus, and for who may not see all tenants: they get their own
    numbers, and None where there is none of their own.
    """

    version: str
    profile: str
    policies: dict[str, str]
    is_draining: bool
    waiting_steps: int
    running_steps: int
    pins: int
    oldest_wait_s: float | None
    wait_p50_s: float | None
    wait_p95_s: float | None
    wait_max_s: float | None
    max_wait_s: float
    sensible_wait_s: float | None
    is_bound_too_tight: bool
    steps_total: int
    rejected_total: int | None
    retried_total: int | None
    yielded_total: int | None
    policy_errors_total: int | None
    prompt_tokens_total: int
    cached_tokens_total: int
    #: Of the prompt tokens those of which no engine said it: what is cached of them is believed.
    untold_tokens_total: int = 0
    replicas: Replicas | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision, with the reason in the policies' words. `seq` is its turn in the journal."""

    seq: int
    at: float
    kind: str
    program: str = ""
    tenant: str = ""
    engine: str = ""
    step: str = ""
    reason: str = ""
    wait_s: float | None = None


class TenantSample(msgspec.Struct, frozen=True, array_like=True):
    """What a tenant had been charged by then, in tokens of computed prompt, and its entitlement."""

    tenant: str
    charged_tokens: float
    entitled: float | None


class EngineSample(msgspec.Struct, frozen=True, array_like=True):
    """Parts of an engine's cache: used by what runs, pinned, and wanted (may exceed 1)."""

    engine: str
    running_steps: int
    kv_usage: float | None
    pinned: float | None
    wanted: float | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of the history; numbers of all tenants are None for who may not see all."""

    at: float
    waiting_steps: int | None
    running_steps: int | None
    pins: int | None
    wait_p95_s: float | None
    engines: tuple[EngineSample, ...]
    tenants: tuple[TenantSample, ...]


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What changed since the frame before; everything, where `is_full`.

    `programs` are new or changed; of `programs_total` live ones a full frame has at most as many
    as are shown, the latest; of `tenants_total` every frame has the busiest. `decisions_left_out`
    happened as well and are not told.
    """

    now: float
    is_full: bool
    overview: Overview
    engines: tuple[EngineRow, ...]
    tenants: tuple[TenantRow, ...]
    programs: tuple[ProgramRow, ...]
    gone: tuple[str, ...]
    programs_total: int
    decisions: tuple[Decision, ...]
    decisions_left_out: int
    history: tuple[Sample, ...]
    tenants_total: int = 0
