"""Carrying a comparison out: by turns, resumable, in the simulator and live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agentsched_bench.compare import results
from agentsched_bench.compare.load import make_load
from agentsched_bench.compare.results import CompareResult, Run
from agentsched_bench.compare.run import Store, paced
from agentsched_bench.compare.scenario import load_scenario
from agentsched_bench.compare.show import Estimate, span

_MAIN = "import sys; from agentsched.cli import main; sys.exit(main())"


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, "compare", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_a_run_replaces_what_an_interrupted_one_left(
    comparison: Callable[..., CompareResult], tmp_path: Path
) -> None:
    made = comparison({"direct": [{"a": 1.0}], "ours": [{"a": 2.0}]})
    made.runs[1].is_complete = False
    store = Store(made, path=tmp_path / "r.json.gz")
    assert store.has("direct", 0)
    assert not store.has("ours", 0)

    again = Run(arm="ours", repeat=0, seed=0, is_complete=True, programs=made.runs[0].programs)
    store.add(again)

    read = results.read(tmp_path / "r.json.gz")
    assert [(run.arm, run.is_complete) for run in read.runs] == [("direct", True), ("ours", True)]
    assert [arm.arm for arm in read.summary] == ["direct", "ours"]


def test_a_load_keeps_step_with_a_faster_engine(small: Path) -> None:
    load = make_load(load_scenario(small).workload, seed=0, beside=small.parent)

    fast = paced(load, speed=2.0)

    pairs = zip(load.starts_s, fast.starts_s, strict=True)
    assert all(a is not None and b == pytest.approx(a / 2) for a, b in pairs)
    before, after = load.plans[0].main.calls[0], fast.plans[0].main.calls[0]
    assert after.pause_s == pytest.approx(before.pause_s / 2)
    assert after.prompt_tokens == before.prompt_tokens


def test_the_same_seed_gives_the_same_load_and_another_one_another(small: Path) -> None:
    workload = load_scenario(small).workload

    def load(seed: int) -> object:
        made = make_load(workload, seed=seed, beside=small.parent)
        return [
            (plan.program, start) for plan, start in zip(made.plans, made.starts_s, strict=True)
        ]

    assert load(0) == load(0)
    assert load(0) != load(1)


def test_estimates_learn_from_what_has_run() -> None:
    estimate = Estimate(["a", "b", "a", "b"], expected_s=10)
    assert estimate.left_s() == 40
    estimate.ended("a", took_s=30)
    # The other arm has not run: it is taken for the average.
    assert estimate.left_s() == 90
    estimate.ended("b", took_s=10)
    assert estimate.left_s(in_run_s=5) == 35
    assert (span(0.2), span(42), span(600), span(7200)) == ("200 ms", "42 s", "10 min", "2.0 h")


@pytest.mark.slow
def test_simulated_twice_is_equal_and_goes_on_where_it_stopped(small: Path, tmp_path: Path) -> None:
    done = command(str(small), "--simulate", "--out", "a.json", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [arm["arm"] for arm in msgspec.json.decode(done.stdout)] == ["direct", "passthrough"]
    command(str(small), "--simulate", "--out", "b.json", folder=tmp_path)
    first, second = results.read(tmp_path / "a.json"), results.read(tmp_path / "b.json")
    assert first.runs == second.runs
    assert first.is_complete

    more = command(str(small), "--simulate", "--out", "a.json", "--repeat", "3", folder=tmp_path)

    assert more.returncode == 0, more.stderr
    assert "run 1 of 2" in more.stderr
    longer = results.read(tmp_path / "a.json")
    assert [(r.arm, r.repeat) for r in longer.runs[4:]] == [("direct", 2), ("passthrough", 2)]
    assert longer.runs[:4] == first.runs


@pytest.mark.slow
def test_another_comparison_is_not_written_over(small: Path, tmp_path: Path) -> None:
    command(str(small), "--simulate", "--out", "a.json", folder=tmp_path)

    other = command(
        str(small), "--simulate", "--out", "a.json", "--set", "engine.blocks=400", folder=tmp_path
    )

    assert other.returncode == 2
    assert "holds another comparison" in other.stderr


@pytest.mark.slow
def test_live_arms_are_started_measured_and_stopped(small: Path, tmp_path: Path) -> None:
    done = command(
        str(small), "--repeat", "1", "--arm", "direct", "--arm", "agentsched",
        "--arm", "gone=false {port}", "--out", "live.json", "--report", "live.html",
        folder=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    result = results.read(tmp_path / "live.json")
    assert [(run.arm, run.is_complete) for run in result.runs] == [
        ("direct", True),
        ("agentsched", True),
    ]
    direct, ours = result.runs
    assert len(direct.calls) == len(ours.calls) > 0
    assert all(call.cached_tokens is not None for call in direct.calls)
    assert all(call.held_s is not None and call.label for call in ours.calls)
    assert ours.decisions_total["Dispatch"] == len(ours.calls)
    assert direct.busy_share is not None
    assert direct.readings
    assert "did not start" in result.arms[2].missing
    assert (tmp_path / "live.logs/agentsched-0.log").exists()
    assert (tmp_path / "live.html").stat().st_size > 20_000


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_running(
    small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    text = small.read_text().replace("speed = 20.0", "speed = 0.2")
    small.write_text(text)
    arguments = ["compare", str(small), "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", _MAIN, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if line.startswith(b"run "))
        assert told.startswith(b"run 1 of "), "its engine serves, and the first run has begun"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGINT)
        process.communicate()

    assert process.returncode == 130
    assert not results.read(out).is_complete
    assert children
    assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []
