"""Published headlines as set-ups to be played, and what came of them.

A set-up is played at three loads. One whose claim is about capacity is played at further rates, and
judged by the highest at which a measure of service stays within its bound, on a straight line
between two rates.
"""

from __future__ import annotations

import tomllib
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, Final

import msgspec

from agentsched_bench.live.arrivals import Arrivals, parse_arrivals
from agentsched_bench.sim.results import SimRow
from agentsched_bench.tune.sweep import score_of

SCHEMA: Final = "agentsched.study/2"
LOADS: Final = ("calm", "busy", "thrash")
OURS: Final = "agentsched"


class Bound(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a fleet must keep at a rate for it to carry that rate: a metric, and its most."""

    metric: str
    most: float


class Setup(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One published headline and how it is tried here; see the head of `setups.toml`."""

    system: str
    claim: str
    ratio: tuple[float, float]
    metric: str
    baseline: str
    profile: str
    trace: str
    engines: list[str]
    differs: str
    rates: tuple[float, float, float] | None = None
    closed: tuple[int, int, int] | None = None
    more_rates: tuple[float, ...] = ()
    capacity: Bound | None = None
    times: int = 1
    max_wait_s: float = 60.0
    tenants: str = ""
    pins: bool = False
    warm: bool = False
    priority: bool = False
    ablation: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.baseline, self.profile, OURS, self.unlimited, *self.ablation)

    @property
    def loads(self) -> dict[str, Arrivals]:
        """What it is played at, by name."""
        if self.closed is not None:
            texts = [f"closed:{number}" for number in self.closed]
        else:
            assert self.rates is not None, f"{self.system} has neither rates nor closed loops"
            texts = [f"poisson:{rate}" for rate in self.rates]
        found = dict(zip(LOADS, map(parse_arrivals, texts), strict=True))
        more = {f"{rate:g}/s": parse_arrivals(f"poisson:{rate}") for rate in self.more_rates}
        return found | more

    @property
    def unlimited(self) -> str:
        """The baseline on engines whose cache holds everything: the room there is to win."""
        return ",".join(["unlimited", *self.baseline.split(",")[1:]])


class Cell(msgspec.Struct, kw_only=True):
    """One set-up, load, arm and seed."""

    system: str
    load: str
    row: SimRow


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """Programs a second that an arm carries. `is_limit`: a higher rate was tried and was too much.

    Without a limit the rate is the highest tried, and more would be carried.
    """

    rate: float
    is_limit: bool


class Study(msgspec.Struct, kw_only=True):
    """The whole of it, as it lies in its file.

    `seeds` are those of the latest call; what earlier ones played besides is kept. `version` is
    ours, `traces` are the traces' hashes; older files have neither.
    """

    schema: str = SCHEMA
    command: list[str]
    programs: int
    steps: int
    block_size: int
    seeds: list[int]
    setups: list[Setup]
    cells: list[Cell] = []
    version: str = ""
    traces: dict[str, str] = {}

    def rows(self, setup: Setup, load_name: str, arm: str) -> list[SimRow]:
        """What was played of an arm under the seeds that are asked for."""
        return [
            cell.row
            for cell in self.cells
            if (cell.system, cell.load, cell.row.arm) == (setup.system, load_name, arm)
            and cell.row.seed in self.seeds
        ]

    def score(self, setup: Setup, load_name: str, arm: str, *, metric: str = "") -> float | None:
        """The mean of the set-up's metric, or another, over seeds; None where it was not run.

        Infinite where programs gave up: the others alone would make their arm look fast.
        """
        found = [
            inf if row.failed else number_of(row, metric or setup.metric)
            for row in self.rows(setup, load_name, arm)
        ]
        return sum(found) / len(found) if found else None

    def carried(self, setup: Setup, arm: str) -> Carried | None:
        """What the arm carries within the set-up's bound; None: no bound, or it was not run."""
        if setup.capacity is None:
            return None
        bound = setup.capacity
        scores = {
            arrivals.value: self.score(setup, name, arm, metric=bound.metric)
            for name, arrivals in setup.loads.items()
        }
        points = sorted((rate, score) for rate, score in scores.items() if score is not None)
        if not points:
            return None
        # Without any programs there is no service to measure: the line begins within the bound.
        if points[0][1] > bound.most:
            return Carried(rate=points[0][0] * bound.most / points[0][1], is_limit=True)
        for (rate, score), (next_rate, next_score) in pairwise(points):
            if next_score > bound.most:
                share = (bound.most - score) / (next_score - score)
                return Carried(rate=rate + share * (next_rate - rate), is_limit=True)
        return Carried(rate=points[-1][0], is_limit=False)


def number_of(row: SimRow, metric: str) -> float:
    """One number to be made small."""
    match metric:
        case "slowdown_mean":
            return row.slowdown.mean
        case "ttft_p95":
            return row.first_token_wait_s.p95
        case _:
            return score_of(row, metric)


def read_setups() -> list[Setup]:
    """The set-ups that come with the package."""
    raw: dict[str, Any] = tomllib.loads(Path(__file__).with_name("setups.toml").read_text())
    return msgspec.convert(raw["setup"], list[Setup])
