"""From samples to rows and goals: ratios within a repeat, medians over the repeats."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from agentsched_bench.overhead.arms import DIRECT, INFERRED, PROGRAMS
from agentsched_bench.overhead.results import (
    Cell,
    MemorySample,
    Result,
    Sample,
    goals,
    percentile,
    summarise,
)
from agentsched_bench.overhead.table import print_result

_CELL = Cell(shape="130KB", is_stream=False, concurrency=1)


def _sample(arm: str, repeat: int, *, cpu_us: float | None, p50_us: float) -> Sample:
    return Sample(
        repeat=repeat,
        cell=_CELL,
        arm=arm,
        requests=10,
        body_bytes=100,
        cpu_us=cpu_us,
        total_p50_us=p50_us,
        total_p99_us=p50_us,
        first_p50_us=p50_us,
        first_p99_us=p50_us,
        wall_s=1.0,
        continuations=10,
        recognised=9,
    )


def _samples() -> list[Sample]:
    rounds = [(100.0, 200.0), (300.0, 300.0), (400.0, 200.0)]
    return [
        sample
        for repeat, (ours, theirs) in enumerate(rounds)
        for sample in (
            _sample(DIRECT, repeat, cpu_us=None, p50_us=50.0 + repeat),
            _sample(INFERRED, repeat, cpu_us=ours, p50_us=80.0),
            _sample(PROGRAMS, repeat, cpu_us=theirs, p50_us=90.0),
        )
    ]


def test_a_ratio_is_taken_within_its_repeat() -> None:
    rows = {row.arm: row for row in summarise(_samples())}
    ours = rows[INFERRED]
    assert ours.ratio is not None
    assert (ours.ratio.low, ours.ratio.median, ours.ratio.high) == (0.5, 1.0, 2.0)
    assert ours.added_p50_us is not None
    assert ours.added_p50_us.median == 29.0
    assert ours.recognised_share == pytest.approx(0.9)
    assert rows[DIRECT].cpu_us is None
    assert rows[DIRECT].added_p50_us is None


def test_an_arm_without_its_peer_has_no_ratio_and_no_goal() -> None:
    rows = summarise(s for s in _samples() if s.arm != PROGRAMS)
    assert all(row.ratio is None for row in rows)
    assert goals(rows, []) == []


def test_goals_say_by_how_much() -> None:
    memory = MemorySample(
        arm=INFERRED,
        programs=10,
        messages=40,
        requests=200,
        before_bytes=0,
        after_bytes=10 * (80 << 10),
        recognised_share=1.0,
    )
    cpu, size = goals(summarise(_samples()), [memory])
    assert (cpu.value, cpu.limit, cpu.is_met) == (1.0, 1.0, True)
    assert (size.value, size.is_met) == (80 << 10, False)


def test_percentiles() -> None:
    assert percentile([], 0.5) == 0.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0] * 99 + [5.0], 0.99) == 5.0


def test_arms_and_figures_are_whole_on_a_narrow_terminal() -> None:
    """Names that begin alike, and numbers, are of no use with their ends cut off."""
    rows = summarise(_samples())
    result = Result(started_at="", machine={}, settings={}, arms=[], rows=rows)
    out = io.StringIO()
    print_result(result, Console(file=out, width=80))
    shown = out.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    for words in (DIRECT, INFERRED, PROGRAMS, "recognised", "300 [100, 400]", "90.0 %"):
        assert f" {words} " in shown
