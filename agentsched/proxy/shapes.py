"""What the control plane shows: plain JSON values made from the scheduler's records."""

from __future__ import annotations

from typing import Any

import msgspec

from agentsched.kernel import JournalEntry, Scheduler, encode
from agentsched.kernel.costs import EngineCost
from agentsched.kernel.records import ConversationRecord, EngineRecord, ProgramRecord, StepRecord
from agentsched.kernel.shares import TenantAccount
from agentsched.model import Capabilities, Instant, between, in_seconds
from agentsched.proxy.fleet import Member


def _ago(at: Instant | None, now: Instant) -> float | None:
    return None if at is None else round(in_seconds(between(at, now)), 3)


def program(record: ProgramRecord, *, now: Instant) -> dict[str, Any]:
    """One line of the list of programs. Times are seconds ago."""
    return {
        "program": record.program,
        "tenant": record.tenant,
        "parent": record.parent,
        "agent": record.agent,
        "opened_s": _ago(record.opened_at, now),
        "idle_s": 0.0 if record.active_steps else _ago(record.last_at, now),
        "steps_done": record.steps_done,
        "active_steps": record.active_steps,
        "conversations": len(record.conversations),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
        "served_tokens": record.served_tokens,
    }


def conversation(record: ConversationRecord, *, now: Instant) -> dict[str, Any]:
    """One KV lineage of a program."""
    return {
        "conversation": record.conversation,
        "parent": record.parent,
        "engine": record.engine,
        "is_resident": record.is_resident,
        "context_tokens": record.context_tokens,
        "growth_tokens": round(record.growth_tokens, 1),
        "steps_done": record.steps_done,
        "active_steps": record.active_steps,
        "paused_s": _ago(record.paused_at, now),
        "waits_for": dict(record.tools),
    }


def step(record: StepRecord, *, now: Instant) -> dict[str, Any]:
    """One live step."""
    return {
        "step": record.step,
        "program": record.program,
        "conversation": record.conversation,
        "state": record.state.value,
        "class": record.step_class.value,
        "engine": record.engine,
        "prompt_tokens": record.prompt_tokens,
        "age_s": _ago(record.arrived_at, now),
        "held_for": record.held_for,
        "bypassed": record.bypassed,
        "attempts": record.attempts,
    }


def engine(
    member: Member,
    record: EngineRecord | None,
    *,
    now: Instant,
    health: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One engine: what it can do, what runs there, and why it is not up where it is not."""
    shown: dict[str, Any] = {
        "engine": member.id,
        "url": member.url,
        "is_up": record is not None and record.is_up,
        "is_draining": record is not None and record.is_draining,
        "last_error": member.last_error,
        "health": health or {},
    }
    # A record alone says nothing: others may have spoken of it, or it was drained before it came.
    if record is not None and (record.is_alive or record.capabilities != Capabilities()):
        shown |= {
            "capabilities": msgspec.to_builtins(record.capabilities),
            "load": msgspec.to_builtins(record.load),
            "silent_for_s": _ago(record.silent_since, now),
            "running_steps": record.running_steps,
            "running_tokens": record.running_tokens,
            "pinned_tokens": record.pinned_tokens,
            "wanted_tokens": record.wanted_tokens,
            "is_contended": record.is_contended,
            "cost": cost(record.cost),
        }
    return shown


def engine_outline(shown: dict[str, Any]) -> dict[str, Any]:
    """Of an engine, what a tenant may know: neither where it is nor how busy with others."""
    return {name: shown[name] for name in ("engine", "is_up", "is_draining")}


def cost(learnt: EngineCost) -> dict[str, Any]:
    """What an engine's work takes, as learnt from ordinary traffic; confidences from 0 to 1."""
    law = learnt.law
    return {
        "samples": law.samples,
        "prefill_us_per_token": round(learnt.prefill_ns_per_token / 1e3, 2),
        "reload_us_per_token": round(learnt.reload_ns_per_token / 1e3, 2),
        "decode_ms_per_token": round(learnt.decode_ns_per_token / 1e6, 3),
        "first_token_s_of_8k": round(
            law.first_token_s(uncached_tokens=8_192, prompt_tokens=8_192), 4
        ),
        "prefill_confidence": round(law.prefill_confidence, 2),
        "decode_confidence": round(law.decode_confidence, 2),
        "law": {name: round(value, 6) for name, value in law.coefficients().items()},
    }


def wait_bound(scheduler: Scheduler) -> dict[str, Any]:
    """The operator's wait bound, and the least one that the present load allows, in seconds."""
    bound, sensible = scheduler.limits.wait_ns_max, scheduler.sensible_wait()
    return {
        "max_wait_s": in_seconds(bound),
        "sensible_s": None if sensible is None else round(in_seconds(sensible), 1),
        "is_too_tight": sensible is not None and bound < sensible,
    }


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
