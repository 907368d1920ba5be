"""What an arm carries: bounds on slowdown and waits, and the highest rate below the first miss."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from agentsched.model import ConfigError
from agentsched_bench.compare.capacity import Carried, at_rate, capacity, print_capacity, said
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.results import CompareResult
from agentsched_bench.compare.scenario import load_scenario

Make = Callable[..., CompareResult]


def _at(comparison: Make, slowdown: float, *, held_s: float = 0.0) -> CompareResult:
    made = comparison({"direct": [{"a": slowdown, "b": slowdown}]})
    made.alone_s = {"a": 1.0, "b": 1.0}
    made.runs[0].calls[0].held_s = held_s
    made.summary = summarise(made)
    return made


def test_the_highest_rate_before_the_first_miss_counts(comparison: Make, small: Path) -> None:
    scenario = load_scenario(small)
    # One lucky rate beyond the knee is luck.
    found = {0.1: 1.2, 0.2: 2.9, 0.3: 7.0, 0.4: 2.5}
    (row,) = capacity({r: _at(comparison, s) for r, s in found.items()}, scenario)

    assert (row.rate, row.is_limit) == (0.2, True)
    assert said(row) == "0.2/s"


def test_a_wait_beyond_its_bound_is_not_carried(comparison: Make, small: Path) -> None:
    scenario = load_scenario(small)  # at most 15 s
    (late,) = capacity({0.1: _at(comparison, 1.1, held_s=20.0)}, scenario)
    (fine,) = capacity({0.1: _at(comparison, 1.1, held_s=15.2)}, scenario)

    assert said(late) == "none of them"
    assert said(fine) == "0.1/s or more"


def test_beyond_a_rate_without_a_result_nothing_is_claimed(comparison: Make, small: Path) -> None:
    """The comparison at that rate was stopped, say."""
    scenario = load_scenario(small)
    found = {rate: _at(comparison, 1.2) for rate in (0.1, 0.2, 0.3)}
    found[0.2].summary = []
    (row,) = capacity(found, scenario)
    found[0.1].summary = []
    (later,) = capacity(found, scenario)

    assert said(row) == "0.1/s or more"
    assert said(later) == "not known"


def test_without_times_alone_nothing_is_claimed(comparison: Make, small: Path) -> None:
    """With `measure.alone = "none"`, or a real agent as the client."""
    scenario = load_scenario(small)

    def blind(*, failed: int = 0) -> CompareResult:
        made = _at(comparison, 1.2)
        made.alone_s = {}
        made.summary = [msgspec.structs.replace(arm, failed=failed) for arm in summarise(made)]
        return made

    (row,) = capacity({0.1: blind(), 0.2: blind()}, scenario)
    (lost,) = capacity({0.1: blind(failed=1)}, scenario)
    (later,) = capacity(
        {0.1: _at(comparison, 1.2), 0.2: blind(), 0.3: _at(comparison, 1)}, scenario
    )

    assert (row.rate, row.is_limit, said(row)) == (None, False, "not known")
    assert said(lost) == "none of them", "who gives up is not carried, however fast others are"
    assert said(later) == "0.1/s or more"


def test_only_arrivals_with_a_rate_have_one(small: Path) -> None:
    changed = at_rate(load_scenario(small), 0.5)
    closed = load_scenario(small, changes=['workload.arrivals={process="closed", concurrency=2}'])

    assert changed.name == "small-0.5"
    assert changed.workload.arrivals.rate == 0.5  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="no rate"):
        at_rate(closed, 0.5)


def test_an_arms_name_is_whole_beside_many_rates(small: Path) -> None:
    names = ("agentsched,order=fcfs", "agentsched,order=program-fcfs")
    slow = {f"0.{n}": 1.25 for n in range(1, 9)}
    rows = [Carried(arm=name, rate=0.8, is_limit=False, slowdown_p95=slow) for name in names]
    shown = io.StringIO()
    print_capacity(rows, load_scenario(small), console=Console(file=shown, width=80))
    lines = shown.getvalue().splitlines()
    cells = "".join(line.strip().partition(" ")[0] for line in lines)
    assert all(name in cells for name in names)
    assert "".join(shown.getvalue().split()).count("0.8/s") == 2
    assert sum(line.count("1.25") for line in lines) == 16
