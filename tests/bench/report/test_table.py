"""A replay's table on the terminal: as many tables as its arms need."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from agentsched_bench.live.results import Result, read_result
from agentsched_bench.report.table import print_summary

ROOT = Path(__file__).parents[3]


def printed(arms: int, *, width: int) -> str:
    found: Result = read_result(ROOT / "bench/results/burst-vllm.json")
    last = found.summary[-1]
    found.summary = [msgspec.structs.replace(last, arm=f"agentsched-{n}") for n in range(arms)]
    shown = io.StringIO()
    print_summary(found, console=Console(file=shown, width=width))
    return shown.getvalue()


@pytest.mark.parametrize(("arms", "tables"), [(1, 1), (2, 1), (5, 3)])
def test_names_of_rows_and_figures_are_whole_on_eighty_columns(arms: int, tables: int) -> None:
    shown = printed(arms, width=80)
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert shown.count(" job completion, mean ") == shown.count(" merged by mistake ") == tables
    assert [f"agentsched-{n}" in shown for n in range(arms)] == [True] * arms
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_wide_terminal_has_them_side_by_side() -> None:
    assert printed(5, width=200).count(" job completion, mean ") == 1
