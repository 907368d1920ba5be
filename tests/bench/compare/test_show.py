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


def shown(made: CompareResult) -> str:
    made.summary = summarise(made)
    console = Console(file=io.StringIO(), width=120)
    print_comparison(made, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_an_engine_does_not_tell_of_its_cache_is_not_0(
    comparison: Callable[..., CompareResult],
) -> None:
    """To compute nothing would be the best that an arm can do."""
    made = comparison({"told": [{"a": 1.0}], "silent": [{"a": 1.0}]})
    made.runs[1].calls[0].cached_tokens = None

    rows = {line[:22].strip(): line[22:].split() for line in shown(made).splitlines()}

    assert rows["computed"] == ["60", "-"]
    assert rows["computed again"] == ["20", "-"]


def test_what_an_engine_does_not_tell_of_its_cache_is_null_in_the_result(
    comparison: Callable[..., CompareResult],
) -> None:
    """Whoever reads the file took 0 cached tokens for a cache that gave nothing back."""
    made = comparison({"told": [{"a": 1.0}], "silent": [{"a": 1.0}]})
    made.runs[1].calls[0].cached_tokens = None

    told, silent = summarise(made)

    assert (told.cached_tokens, told.computed_tokens, told.again_tokens) == (40, 60, 20)
    assert (silent.cached_tokens, silent.computed_tokens, silent.again_tokens) == (None, None, None)
    assert silent.cached_share is None
    assert silent.prompt_tokens == 100
    # One that another told, and that cached nothing, is a count.
    made.runs[1].calls[0].cached_tokens = 0
    assert summarise(made)[1].cached_tokens == 0


def test_sums_over_unlike_numbers_of_runs_are_called_so(
    comparison: Callable[..., CompareResult],
) -> None:
    """An arm that did not start again has computed less than one that ran three times."""
    even = comparison({"direct": [{"a": 1.0}] * 3, "ours": [{"a": 1.0}] * 3})
    uneven = comparison({"direct": [{"a": 1.0}] * 3, "ours": [{"a": 1.0}]})

    assert "unlike numbers of runs" not in shown(even)
    assert "Arms have unlike numbers of runs (direct 3, ours 1)" in shown(uneven)


def test_many_arms_stand_in_several_tables_whose_cells_are_whole(
    comparison: Callable[..., CompareResult],
) -> None:
    """Seventeen columns on eighty characters were three characters wide each."""
    arms = [f"arm-{number:02}" for number in range(17)]
    made = comparison({arm: [{"a": 1.0}, {"a": 3.0}] for arm in arms})
    made.summary = summarise(made)
    console = Console(file=io.StringIO(), width=80)

    print_comparison(made, console=console)

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if line.split()[:1] and line.split()[0] in arms]
    assert [arm for head in heads for arm in head] == arms
    means = [line[22:].split() for line in lines if line.strip().startswith("JCT mean")]
    assert [cell for row in means for cell in row] == ["2.0", "s"] * len(arms)
