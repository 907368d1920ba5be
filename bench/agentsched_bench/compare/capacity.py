"""How many programs an arm carries: the highest rate at which nobody is slowed down too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentsched.model import ConfigError, in_seconds, parse_span
from agentsched_bench.compare.results import ArmFigures, CompareResult
from agentsched_bench.compare.scenario import Scenario

#: A wait is over when a timer rings, and timers ring late by a little.
_BOUND_SLACK: Final = 1.1


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """One arm. `rate` is the highest of the tried rates up to which all were carried, None: not
    even the lowest. `is_limit` says that the next one was tried and was too much; without it,
    what is beyond is not known.
    """

    arm: str
    rate: float | None
    is_limit: bool
    slowdown_p95: dict[str, float | None]


def at_rate(scenario: Scenario, rate: float) -> Scenario:
    """The scenario with another rate of arrivals (programs per second).

    Raises:
        ConfigError: its arrivals have no rate.
    """
    arrivals = scenario.workload.arrivals
    if arrivals.process not in ("poisson", "regular"):
        raise ConfigError(f"{scenario.name}: {arrivals.process} arrivals have no rate to change")
    changed = arrivals.model_copy(update={"rate": rate})
    workload = scenario.workload.model_copy(update={"arrivals": changed})
    name = f"{scenario.name}-{rate:g}"
    return scenario.model_copy(update={"workload": workload, "name": name})


def carries(arm: ArmFigures, *, slowdown_max: float, max_wait_s: float) -> bool | None:
    """Whether p95 slowdown and every wait are within their bounds and all programs completed.

    A wait is what the proxy itself held; that of an engine's own queue shows in the slowdown. None
    where nobody knows how long programs take alone: all else being well, it may carry them or not.
    """
    if arm.failed or (arm.held_s is not None and arm.held_s.max > _BOUND_SLACK * max_wait_s):
        return False
    return arm.slowdown.p95 <= slowdown_max if arm.slowdown is not None else None


def capacity(results: Mapping[float, CompareResult], scenario: Scenario) -> list[Carried]:
    """What each arm carries, of results by rate."""
    max_wait_s = in_seconds(parse_span(scenario.proxy.max_wait))
    names = list(dict.fromkeys(arm.arm for r in results.values() for arm in r.summary))
    rows = []
    for name in names:
        best: float | None = None
        is_limit, is_known = False, True
        slow: dict[str, float | None] = {}
        for rate in sorted(results):
            arm = next((a for a in results[rate].summary if a.arm == name), None)
            if arm is None:
                # What it does there is not known, and beyond it luck might carry it.
                is_known = False
                continue
            slow[f"{rate:g}"] = arm.slowdown.p95 if arm.slowdown is not None else None
            fits = carries(arm, slowdown_max=scenario.measure.slowdown_max, max_wait_s=max_wait_s)
            if is_known and not fits:
                is_limit, is_known = fits is False, False
            elif is_known:
                best = rate
        rows.append(Carried(arm=name, rate=best, is_limit=is_limit, slowdown_p95=slow))
    return rows


def print_capacity(rows: Sequence[Carried], scenario: Scenario, *, console: Console) -> None:
    """A table: p95 slowdown at each rate, and what each arm carries."""
    bound = scenario.measure.slowdown_max
    table = Table(
        title=Text(f"{scenario.name}: p95 slowdown by programs per second (at most {bound:g})"),
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm", overflow="fold", min_width=12)
    rates = list(dict.fromkeys(rate for row in rows for rate in row.slowdown_p95))
    for rate in rates:
        table.add_column(rate, justify="right", no_wrap=True)
    table.add_column("carries", justify="right")
    for row in rows:
        cells = [row.slowdown_p95.get(rate) for rate in rates]
        shown = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        table.add_row(Text(row.arm), *shown, said(row))
    console.print(table)


def said(row: Carried) -> str:
    """What an arm carries, in a word."""
    if row.rate is None:
        return "none of them" if row.is_limit else "not known"
    return f"{row.rate:g}/s" if row.is_limit else f"{row.rate:g}/s or more"
