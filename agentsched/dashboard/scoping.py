"""What of a frame is a tenant's own business: the rest does not exist for it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agentsched.dashboard.shapes import Decision, EngineRow, Frame, Overview, Sample


def own_part(frame: Frame, tenant: str, *, owners: Mapping[str, str]) -> Frame:
    """The frame as one tenant may see it; `owners` says whose programs are, also those gone."""
    return msgspec.structs.replace(
        frame,
        overview=_overview(frame, tenant),
        engines=tuple(_engine(row) for row in frame.engines),
        tenants=tuple(
            msgspec.structs.replace(row, entitled=None)
            for row in frame.tenants
            if row.tenant == tenant
        ),
        programs=tuple(row for row in frame.programs if row.tenant == tenant),
        gone=tuple(key for key in frame.gone if owners.get(key) == tenant),
        programs_total=sum(row.programs for row in frame.tenants if row.tenant == tenant),
        decisions=tuple(d for d in frame.decisions if _is_own(d, tenant, owners)),
        decisions_left_out=0,
        history=tuple(_sample(sample, tenant) for sample in frame.history),
    )


def _is_own(decision: Decision, tenant: str, owners: Mapping[str, str]) -> bool:
    if decision.tenant:
        return decision.tenant == tenant
    return bool(decision.program) and owners.get(decision.program) == tenant


def _overview(frame: Frame, tenant: str) -> Overview:
    """Its own numbers; what others do to the queues is not told."""
    own = next((row for row in frame.tenants if row.tenant == tenant), None)
    return msgspec.structs.replace(
        frame.overview,
        waiting_steps=own.waiting_steps if own else 0,
        running_steps=own.running_steps if own else 0,
        pins=sum(row.pins for row in frame.programs if row.tenant == tenant),
        oldest_wait_s=None,
        wait_p50_s=None,
        wait_p95_s=None,
        wait_max_s=None,
        sensible_wait_s=None,
        is_bound_too_tight=False,
        steps_total=own.steps if own else 0,
        rejected_total=0,
        retried_total=0,
        yielded_total=0,
        policy_errors_total=0,
        prompt_tokens_total=own.prompt_tokens if own else 0,
        cached_tokens_total=own.prompt_tokens - own.uncached_tokens if own else 0,
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
        running_steps=0,
        running_max=None,
        waiting=None,
        kv_usage=None,
        kv_tokens=None,
        held_tokens=0,
        pinned_tokens=0,
        pins=0,
        wanted_tokens=0,
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
        waiting_steps=0,
        running_steps=0,
        pins=0,
        wait_p95_s=None,
        engines=(),
        tenants=tuple(t for t in sample.tenants if t.tenant == tenant),
    )
