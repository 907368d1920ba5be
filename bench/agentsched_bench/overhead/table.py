"""The overhead benchmark's result as tables."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from agentsched_bench.overhead.results import Figure, Result, Row

_WIDTH_MAX: Final = 1_000


def print_result(result: Result, console: Console) -> None:
    """Print one line for each arm and cell, memory, and what came of the goals."""
    table = Table(title="What each proxy costs (medians over the repeats, extremes in brackets)")
    table.add_column("traffic")
    table.add_column("arm")
    heads = ("CPU us/request", "x vllm-router-programs", "+p50 us", "+p99 us", "+first p50 us")
    for head in (*heads, "recognised"):
        table.add_column(head, justify="right")
    cell = None
    for row in result.rows:
        if cell is not None and row.cell != cell:
            table.add_section()
        table.add_row(str(row.cell) if row.cell != cell else "", row.arm, *_figures(row))
        cell = row.cell
    # It may be wider than its console: arms whose names begin alike are told apart by their ends.
    needed = Measurement.get(console, console.options.update(width=_WIDTH_MAX), table).maximum
    console.width = max(console.width, needed)
    console.print(table)
    for sample in result.memory:
        size = sample.per_program_bytes / 1024
        console.print(
            f"memory: {sample.arm} takes {size:.1f} KB for each of {sample.programs} live programs"
            f" of {sample.messages} messages"
        )
    for arm in result.arms:
        if arm.missing:
            console.print(f"left out: {arm.name}, for {arm.missing}")
    for goal in result.goals:
        word = "met" if goal.is_met else "MISSED"
        console.print(f"goal {word}: {goal.what}: {goal.value:.2f} (limit {goal.limit:g})")


def _figures(row: Row) -> list[str]:
    share = row.recognised_share
    return [
        _figure(row.cpu_us, digits=0),
        _figure(row.ratio, digits=2),
        _figure(row.added_p50_us, digits=0),
        _figure(row.added_p99_us, digits=0),
        _figure(row.added_first_p50_us, digits=0),
        "" if share is None else f"{100 * share:.1f} %",
    ]


def _figure(figure: Figure | None, *, digits: int) -> str:
    if figure is None:
        return ""
    middle, low, high = (f"{v:.{digits}f}" for v in (figure.median, figure.low, figure.high))
    return f"{middle} [{low}, {high}]"
