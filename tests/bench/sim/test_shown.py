"""What a simulation shows on a narrow terminal."""

from __future__ import annotations

import io

from rich.console import Console

from agentsched_bench.sim.results import (
    SCHEMA,
    SimResult,
    SimSummary,
    TraceRow,
    print_simulation,
)


def summary(arm: str) -> SimSummary:
    return SimSummary(
        arm=arm,
        jct_mean_s=1_064.8,
        jct_p50_s=1_062.4,
        jct_p95_s=1_104.5,
        jct_mean_range_s=(1.0, 2.0),
        slowdown_p95=104.66,
        slowdown_p95_range=(1.0, 2.0),
        first_token_wait_max_s=120.1,
        cached_share=0.231,
        again_tokens=1.0,
        busy_share=0.87,
        forced=4_321.0,
        failed=0,
        jct_of_bound=13.45,
        computed_of_bound=127.11,
    )


def test_no_figure_is_cut_off_on_eighty_columns() -> None:
    arms = ["direct", "agentsched,order=shortest-prompt"]
    result = SimResult(
        schema=SCHEMA,
        command=[],
        versions={},
        trace=TraceRow(name="t", sha256="", programs=3, calls=37, is_synthetic=False),
        options={"programs": 3, "shape": "tokens / 8"},
        seeds=[1],
        summary=[summary(arm) for arm in arms],
    )
    shown = io.StringIO()
    print_simulation(result, console=Console(width=80, file=shown))
    lines = shown.getvalue().splitlines()
    [head] = [line for line in lines if "JCT s" in line]
    assert head.split()[-2:] == ["busy", "forced"]
    [row] = [line for line in lines if line.split()[:1] == ["direct"]]
    assert row.split()[-2:] == ["0.87", "4321"]
    # What the columns mean is told in whole lines.
    told = lines[lines.index(next(line for line in lines if line.startswith("slow:"))) :]
    assert all(len(line) <= 80 for line in told)
    assert [line.partition(":")[0] for line in told[:-1]] == ["slow", "x bound", "x comp", "forced"]
    assert told[-1] == "Not as recorded: tokens / 8 (--scale-tokens, --scale-time, --gap-cap)."
