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


def drain(
    engine: EngineRecord, event: EngineDrained, *, peers: Iterable[EngineRecord] = (), now: Instant
) -> None:
    """Take an engine out of placement, or put it back; `peers` may hold itself."""
    if engine.is_draining and not event.is_draining:
        engine.returned_at = now
        # It takes its turn with the others again: what they were sent meanwhile is not owed to it.
        alike = (e for e in peers if e is not engine and e.is_up and _share_one(e, engine))
        turn = min((e.dispatched_total for e in alike), default=0)
        engine.dispatched_total = max(engine.dispatched_total, turn)
    engine.is_draining = event.is_draining
    engine.is_drain_lasting = event.is_draining and event.is_lasting


def _share_one(one: EngineRecord, other: EngineRecord) -> bool:
    """Whether there may be steps that either of them could be given."""
    models = one.capabilities.models
    return not models or any(other.serves(model) for model in models)


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
