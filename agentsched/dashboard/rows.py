"""Rows of the dashboard, made from the scheduler's records. Pure; nothing is remembered here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from agentsched.dashboard.shapes import EngineRow, ProgramRow, TenantRow
from agentsched.kernel import Scheduler
from agentsched.kernel.doing import doing
from agentsched.kernel.holdings import pin_of, pins_on
from agentsched.kernel.records import EngineRecord, ProgramRecord, StepRecord
from agentsched.kernel.shares import TenantAccount
from agentsched.model import EngineId, Instant, StepState, between, in_seconds


class MemberView(Protocol):
    """An engine as the fleet knows it, whether or not it ever reported."""

    @property
    def id(self) -> EngineId: ...
    @property
    def url(self) -> str: ...
    @property
    def last_error(self) -> str | None: ...


def seconds_of(at: Instant) -> float:
    """An instant in seconds of the proxy's clock."""
    return round(at / 1e9, 3)


def program_row(
    scheduler: Scheduler, record: ProgramRecord, steps: Iterable[StepRecord]
) -> ProgramRow:
    """One program; `steps` are its live ones."""
    conversations = list(record.conversations.values())
    pinned = [c for c in conversations if pin_of(scheduler, c.conversation) is not None]
    does = doing(record, steps, is_pinned=bool(pinned))
    # Of several conversations, the one that was active last tells where the program is.
    latest = max(conversations, key=lambda c: (c.last_at, c.conversation), default=None)
    tools = dict.fromkeys(tool for c in conversations for tool in c.tools.values())
    return ProgramRow(
        program=record.program,
        tenant=record.tenant,
        agent=record.agent,
        parent=record.parent,
        state=does.state,
        since=seconds_of(does.since),
        opened=seconds_of(record.opened_at),
        last=seconds_of(record.last_at),
        tool=", ".join(list(tools)[:3]),
        held_for=does.held_for,
        engine=(latest.engine or "") if latest is not None else "",
        steps=record.steps_done,
        live=record.active_steps,
        conversations=len(conversations),
        pins=len(pinned),
        context_tokens=sum(c.context_tokens for c in conversations if c.may_go_on or c.tools),
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        untold_tokens=record.untold_tokens,
        output_tokens=record.output_tokens,
    )


def engine_row(
    scheduler: Scheduler, member: MemberView, record: EngineRecord | None, *, held_tokens: int
) -> EngineRow:
    """One engine; one that never reported has no record."""
    known = record if record is not None else EngineRecord(engine=member.id)
    able, load = known.capabilities, known.load
    return EngineRow(
        engine=member.id,
        url=member.url,
        is_up=known.is_up,
        is_draining=known.is_draining,
        last_error=member.last_error or known.lost_reason,
        running_steps=known.running_steps,
        running_max=able.running_max,
        waiting=load.waiting,
        kv_usage=load.kv_usage,
        kv_tokens=able.kv_tokens,
        held_tokens=held_tokens,
        pinned_tokens=known.pinned_tokens,
        pins=len(pins_on(scheduler, member.id)),
        wanted_tokens=known.wanted_tokens,
        is_contended=record is not None and known.is_contended,
        preemptions=load.preemptions,
        can_pin=able.pins,
        can_order=able.priority,
        has_prefix_cache=able.prefix_cache,
        prefill_us=round(known.cost.prefill_ns_per_token / 1e3, 2),
        decode_ms=round(known.cost.decode_ns_per_token / 1e6, 3),
        samples=known.cost.law.samples,
        models=able.models,
        silent_since=None if known.silent_since is None else seconds_of(known.silent_since),
    )


def tenant_rows(scheduler: Scheduler, *, now: Instant, rows_max: int) -> tuple[TenantRow, ...]:
    """Tenants, the busiest first; those that have work share the engines by their weights."""
    accounts = list(scheduler.tenants.values())
    weights = sum(a.weight for a in accounts if a.waiting_steps or a.running_steps)
    accounts.sort(key=lambda a: (-a.running_steps - a.waiting_steps, -a.served_tokens, a.tenant))
    rows = []
    for account in accounts[:rows_max]:
        has_work = bool(account.waiting_steps or account.running_steps)
        entitled = round(account.weight / weights, 4) if has_work else None
        rows.append(tenant_row(account, entitled=entitled, now=now))
    return tuple(rows)


def tenant_row(account: TenantAccount, *, entitled: float | None, now: Instant) -> TenantRow:
    """One tenant's account."""
    return TenantRow(
        tenant=account.tenant,
        weight=account.weight,
        entitled=entitled,
        charged_tokens=round(account.charged(now=now), 1),
        served_tokens=account.uncached_here + account.output_here,
        prompt_tokens=account.prompt_tokens,
        uncached_tokens=account.uncached_here,
        output_tokens=account.output_here,
        idle_kv_tokens=account.idle_tokens,
        steps=account.steps,
        programs=len(account.live),
        waiting_steps=account.waiting_steps,
        running_steps=account.running_steps,
    )


def oldest_wait_s(steps: Iterable[StepRecord], *, now: Instant) -> float | None:
    """For how long the one that came first among those that wait has waited; None: none waits."""
    oldest = min((s.arrived_at for s in steps if s.state is StepState.WAITING), default=None)
    return None if oldest is None else round(in_seconds(between(oldest, now)), 3)
