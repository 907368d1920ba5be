"""Regimes measured live, side by side: who stands where, what is said of gaps, and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.model import AgentschedError, ConfigError
from agentsched_bench.compare import results
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.results import ArmRow, Call, CompareResult, Program, Run
from agentsched_bench.live.results import TraceRow
from agentsched_bench.study.live import draw, grid_of, main, markdown


def run(arm: str, jct_s: float, *, gave_up: bool = False) -> Run:
    call = Call(program="p", conversation="p", step=0, sent_s=0.0, latency_s=jct_s, ttft_s=0.1)
    programs = [Program(program="p", started_s=0.0, jct_s=jct_s, outcome="completed")]
    if gave_up:
        programs.append(Program(program="q", started_s=0.0, jct_s=None, outcome="failed"))
    return Run(
        arm=arm, repeat=0, seed=0, duration_s=jct_s, is_complete=True, calls=[call],
        programs=programs,
    )  # fmt: skip


def regime(name: str, *runs: Run) -> CompareResult:
    made = CompareResult(
        schema=results.SCHEMA, name=name, how="live", command=[], started_at="", versions={},
        machine={}, spec={}, arms=[ArmRow(name=each.arm, text=each.arm) for each in runs],
        trace=TraceRow(name="t", sha256="", programs=1, calls=1, is_synthetic=True),
        baseline=runs[0].arm, alone_s={"p": 10.0}, runs=list(runs), is_complete=True,
    )  # fmt: skip
    made.summary = summarise(made)
    return made


BUSY = regime("busy", run("direct", 40.0), run("ours@ids", 12.0), run("unlimited", 10.0))
CALM = regime(
    "calm", run("direct", 20.0), run("ours@ids", 21.0), run("unlimited", 20.0), run("far", 20.0)
)


def test_arms_stand_by_their_multiples_and_those_with_gaps_last() -> None:
    grid = grid_of([BUSY, CALM])
    assert grid.regimes == ["busy", "calm"]
    assert grid.arms == ["unlimited", "ours", "direct", "far"]
    assert grid.multiple("busy", "direct") == 4.0
    assert grid.multiple("calm", "ours") == pytest.approx(1.05)
    assert grid.multiple("busy", "far") is None


def test_the_tables_mark_the_shortest_and_say_what_was_not_run() -> None:
    means, _, slow = markdown(grid_of([BUSY, CALM])).partition("\n\n")
    assert means.splitlines() == [
        "|  | busy | calm |",
        "|---|---|---|",
        "| unlimited | 10.0 | 20.0 |",
        "| ours | **12.0** | 21.0 |",
        "| direct | 40.0 | **20.0** |",
        "| far | - | 20.0 |",
    ]
    assert "| ours | 1.20 | 2.10 |" in slow.splitlines()
    assert "| far | - | 2.00 |" in slow.splitlines()


def test_a_mean_without_those_that_gave_up_says_so() -> None:
    lossy = regime("lossy", run("direct", 40.0, gave_up=True), run("unlimited", 10.0))
    assert "| direct | **40.0** (1 gave up) |" in markdown(grid_of([lossy]))


def test_one_arm_with_two_kinds_of_ids_is_two() -> None:
    both = regime("both", run("ours@ids", 1.0), run("ours", 2.0), run("unlimited", 1.0))
    assert grid_of([both]).arms == ["ours@ids", "unlimited", "ours"]


def test_what_has_no_yardstick_or_is_there_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="busy has no finished arm unlimited"):
        grid_of([regime("busy", run("direct", 40.0))])
    with pytest.raises(ConfigError, match="two results are of busy"):
        grid_of([BUSY, BUSY])


def test_the_picture_is_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    grid = grid_of([BUSY, CALM])
    draw(grid, tmp_path / "a.png")
    draw(grid, tmp_path / "b.png")
    drawn = (tmp_path / "a.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn == (tmp_path / "b.png").read_bytes()


def test_files_are_read_and_others_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.write(BUSY, tmp_path / "busy.json")
    main([tmp_path / "busy.json"], out=tmp_path / "regimes.png")
    assert "| direct | 40.0 |" in capsys.readouterr().out
    assert (tmp_path / "regimes.png").stat().st_size > 0
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(AgentschedError, match=r"other\.json"):
        main([tmp_path / "other.json"])
