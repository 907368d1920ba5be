"""Places in the queue outlive their steps: for retries, a while, and bounded in number."""

from __future__ import annotations

from agentsched.kernel.places import LeftPlaces
from agentsched.model import MINUTE, SECOND, Instant, Nanos, ProgramId, StepId

P, Q = ProgramId("p"), ProgramId("q")
S = StepId("s")


def places() -> LeftPlaces:
    wait, patience = Nanos(120 * SECOND), Nanos(10 * SECOND)
    return LeftPlaces(wait_ns_max=wait, bypasses_max=120, patience=patience)


def at(second: float) -> Instant:
    return Instant(round(second * SECOND))


def test_a_retry_takes_arrival_and_bypasses_over_once() -> None:
    kept = places()
    kept.leave(S, P, arrived_at=at(5), bypassed=3, now=at(8))
    assert kept.take(S, P, now=at(9)) == (at(5), 3)
    assert kept.take(S, P, now=at(9)) == (at(9), 0)


def test_another_program_takes_nothing_over() -> None:
    kept = places()
    kept.leave(S, P, arrived_at=at(5), bypassed=3, now=at(8))
    assert kept.take(S, Q, now=at(9)) == (at(9), 0)
    assert kept.take(S, P, now=at(9)) == (at(5), 3)


def test_whoever_waited_in_vain_may_wait_a_little_again() -> None:
    kept = places()
    kept.leave(S, P, arrived_at=at(0), bypassed=0, now=at(120))
    assert kept.take(S, P, now=at(125)) == (at(15), 0)  # its bound is reached at 135


def test_whoever_was_overtaken_too_often_may_be_overtaken_a_little_again() -> None:
    kept = places()
    kept.leave(S, P, arrived_at=at(0), bypassed=120, now=at(1))
    assert kept.take(S, P, now=at(2)) == (at(0), 110)


def test_places_are_forgotten_after_five_minutes() -> None:
    kept = places()
    kept.leave(S, P, arrived_at=at(0), bypassed=3, now=at(1))
    kept.leave(StepId("t"), P, arrived_at=at(60), bypassed=1, now=at(61))
    late = Instant(at(1) + 5 * MINUTE + 1)
    assert kept.take(S, P, now=late) == (late, 0)
    assert len(kept) == 1


def test_places_are_bounded_in_number() -> None:
    kept = places()
    for number in range(10_050):
        kept.leave(StepId(str(number)), P, arrived_at=at(0), bypassed=1, now=at(1))
    assert len(kept) == 10_000
    assert kept.take(StepId("49"), P, now=at(2)) == (at(2), 0)
    assert kept.take(StepId("50"), P, now=at(2)) == (at(0), 1)
