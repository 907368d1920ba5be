"""What counts as growth, by hand; and a short soak on real processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentsched_bench.cluster.run import ClusterOptions
from agentsched_bench.cluster.soak import Bounds, Reading, grown, soak

CALM = Reading(rss_mib=100.0, files=30, threads=8, tasks=20)
BOUNDS = Bounds(rss_share=0.10, rss_mib=8.0, files=8, threads=4, tasks=8)


def test_what_stays_as_it_was_has_not_grown() -> None:
    assert grown([CALM] * 6, BOUNDS) == []


@pytest.mark.parametrize(
    ("field", "allowed", "too_much"),
    [("rss_mib", 110.0, 110.1), ("files", 38, 39), ("threads", 12, 13), ("tasks", 28, 29)],
)
def test_each_has_its_bound(field: str, allowed: float, too_much: float) -> None:
    within = replace(CALM, **{field: allowed})  # type: ignore[arg-type]  # ints where ints are
    over = replace(CALM, **{field: too_much})  # type: ignore[arg-type]
    assert grown([CALM, CALM, within, within], BOUNDS) == []
    assert len(grown([CALM, CALM, over, over], BOUNDS)) == 1


def test_a_small_process_may_grow_by_megabytes() -> None:
    small = replace(CALM, rss_mib=20.0)
    assert grown([small, replace(small, rss_mib=28.0)], BOUNDS) == []
    assert grown([small, replace(small, rss_mib=28.1)], BOUNDS) != []


def test_a_peak_that_goes_is_no_growth() -> None:
    peak = replace(CALM, rss_mib=300.0, files=90, tasks=70)
    assert grown([CALM, CALM, CALM, peak, CALM, CALM], BOUNDS) == []
    assert grown([CALM, CALM, CALM, CALM, peak, CALM], BOUNDS) == []


def test_one_reading_says_nothing() -> None:
    assert grown([CALM], BOUNDS) == []


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_grows_and_nothing_is_lost_while_others_are_killed() -> None:
    found = await soak(ClusterOptions(agents=4), minutes=0, round_s=12.0)
    assert found["grown"] == [], found["readings"]
    assert found["survivor_is_the_same_process"]
    assert (found["failed_whole"], found["hung"]) == (0, 0), found["by_round"]
    assert found["rounds"] == 3
    assert len(found["faults"]) == 9
