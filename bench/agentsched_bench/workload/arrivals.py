"""When programs of a composed workload start: endless streams of instants, by process and seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import assert_never

from agentsched_bench.workload.spec import (
    ArrivalProcess,
    Bursty,
    Closed,
    Poisson,
    RecordedArrivals,
    Regular,
)


def starts(process: ArrivalProcess, *, rng: random.Random) -> Iterator[float]:
    """Seconds after the beginning, in order, without end.

    Not for closed loops and recorded starts, which depend on the programs.
    """
    match process:
        case Poisson():
            yield from _poisson(process.rate, rng)
        case Regular():
            yield from (number / process.rate for number in count())
        case Bursty():
            yield from _bursty(process, rng)
        case Closed() | RecordedArrivals():
            raise AssertionError(f"{process.process} arrivals have no times of their own")
        case _:
            assert_never(process)


def _poisson(rate: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _bursty(process: Bursty, rng: random.Random) -> Iterator[float]:
    """A two-state Markov-modulated Poisson process, which begins calm."""
    begun, is_burst = 0.0, False
    while True:
        rate = process.burst_rate if is_burst else process.rate
        length = rng.expovariate(1.0 / (process.burst_s if is_burst else process.calm_s))
        at = begun
        while rate > 0:
            at += rng.expovariate(rate)
            if at >= begun + length:
                # What remains of the wait is forgotten: exponential times have no memory.
                break
            yield at
        begun, is_burst = begun + length, not is_burst
