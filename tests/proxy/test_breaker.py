"""When an engine's failures are reason to give it no more work, and for how long."""

from __future__ import annotations

import pytest

from agentsched.config_trust import BreakerConfig
from agentsched.model import SECOND, Instant, Nanos
from agentsched.proxy.breaker import Breaker

CONFIG = BreakerConfig(
    failures=3,
    failure_share=0.5,
    requests_min=6,
    window=Nanos(10 * SECOND),
    ejection=Nanos(2 * SECOND),
    ejection_max=Nanos(8 * SECOND),
)


def at(seconds: float) -> Instant:
    return Instant(round((50 + seconds) * SECOND))


def told(*failed: bool, every_s: float = 0.1) -> Breaker:
    breaker = Breaker(CONFIG)
    for place, one in enumerate(failed):
        breaker.record(failed=one, now=at(place * every_s))
    return breaker


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], False),
        ([True, True], False),
        ([True, True, True], True),
        ([True, True, False, True], False),
        ([True, False, True, False, True, False], True),
        ([True, False, False, False, True, False], False),
        ([False] * 20, False),
    ],
)
def test_it_opens_after_failures_in_a_row_or_a_share_of_enough(
    outcomes: list[bool], expected: bool
) -> None:
    assert told(*outcomes).wants_to_open(now=at(1)) is expected


def test_what_is_older_than_the_window_does_not_count() -> None:
    breaker = told(True, False, True, False, True, False)
    assert not breaker.wants_to_open(now=at(11))


def test_it_stays_open_twice_as_long_each_time_up_to_the_most() -> None:
    breaker = Breaker(CONFIG)
    spans = []
    now = 0.0
    for _ in range(4):
        span = breaker.open(now=at(now))
        spans.append(span / SECOND)
        now += span / SECOND
        assert breaker.is_open
        assert not breaker.is_due(now=at(now - 0.001))
        assert breaker.is_due(now=at(now))
        breaker.close(now=at(now))
    assert spans == [2, 4, 8, 8]
    assert breaker.opened_total == 4


def test_a_long_quiet_is_forgiven() -> None:
    breaker = Breaker(CONFIG)
    breaker.open(now=at(0))
    breaker.close(now=at(2))
    assert breaker.open(now=at(2 + 8.1)) == 2 * SECOND


def test_while_it_is_open_it_does_not_want_to_open_again() -> None:
    breaker = told(True, True, True)
    breaker.open(now=at(1))
    for _ in range(5):
        breaker.record(failed=True, now=at(1.5))
    assert not breaker.wants_to_open(now=at(1.5))


def test_what_failed_before_it_closed_is_forgotten() -> None:
    breaker = told(True, True, True)
    breaker.open(now=at(1))
    breaker.record(failed=True, now=at(1.1))
    breaker.close(now=at(3))
    assert breaker.failures_in_a_row == 0
    assert not breaker.wants_to_open(now=at(3))
