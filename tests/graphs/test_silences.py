"""The silence that counts as an end: learnt, bounded, and following the load."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.model import MINUTE, SECOND, Nanos
from agentsched_graphs.silences import Silences


def learn(silences: Silences, *gaps: float) -> Nanos:
    for gap in gaps:
        silences.ended(Nanos(round(gap * SECOND)))
    return silences.limit


def test_a_minute_until_something_is_known() -> None:
    assert learn(Silences(), *[0.1] * 31) == MINUTE


@pytest.mark.parametrize(
    ("gap", "least", "most"),
    [(0.0, 5, 5), (0.2, 5, 5), (2.0, 5, 5), (7.5, 15, 18), (20.0, 40, 48), (300.0, 60, 60)],
)
def test_twice_as_long_as_anybody_stays_away(gap: float, least: float, most: float) -> None:
    assert least * SECOND <= learn(Silences(), *[gap] * 32) <= most * SECOND


def test_a_few_who_stay_away_for_long_are_let_go_by() -> None:
    """One gap in a hundred is longer; whoever is counted as over by mistake speaks again."""
    assert learn(Silences(), *([1.0] * 99 + [50.0]) * 16) == 5 * SECOND
    assert learn(Silences(), *([1.0] * 19 + [50.0]) * 16) == MINUTE


def test_it_follows_the_load() -> None:
    silences = Silences()
    assert learn(silences, *[1.0] * 4_096) == 5 * SECOND
    assert learn(silences, *[20.0] * 1_024) > 40 * SECOND
    assert learn(silences, *[1.0] * 32_768) == 5 * SECOND


def test_equal_gaps_give_equal_limits() -> None:
    gaps = [Random(seed).uniform(0.0, 40.0) for seed in range(1_000)]
    assert learn(Silences(), *gaps) == learn(Silences(), *gaps)


@given(st.lists(st.integers(-(10**12), 10**18), max_size=200))
def test_whatever_gaps_there_were_it_is_between_five_seconds_and_a_minute(gaps: list[int]) -> None:
    silences = Silences()
    for gap in gaps:
        silences.ended(Nanos(gap))
        assert 5 * SECOND <= silences.limit <= MINUTE
    assert len(silences._counts) == 26
    assert sum(silences._counts) == silences._total <= 1_024
