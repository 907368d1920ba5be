"""Decisions in few words: what a turn of the scheduler decided, and why, for people who watch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import assert_never

from agentsched.dashboard.rows import seconds_of
from agentsched.dashboard.shapes import Decision
from agentsched.kernel import JournalEntry
from agentsched.kernel.records import StepRecord
from agentsched.model import (
    Cancel,
    Command,
    Dispatch,
    EngineDrained,
    EngineLost,
    EngineUnanswered,
    Instant,
    Pin,
    PinId,
    Prefetch,
    ProgramId,
    Reconfigured,
    Reject,
    StepArrived,
    StepId,
    StepState,
    TenantConfigured,
    TenantId,
    Unpin,
    between,
    in_seconds,
)


def digest(
    entry: JournalEntry,
    steps: Mapping[StepId, StepRecord],
    pins: Mapping[PinId, Pin | Prefetch],
    owners: Mapping[StepId, tuple[ProgramId, TenantId]],
) -> Iterator[Decision]:
    """What an entry decided; `steps` are live ones after its turn, `pins` those before it.

    `owners` says whose steps are, also of those that it turned away.
    """
    seq, at = entry.seq, seconds_of(entry.now)
    event = entry.event
    match event:
        case EngineLost():
            yield Decision(seq=seq, at=at, kind="lost", engine=event.engine, reason=event.reason)
        case EngineUnanswered():
            yield Decision(seq=seq, at=at, kind="unheard", engine=event.engine, reason=event.reason)
        case EngineDrained():
            kind = "drain" if event.is_draining else "undrain"
            reason = _why_drained(event)
            yield Decision(seq=seq, at=at, kind=kind, engine=event.engine, reason=reason)
        case Reconfigured():
            named = ", ".join(f"{point}={c.name}" for point, c in event.choices.items())
            reason = f"profile={event.profile} {named}".strip()
            yield Decision(seq=seq, at=at, kind="policies", reason=reason)
        case TenantConfigured():
            reason = f"weight={event.weight:g}"
            yield Decision(seq=seq, at=at, kind="tenant", tenant=event.tenant, reason=reason)
        case StepArrived():
            step = steps.get(event.step)
            if step is not None and step.state is StepState.WAITING:
                yield _of_step(seq, at, "hold", step, reason=step.held_for or "no engine has room")
        case _:
            pass
    for command in entry.commands:
        yield _decided(seq, entry.now, command, steps, pins, owners)


def _why_drained(event: EngineDrained) -> str:
    if event.is_lasting:
        return "by an operator"
    if event.is_draining:
        return "by its breaker, or to be removed"
    return "by an operator, or by its breaker"  # nothing tells whose the end of a drain is


def _decided(
    seq: int,
    now: Instant,
    command: Command,
    steps: Mapping[StepId, StepRecord],
    pins: Mapping[PinId, Pin | Prefetch],
    owners: Mapping[StepId, tuple[ProgramId, TenantId]],
) -> Decision:
    at = seconds_of(now)
    match command:
        case Dispatch():
            step = steps[command.step]
            said = (("order", command.order), ("place", command.place), ("pin", command.pin))
            reason = " ".join(f"{name}={word}" for name, word in said if word)
            if command.bypassed:
                reason += f" bypassed={command.bypassed}"
            wait = round(in_seconds(between(step.arrived_at, now)), 3)
            return _of_step(seq, at, "dispatch", step, reason, engine=command.engine, wait_s=wait)
        case Reject():
            reason = f"{command.reason.value} {command.detail}".strip()
            # Turned away at the door it was never a live step; later on, it is one no more. And
            # who is turned away need not be who arrived.
            program, tenant = owners.get(command.step, ("", ""))
            return Decision(
                seq=seq,
                at=at,
                kind="reject",
                step=command.step,
                program=program,
                tenant=tenant,
                reason=reason,
            )
        case Cancel():
            cancelled = steps.get(command.step)
            if cancelled is not None:
                return _of_step(seq, at, "cancel", cancelled, command.reason.value)
            return Decision(
                seq=seq, at=at, kind="cancel", step=command.step, reason=command.reason.value
            )
        case Pin() | Prefetch():
            return _of_pin(seq, now, command)
        case Unpin():
            known = pins.get(command.pin)
            return Decision(
                seq=seq,
                at=at,
                kind="unpin" if not isinstance(known, Prefetch) else "stop-warm",
                program=known.program if known is not None else "",
                engine=command.engine,
                reason=command.reason.value,
            )
        case _:
            assert_never(command)


def _of_step(
    seq: int,
    at: float,
    kind: str,
    step: StepRecord,
    reason: str,
    *,
    engine: str = "",
    wait_s: float | None = None,
) -> Decision:
    return Decision(
        seq=seq,
        at=at,
        kind=kind,
        program=step.program,
        tenant=step.tenant,
        step=step.step,
        engine=engine or step.engine or "",
        reason=reason,
        wait_s=wait_s,
    )


def _of_pin(seq: int, now: Instant, command: Pin | Prefetch) -> Decision:
    due = command.expires_at if isinstance(command, Pin) else command.wanted_by
    span = in_seconds(between(now, due))
    word = "for" if isinstance(command, Pin) else "ready in"
    return Decision(
        seq=seq,
        at=seconds_of(now),
        kind="pin" if isinstance(command, Pin) else "warm",
        program=command.program,
        engine=command.engine,
        reason=f"{command.prefix.tokens:,} tokens {word} {max(0.0, span):.1f} s",
    )
