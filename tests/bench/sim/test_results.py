"""Summaries of simulations: what nobody completed is in no mean, and every arm says who gave up."""

from __future__ import annotations

import io

from rich.console import Console

from agentsched_bench.live.results import TraceRow
from agentsched_bench.sim.results import SCHEMA, SimResult, SimRow, print_simulation, summarise
from agentsched_bench.workload.statistics import spread


def row(arm: str, seed: int, *jct_s: float, failed: int = 0) -> SimRow:
    return SimRow(
        arm=arm,
        seed=seed,
        programs=len(jct_s),
        failed=failed,
        calls=4,
        jct_s=spread(jct_s),
        slowdown=spread(jct_s),
        first_token_wait_s=spread([1.0]),
        held_s=spread([1.0]),
        prompt_tokens=100,
        cached_share=0.5,
        again_tokens=0,
        output_tokens=10,
        busy_share=0.5,
        makespan_s=9.0,
        forced=0,
        rejected=failed,
        jct_of_bound=sum(jct_s),
        computed_of_bound=0.0 if failed else 1.25,
    )


def test_a_seed_under_which_nobody_completed_does_not_shorten_the_mean() -> None:
    rows = [row("a", 1, 4.0, 6.0), row("a", 2, failed=2), row("b", 1, failed=2)]

    some, none = summarise(rows)

    assert (some.jct_mean_s, some.jct_mean_range_s, some.slowdown_p95) == (5.0, (5.0, 5.0), 5.9)
    assert (some.jct_of_bound, some.failed) == (10.0, 2)
    assert (none.jct_mean_s, none.jct_of_bound, none.failed) == (0.0, 0.0, 2)
    # What was computed for some is not compared with what has to be for all.
    assert (some.computed_of_bound, none.computed_of_bound) == (1.25, 0.0)


def test_the_table_says_which_arm_gave_up_on_programs() -> None:
    rows = [row("direct", 1, 4.0, 6.0), row("ours", 1, 3.0, failed=1), row("dead", 1, failed=2)]
    trace = TraceRow(name="t", sha256="", programs=2, calls=4, is_synthetic=True)
    result = SimResult(
        schema=SCHEMA, command=[], versions={}, trace=trace, options={"programs": 2}, seeds=[1],
        rows=rows, summary=summarise(rows),
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=120)

    print_simulation(result, console=console)

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "ours: 1 of 2 programs gave up and are in no time above" in text
    assert "dead: 2 of 2 programs" in text
    assert "direct: 0" not in text
    dead = next(line for line in text.splitlines() if line.strip().startswith("dead "))
    assert dead.split()[1:5] == ["-", "-", "-", "-"]
    assert dead.split()[7:9] == ["-", "-"]


def test_where_nothing_was_served_no_wait_was_short_and_no_cache_empty() -> None:
    """An engine that is never there: the first tokens that never came did not come at once."""
    dead = row("a", 1, failed=2)
    dead.first_token_wait_s, dead.prompt_tokens, dead.cached_share = spread([]), 0, 0.0
    (some,) = summarise([dead, row("a", 2, 4.0)])
    assert some.cached_share == 0.5
    trace = TraceRow(name="t", sha256="", programs=2, calls=4, is_synthetic=True)
    result = SimResult(
        schema=SCHEMA, command=[], versions={}, trace=trace, options={"programs": 2}, seeds=[1],
        rows=[dead], summary=summarise([dead]),
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=120)

    print_simulation(result, console=console)

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    shown = next(line for line in lines if line.strip().startswith("a "))
    assert shown.split()[1:] == ["-"] * 8 + ["0.50", "0"]
