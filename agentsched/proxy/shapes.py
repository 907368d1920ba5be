"""What the control plane shows: its answers made from the scheduler's records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from agentsched.kernel import JournalEntry, Scheduler, encode
from agentsched.kernel.costs import EngineCost
from agentsched.kernel.doing import Doing, doing
from agentsched.kernel.holdings import pin_of
from agentsched.kernel.records import ConversationRecord, EngineRecord, ProgramRecord, StepRecord
from agentsched.kernel.shares import TenantAccount
from agentsched.model import Capabilities, Instant, Pin, between, in_seconds
from agentsched.proxy import forms
from agentsched.proxy.fleet import Member


def _since(at: Instant, now: Instant) -> float:
    return round(in_seconds(between(at, now)), 3)


def ago(at: Instant | None, now: Instant) -> float | None:
    return None if at is None else _since(at, now)


def doing_now(scheduler: Scheduler, record: ProgramRecord, steps: Iterable[StepRecord]) -> Doing:
    """What a program does; `steps` are its live ones."""
    pins = (pin_of(scheduler, key) for key in record.conversations)
    return doing(record, steps, is_pinned=any(pin is not None for pin in pins))


def program(record: ProgramRecord, does: Doing, *, now: Instant) -> forms.ListedProgram:
    """One line of the list of programs. Times are seconds ago."""
    fields = _program(record, does, now=now)
    return forms.ListedProgram(**fields, conversations=len(record.conversations))


def whole_program(
    scheduler: Scheduler,
    record: ProgramRecord,
    *,
    forecast: forms.Forecast | None,
    now: Instant,
) -> forms.ShownProgram:
    """One program with its conversations and live steps."""
    live = [one for one in scheduler.steps.values() if one.program == record.program]
    return forms.ShownProgram(
        **_program(record, doing_now(scheduler, record, live), now=now),
        conversations=tuple(
            conversation(c, pin_of(scheduler, c.conversation), now=now)
            for c in record.conversations.values()
        ),
        live_steps=tuple(step(one, now=now) for one in live),
        forecast=forecast,
    )


def _program(record: ProgramRecord, does: Doing, *, now: Instant) -> dict[str, Any]:
    return {
        "program": record.program,
        "tenant": record.tenant,
        "parent": record.parent,
        "agent": record.agent,
        "state": does.state,
        "held_for": does.held_for,
        "opened_s": _since(record.opened_at, now),
        "idle_s": 0.0 if record.active_steps else _since(record.last_at, now),
        "steps_done": record.steps_done,
        "active_steps": record.active_steps,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "untold_tokens": record.untold_tokens,
        "output_tokens": record.output_tokens,
        "served_tokens": record.served_tokens,
    }


def conversation(
    record: ConversationRecord, pin: Pin | None, *, now: Instant
) -> forms.ShownConversation:
    """One KV lineage of a program, with the pin that it holds."""
    return forms.ShownConversation(
        conversation=record.conversation,
        parent=record.parent,
        engine=record.engine,
        is_resident=record.is_resident,
        context_tokens=record.context_tokens,
        growth_tokens=round(record.growth_tokens, 1),
        steps_done=record.steps_done,
        active_steps=record.active_steps,
        paused_s=ago(record.paused_at, now),
        waits_for=dict(record.tools),
        pin=None if pin is None else _held(pin, now=now),
    )


def _held(pin: Pin, *, now: Instant) -> forms.HeldPin:
    return forms.HeldPin(
        engine=pin.engine,
        expires_in_s=max(0.0, _since(now, pin.expires_at)),
        tokens=pin.prefix.tokens,
        value=round(pin.value, 3),
    )


def step(record: StepRecord, *, now: Instant) -> forms.LiveStep:
    """One live step."""
    return forms.LiveStep(
        step=record.step,
        program=record.program,
        conversation=record.conversation,
        state=record.state,
        step_class=record.step_class,
        engine=record.engine,
        prompt_tokens=record.prompt_tokens,
        age_s=_since(record.arrived_at, now),
        held_for=record.held_for,
        bypassed=record.bypassed,
        attempts=record.attempts,
    )


def engine(
    member: Member, record: EngineRecord | None, *, now: Instant, health: forms.EngineHealth
) -> forms.ShownEngine:
    """One engine: what it can do, what runs there, and why it is not up where it is not."""
    shown = msgspec.structs.replace(
        engine_outline(member, record),
        url=member.url,
        last_error=member.last_error,
        health=health,
    )
    # A record alone says nothing: others may have spoken of it, or it was drained before it came.
    if record is None or not (record.is_alive or record.capabilities != Capabilities()):
        return shown
    return msgspec.structs.replace(
        shown,
        capabilities=record.capabilities,
        load=record.load,
        silent_for_s=ago(record.silent_since, now),
        running_steps=record.running_steps,
        running_tokens=record.running_tokens,
        pinned_tokens=record.pinned_tokens,
        wanted_tokens=record.wanted_tokens,
        is_contended=record.is_contended,
        cost=cost(record.cost),
    )


def engine_outline(member: Member, record: EngineRecord | None) -> forms.ShownEngine:
    """Of an engine, what a tenant may know: neither where it is nor how busy with others."""
    return forms.ShownEngine(
        engine=member.id,
        is_up=record is not None and record.is_up,
        is_draining=record is not None and record.is_draining,
    )


def cost(learnt: EngineCost) -> forms.LearntCost:
    """What an engine's work takes, as learnt from ordinary traffic; confidences from 0 to 1."""
    law = learnt.law
    return forms.LearntCost(
        samples=law.samples,
        prefill_us_per_token=round(learnt.prefill_ns_per_token / 1e3, 2),
        reload_us_per_token=round(learnt.reload_ns_per_token / 1e3, 2),
        decode_ms_per_token=round(learnt.decode_ns_per_token / 1e6, 3),
        first_token_s_of_8k=round(law.first_token_s(uncached_tokens=8_192, prompt_tokens=8_192), 4),
        prefill_confidence=round(law.prefill_confidence, 2),
        decode_confidence=round(law.decode_confidence, 2),
        law={name: round(value, 6) for name, value in law.coefficients().items()},
    )


def wait_bound(scheduler: Scheduler) -> forms.WaitBound:
    """The operator's wait bound, and the least one that the present load allows, in seconds."""
    bound, sensible = scheduler.limits.wait_ns_max, scheduler.sensible_wait()
    return forms.WaitBound(
        max_wait_s=in_seconds(bound),
        sensible_s=None if sensible is None else round(in_seconds(sensible), 1),
        is_too_tight=sensible is not None and bound < sensible,
    )


def tenant(account: TenantAccount, *, now: Instant) -> dict[str, Any]:
    """One tenant's account. `charged_tokens` and `service` as in docs/fairness.md.

    These count what other replicas served as well; steps and tokens are those served here.
    """
    return {
        "tenant": account.tenant,
        "charged_tokens": round(account.charged(now=now), 1),
        "service": round(account.service(now=now), 1),
        "idle_kv_tokens": account.idle_tokens,
        "live_programs": len(account.live),
        "waiting_steps": account.waiting_steps,
        "running_steps": account.running_steps,
        "limits": msgspec.to_builtins(account.limits),
        "weight": account.weight,
        "steps": account.steps,
        "prompt_tokens": account.prompt_tokens,
        "output_tokens": account.output_here,
        "served_tokens": account.uncached_here + account.output_here,
    }


def entry(shown: JournalEntry) -> dict[str, Any]:
    """One turn of the scheduler, as the journal has it."""
    decoded: dict[str, Any] = msgspec.json.decode(encode(shown))
    return decoded
