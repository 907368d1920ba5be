"""An engine that came back: its part of the work grows, and nobody waits for that."""

from __future__ import annotations

import pytest

from agentsched.kernel.records import EngineRecord
from agentsched.kernel.slow_start import drain, has_turn, is_easing
from agentsched.model import (
    SECOND,
    Capabilities,
    EngineDrained,
    EngineId,
    Instant,
    Limits,
    Nanos,
)

LIMITS = Limits(slow_start_ns=Nanos(10 * SECOND))


class Busy(EngineRecord):
    """An engine with so many steps."""

    steps = 0

    @property
    def running_steps(self) -> int:
        return self.steps


def engine(name: str, *, steps: int = 0, returned_s: float | None = None) -> EngineRecord:
    record = Busy(engine=EngineId(name), is_alive=True)
    record.steps = steps
    record.returned_at = None if returned_s is None else at(returned_s)
    return record


def at(seconds: float) -> Instant:
    return Instant(round((100 + seconds) * SECOND))


@pytest.mark.parametrize(
    ("steps", "passed_s", "expected"),
    [
        (0, 0.0, True),
        (1, 0.0, False),
        (1, 0.9, False),
        (1, 1.0, True),
        (5, 4.9, False),
        (5, 5.0, True),
        (9, 9.9, True),
        (50, 10.0, True),
    ],
)
def test_its_part_grows_with_what_has_passed_of_the_span(
    steps: int, passed_s: float, expected: bool
) -> None:
    new, old = engine("new", steps=steps, returned_s=0.0), engine("old", steps=10)
    assert has_turn(new, [new, old], LIMITS, now=at(passed_s)) is expected


def test_others_do_not_ease() -> None:
    old = engine("old", steps=10)
    assert has_turn(old, [old], LIMITS, now=at(0))
    assert not is_easing(old, LIMITS, now=at(0))


def test_one_that_is_away_again_does_not_ease() -> None:
    gone = engine("gone", returned_s=0.0)
    gone.is_alive = False
    assert not is_easing(gone, LIMITS, now=at(1))


def test_a_drain_that_ends_is_a_return() -> None:
    record = engine("e")
    drain(record, EngineDrained(engine=EngineId("e"), is_draining=False), now=at(1))
    assert record.returned_at is None
    drain(record, EngineDrained(engine=EngineId("e"), is_draining=True), now=at(2))
    assert record.is_draining
    assert record.returned_at is None
    drain(record, EngineDrained(engine=EngineId("e"), is_draining=False), now=at(3))
    assert record.returned_at == at(3)


@pytest.mark.parametrize(("sent", "level"), [(0, 30), (50, 50)])
def test_one_that_is_put_back_is_level_with_those_that_have_its_model(
    sent: int, level: int
) -> None:
    record = engine("e")
    record.capabilities, record.dispatched_total = Capabilities(models=("m", "n")), sent
    peers = [record]
    for name, steps, models in (
        ("busier", 40, ("m",)),
        ("of any model", 30, ()),
        ("of another model", 20, ("other",)),
        ("away", 10, ("m",)),
    ):
        peer = engine(name)
        peer.is_alive = name != "away"
        peer.capabilities, peer.dispatched_total = Capabilities(models=models), steps
        peers.append(peer)
    for is_draining in (True, False):
        event = EngineDrained(engine=EngineId("e"), is_draining=is_draining)
        drain(record, event, peers=peers, now=at(1))
    assert record.dispatched_total == level
