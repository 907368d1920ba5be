"""How long a client that is turned away is told to wait, from how fast the queue moved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shorthand import at

from agentsched.kernel.pace import Pace
from agentsched.model import SECOND, seconds


@given(
    gaps=st.lists(st.floats(0, 1e4), max_size=20),
    steps=st.lists(st.floats(0, 1e9), min_size=2, max_size=5),
)
def test_a_wait_is_a_second_to_a_minute_and_longer_behind_more(
    gaps: list[float], steps: list[float]
) -> None:
    pace, now = Pace(), 0.0
    for gap in gaps:
        now += gap
        pace.sent(is_backlogged=True, now=at(now))
    waits = [pace.until_sent(ahead) for ahead in sorted(steps)]
    assert waits == sorted(waits)
    assert min(waits) >= SECOND
    assert max(waits) <= 60 * SECOND


def test_the_time_between_steps_is_followed_while_others_wait() -> None:
    pace = Pace()
    for number in range(100):
        pace.sent(is_backlogged=True, now=at(3.0 * number))
    assert pace.until_sent(10) == pytest.approx(30 * SECOND, rel=0.01)


def test_how_fast_clients_ask_is_no_pace() -> None:
    pace = Pace()
    before = pace.ns_per_step
    for number in range(100):
        pace.sent(is_backlogged=False, now=at(3.0 * number))
    assert pace.ns_per_step == before


def test_a_turn_takes_as_long_as_they_did_lately() -> None:
    pace = Pace()
    assert pace.turn_ns is None
    pace.ended(seconds(8))
    assert pace.turn_ns == seconds(8)
    for _ in range(100):
        pace.ended(seconds(2))
    assert pace.turn_ns == pytest.approx(seconds(2), rel=0.01)
