"""What of a frame is a tenant's own business: the rest does not exist for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from agentsched.dashboard.rows import oldest_wait_s, tenant_row
from agentsched.dashboard.shapes import Decision, EngineRow, Frame, Overview, Sample, TenantRow
from agentsched.kernel import Scheduler
from agentsched.kernel.holdings import pins_on
from agentsched.model import Instant, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A tenant's own numbers, out of the books: a frame has changes only, and the busiest only."""

    tenant: str
    row: TenantRow | None
    cached_tokens: int
    untold_tokens: int
    pins: int
    oldest_wait_s: float | None

    @classmethod
    def of(cls, scheduler: Scheduler, tenant: str, *, now: Instant) -> Own:
        """What a tenant has now; one that nobody heard of has nothing."""
        account = scheduler.tenants.get(TenantId(tenant))
        row = None if account is None else tenant_row(account, entitled=None, now=now)
        programs = scheduler.programs
        pins = [
            programs.get(pin.program)
            for key in scheduler.engines
            for pin in pins_on(scheduler, key)
        ]
        return cls(
            tenant=tenant,
            row=row,
            cached_tokens=0 if account is None else account.cached_here,
            untold_tokens=0 if account is None else account.untold_tokens,
            pins=sum(owner is not None and owner.tenant == tenant for owner in pins),
            oldest_wait_s=oldest_wait_s(
                (step for step in scheduler.steps.values() if step.tenant == tenant), now=now
            ),
        )


def own_part(frame: Frame, own: Own, *, owners: Mapping[str, str]) -> Frame:
    """The frame as one tenant may see it; `owners` says whose programs are, also those gone."""
    tenant = own.tenant
    return msgspec.structs.replace(
        frame,
        overview=_overview(frame, own),
        engines=tuple(_engine(row) for row in frame.engines),
        tenants=() if own.row is None else (own.row,),
        tenants_total=0 if own.row is None else 1,
        programs=tuple(row for row in frame.programs if row.tenant == tenant),
        gone=tuple(key for key in frame.gone if owners.get(key) == tenant),
        programs_total=0 if own.row is None else own.row.programs,
        decisions=tuple(d for d in frame.decisions if _is_own(d, tenant, owners)),
        decisions_left_out=0,
        history=tuple(_sample(sample, tenant) for sample in frame.history),
    )


def _is_own(decision: Decision, tenant: str, owners: Mapping[str, str]) -> bool:
    if decision.tenant:
        return decision.tenant == tenant
    return bool(decision.program) and owners.get(decision.program) == tenant


def _overview(frame: Frame, own: Own) -> Overview:
    """Its own numbers; what others do to the queues is not told."""
    row = own.row
    return msgspec.structs.replace(
        frame.overview,
        waiting_steps=row.waiting_steps if row else 0,
        running_steps=row.running_steps if row else 0,
        pins=own.pins,
        oldest_wait_s=own.oldest_wait_s,
        wait_p50_s=None,
        wait_p95_s=None,
        wait_max_s=None,
        sensible_wait_s=None,
        is_bound_too_tight=False,
        steps_total=row.steps if row else 0,
        rejected_total=None,
        retried_total=None,
        yielded_total=None,
        policy_errors_total=None,
        prompt_tokens_total=row.prompt_tokens if row else 0,
        cached_tokens_total=own.cached_tokens,
        untold_tokens_total=own.untold_tokens,
        replicas=None,
    )


def _engine(row: EngineRow) -> EngineRow:
    """Neither where it is nor how busy with others."""
    return EngineRow(
        engine=row.engine,
        url="",
        is_up=row.is_up,
        is_draining=row.is_draining,
        last_error="",
        running_steps=None,
        running_max=None,
        waiting=None,
        kv_usage=None,
        kv_tokens=None,
        held_tokens=None,
        pinned_tokens=None,
        pins=None,
        wanted_tokens=None,
        is_contended=False,
        preemptions=None,
        can_pin=row.can_pin,
        can_order=row.can_order,
        has_prefix_cache=row.has_prefix_cache,
        prefill_us=0.0,
        decode_ms=0.0,
        samples=0,
        models=row.models,
        silent_since=row.silent_since,
    )


def _sample(sample: Sample, tenant: str) -> Sample:
    return msgspec.structs.replace(
        sample,
        waiting_steps=None,
        running_steps=None,
        pins=None,
        wait_p95_s=None,
        engines=(),
        tenants=tuple(t for t in sample.tenants if t.tenant == tenant),
    )
