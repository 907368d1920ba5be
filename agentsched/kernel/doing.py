"""What a program as a whole is doing, by the liveliest of its conversations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from agentsched.kernel.records import ProgramRecord, StepRecord
from agentsched.model import Instant, StepId, StepState

ProgramState = Literal["running", "waiting", "pinned", "paused", "idle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """A program's state, since when, and why it waits where it does."""

    state: ProgramState
    since: Instant
    held_for: str = ""


def doing(record: ProgramRecord, steps: Iterable[StepRecord], *, is_pinned: bool) -> Doing:
    """What a program does. `steps` are its live ones; `is_pinned`: a conversation has a pin."""
    live = list(steps)
    sent = [s.dispatched_at for s in live if s.state is not StepState.WAITING and s.dispatched_at]
    if sent:
        return Doing(state="running", since=min(sent))
    if live:
        eldest = min(live, key=lambda s: (s.arrived_at, s.step))
        return Doing(state="waiting", since=eldest.arrived_at, held_for=eldest.held_for)
    if is_pinned:
        return Doing(state="pinned", since=record.last_at)
    if any(c.tools or c.may_go_on for c in record.conversations.values()):
        return Doing(state="paused", since=record.last_at)
    return Doing(state="idle", since=record.last_at)


def by_program(steps: Mapping[StepId, StepRecord]) -> dict[str, list[StepRecord]]:
    """Live steps of each program."""
    found: dict[str, list[StepRecord]] = {}
    for step in steps.values():
        found.setdefault(step.program, []).append(step)
    return found
