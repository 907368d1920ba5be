"""Arrival processes: their rates, their burstiness, and that they are in order."""

from __future__ import annotations

import random
import statistics
from itertools import islice, pairwise

import pytest

from agentsched_bench.workload.arrivals import starts
from agentsched_bench.workload.spec import (
    ArrivalProcess,
    Bursty,
    Closed,
    Poisson,
    Regular,
)

BURSTY = Bursty(rate=0.2, burst_rate=5.0, calm_s=50, burst_s=10)


def first(process: ArrivalProcess, count: int, seed: int = 1) -> list[float]:
    return list(islice(starts(process, rng=random.Random(seed)), count))


@pytest.mark.parametrize(
    ("process", "rate"), [(Poisson(rate=2.0), 2.0), (Regular(rate=2.0), 2.0), (BURSTY, 1.0)]
)
def test_the_long_run_has_the_stated_rate(process: ArrivalProcess, rate: float) -> None:
    times = first(process, 6000)
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.12)
    assert all(before <= after for before, after in pairwise(times))


def test_bursts_are_burstier_than_poisson() -> None:
    def variation(times: list[float]) -> float:
        gaps = [after - before for before, after in pairwise(times)]
        return statistics.pstdev(gaps) / statistics.fmean(gaps)

    assert variation(first(Poisson(rate=1.0), 5000)) == pytest.approx(1.0, abs=0.1)
    assert variation(first(BURSTY, 5000)) > 1.8


def test_a_silent_calm_is_allowed() -> None:
    process = Bursty(rate=0.0, burst_rate=1.0, calm_s=5, burst_s=5)
    assert len(first(process, 50)) == 50


def test_closed_loops_have_no_times() -> None:
    with pytest.raises(AssertionError):
        next(starts(Closed(concurrency=2), rng=random.Random(0)))
