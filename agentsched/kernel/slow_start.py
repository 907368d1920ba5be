"""An engine that comes back gets its part of the work little by little.

Its cache is cold and what failed before may fail again: the whole queue at once would be a poor
welcome (Envoy's "slow start", HAProxy's `slowstart`). While it eases in it runs no more than one
step beyond that part of its busiest peer's steps that has passed of the span. No step waits for
this: those that it does not get go to the others, and where there are no others it gets all.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentsched.kernel.records import EngineRecord
from agentsched.model import EngineDrained, Instant, Limits, between


def drain(engine: EngineRecord, event: EngineDrained, *, now: Instant) -> None:
    """Take an engine out of placement, or put it back."""
    if engine.is_draining and not event.is_draining:
        engine.returned_at = now
    engine.is_draining = event.is_draining
    engine.is_drain_lasting = event.is_draining and event.is_lasting


def is_easing(engine: EngineRecord, limits: Limits, *, now: Instant) -> bool:
    """Whether it came back less than the span ago."""
    at = engine.returned_at
    return at is not None and engine.is_up and between(at, now) < limits.slow_start_ns


def has_turn(
    engine: EngineRecord, peers: Iterable[EngineRecord], limits: Limits, *, now: Instant
) -> bool:
    """Whether it may be given one more step now; `peers` may hold itself."""
    if not is_easing(engine, limits, now=now):
        return True
    assert engine.returned_at is not None
    busiest = max((e.running_steps for e in peers if e is not engine), default=0)
    passed = between(engine.returned_at, now)
    return engine.running_steps <= busiest * passed // limits.slow_start_ns
