"""The table: what was not measured is not shown as a very short time."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.results import CompareResult
from agentsched_bench.compare.show import print_comparison


def test_an_arm_under_which_nothing_completed_has_no_times(
    comparison: Callable[..., CompareResult],
) -> None:
    """Its engine died, say: 0 ms would be the fastest of all."""
    made = comparison({"direct": [{"a": 1.0}, {"a": 3.0}], "dead": [{"a": 1.0}, {"a": 1.0}]})
    for run in made.runs[2:]:
        run.programs[0].jct_s, run.programs[0].outcome = None, "failed"
        run.calls[0].ttft_s, run.calls[0].error = None, "ClientConnectorError: refused"
    made.summary = summarise(made)
    console = Console(file=io.StringIO(), width=120)

    print_comparison(made, console=console)

    assert isinstance(console.file, io.StringIO)
    rows = {line[:22].strip(): line[22:].split() for line in console.file.getvalue().splitlines()}
    assert rows["JCT mean"] == ["2.0", "s", "-"]
    assert rows["p50/95/99"][-1] == "-"
    assert rows["TTFT p50/99/max"][-1] == "-"
    assert rows["means of repeats"] == ["1.0", "s", "to", "3.0", "s", "-"]
