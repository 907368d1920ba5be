"""Measured beside predicted: on an engine whose truth is known, and the whole of it in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from agentsched.model import ConfigError
from agentsched_bench.calibrate.fit import SPEEDS, fit_costs
from agentsched_bench.compare.arms import parse_side
from agentsched_bench.compare.cli import new_result
from agentsched_bench.compare.fleet import engines_of
from agentsched_bench.compare.load import Load, make_load
from agentsched_bench.compare.results import Call, Machine, Program, Run, write
from agentsched_bench.compare.scenario import load_scenario
from agentsched_bench.compare.simulated import alone_seconds, simulate_run
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.fidelity import __main__ as fidelity
from agentsched_bench.fidelity.__main__ import print_fidelity
from agentsched_bench.fidelity.existing import fit_to, read_measured
from agentsched_bench.fidelity.report import (
    ArmFidelity,
    Fidelity,
    Figures,
    drift_of,
    error,
    figures_of,
    is_order_kept,
    served_of,
)

SMALL = """
name = "small"
[engine]
preset = "h100-8b"
blocks = 600
block_size = 16
[workload]
programs = 5
steps_max = 4
gap_cap_s = 1
context_tokens_max = 7936
arrivals = { process = "regular", rate = 4.0 }
sources = [{ trace = "sample" }]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def direct(path: Path) -> tuple[Run, Load, EngineConfig]:
    """A run of the model itself: what there is to find out is known."""
    scenario = load_scenario(path)
    load = make_load(scenario.workload, seed=0, beside=path.parent)
    side = parse_side("direct", engine=scenario.engine)
    run = simulate_run(side, load, scenario, repeat=0, on_call=lambda _done: None)
    return run, load, engines_of(scenario.engine)[0]


def figures(jct_s: float) -> Figures:
    return Figures(
        jct_mean_s=jct_s,
        jct_p95_s=jct_s,
        ttft_mean_s=1,
        ttft_p95_s=1,
        cached_share=0.5,
        completed=1,
    )


def test_calls_of_a_run_are_what_its_engine_had(small: Path) -> None:
    run, load, config = direct(small)

    served = served_of(run, load, block_size=config.block_size)

    assert len(served) == len(run.calls) == load.calls
    assert drift_of(served, config) == pytest.approx(1.0, abs=0.02)
    slow = [msgspec.structs.replace(call, latency_s=call.latency_s * 2) for call in run.calls]
    run.calls = slow
    assert drift_of(served_of(run, load, block_size=config.block_size), config) == pytest.approx(
        2.0, abs=0.05
    )


@pytest.mark.slow
def test_costs_are_found_again_from_a_load(small: Path) -> None:
    run, load, config = direct(small)

    fit = fit_costs(served_of(run, load, block_size=config.block_size), config)

    assert fit.row.first_token_error < 0.1
    assert fit.row.answer_error < 0.1


def test_failed_calls_and_programs_are_left_out() -> None:
    run = Run(arm="a", repeat=0, seed=0)
    run.programs = [
        Program(program="p", started_s=0, jct_s=4.0, outcome="completed"),
        Program(program="q", started_s=0, jct_s=None, outcome="failed"),
    ]
    good = Call(
        program="p", conversation="p", step=0, sent_s=0, latency_s=4, ttft_s=1.0,
        prompt_tokens=100, cached_tokens=25,
    )  # fmt: skip
    run.calls = [good, msgspec.structs.replace(good, ttft_s=99.0, error="gone")]

    found = figures_of(run)

    assert (found.jct_mean_s, found.completed) == (4.0, 1)
    assert (found.ttft_mean_s, found.cached_share) == (1.0, 0.25)


def test_what_nobody_completed_and_no_engine_told_has_no_figure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An arm under which all gave up is not the fastest, nor is a cache that is not told empty."""
    run = Run(arm="a", repeat=0, seed=0)
    run.programs = [Program(program="q", started_s=0, jct_s=None, outcome="failed")]
    call = Call(program="q", conversation="q", step=0, sent_s=0, latency_s=4, prompt_tokens=100)
    run.calls = [call]
    none = figures_of(run)
    assert none.cached_share is None
    told = msgspec.structs.replace(call, cached_tokens=25)
    run.calls = [call, told]
    assert figures_of(run).cached_share == 0.25

    arms = [
        ArmFidelity(arm="a", measured=[none], refitted=[figures(5)]),
        ArmFidelity(arm="b", measured=[figures(10), none], refitted=[figures(9)]),
    ]
    assert is_order_kept(arms, "refitted")
    assert error(arms[0].measured, arms[0].refitted, "jct_mean_s") is None
    assert error(arms[1].measured, arms[1].refitted, "jct_mean_s") == pytest.approx(-0.1)
    found = Fidelity(command=[], scenario={}, machine={}, versions={}, arms=arms)
    print_fidelity(found, console=Console(width=120))
    shown = capsys.readouterr().out
    assert " 0.00" not in shown
    assert "a: 0 to 1 programs of a run completed, and times are of those" in shown


def test_a_file_that_cannot_be_written_costs_no_measurement(small: Path, tmp_path: Path) -> None:
    (tmp_path / "f.json").mkdir()

    with pytest.raises(IsADirectoryError):
        fidelity.main(small, out=tmp_path / "f.json")
    assert not (tmp_path / "f.logs").exists()


def test_an_order_is_kept_unless_a_clear_winner_loses() -> None:
    def arms(*pairs: tuple[float, float]) -> list[ArmFidelity]:
        return [
            ArmFidelity(arm=str(number), measured=[figures(seen)], probes=[figures(said)])
            for number, (seen, said) in enumerate(pairs)
        ]

    assert is_order_kept(arms((10, 7), (20, 9)), "probes")
    assert not is_order_kept(arms((10, 9), (20, 7)), "probes")
    assert is_order_kept(arms((10, 9), (10.2, 7)), "probes"), "a tie has no order"
    assert error([figures(10), figures(20)], [figures(12)], "jct_mean_s") == pytest.approx(-0.2)
    assert error([], [figures(12)], "jct_mean_s") is None


@pytest.fixture
def measured(small: Path, tmp_path: Path) -> Path:
    """A comparison as it lies in a file after a live run; the engine was the model itself."""
    scenario = load_scenario(small)
    loads = [make_load(scenario.workload, seed=0, beside=small.parent)]
    names = ("direct", "unlimited", "agentsched", "vllm-router")
    sides = [parse_side(name, engine=scenario.engine) for name in names]
    result = new_result(scenario, sides, loads, how="live", alone_s={})
    for side in sides[:3]:
        run = simulate_run(side, loads[0], scenario, repeat=0, on_call=lambda _done: None)
        result.runs.append(run)
    write(result, tmp_path / "measured.json")
    return tmp_path / "measured.json"


@pytest.mark.slow
def test_a_comparison_that_is_there_is_predicted(measured: Path) -> None:
    out = measured.with_name("f.json")
    command = [sys.executable, "-m", "agentsched_bench.fidelity", str(measured)]
    command += ["--beside", str(measured.parent), "-o", str(out)]
    fit = ["--fit", "direct", "--fit", "unlimited"]
    done = subprocess.run(
        [*command, *fit], capture_output=True, text=True, timeout=200, check=False
    )

    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(out.read_bytes(), type=Fidelity)
    assert found.fitted_to == ["direct", "unlimited"]
    assert [arm.arm for arm in found.arms] == ["direct", "unlimited", "agentsched"]
    for arm in found.arms:
        assert len(arm.refitted) == len(SPEEDS)
        off = error(arm.measured, arm.refitted, "jct_mean_s")
        assert off is not None
        assert abs(off) < 0.1
    assert "refitted: order of the arms kept" in done.stdout
    model = out.with_suffix(".logs") / "model.json"
    again = subprocess.run(
        [*command, "--model", str(model)], capture_output=True, text=True, timeout=200, check=False
    )
    assert again.returncode == 0, again.stderr
    source = "the engine is as given: fitted to the calls of direct, unlimited in"
    assert source in " ".join(again.stdout.split())
    assert msgspec.json.decode(out.read_bytes(), type=Fidelity).arms == found.arms


def test_only_what_was_measured_is_compared(measured: Path, small: Path) -> None:
    read = read_measured(measured, beside=small.parent)

    assert [side.name for side in read.sides] == ["direct", "unlimited", "agentsched"]
    assert len(read.runs("direct")) == 1
    with pytest.raises(ConfigError, match="'agentsched': give direct or unlimited"):
        fit_to(read, ["agentsched"])
    # As in the comparison itself, nothing comes from a run in which the machine stood still.
    (run,) = read.runs("direct")
    stall = Machine(watched_s=60, gaps=1, gaps_s=30, longest_gap_s=30)
    read.result.runs.append(msgspec.structs.replace(run, repeat=1, machine=stall))
    assert read.runs("direct") == [run]
    run.machine = stall
    assert len(read.runs("direct")) == 2
    simulated = read.result
    simulated.how = "simulated"
    write(simulated, measured)
    with pytest.raises(ConfigError, match=r"was not measured \(simulated\)"):
        read_measured(measured, beside=small.parent)


@pytest.mark.slow
def test_an_engine_is_probed_loaded_and_predicted(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    command = [sys.executable, "-m", "agentsched_bench.fidelity", str(small), "--probes", "1"]
    done = subprocess.run(
        [*command, "-o", str(out)], capture_output=True, text=True, timeout=200, check=False
    )

    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(out.read_bytes(), type=Fidelity)
    assert [arm.arm for arm in found.arms] == ["direct", "agentsched"]
    for arm in found.arms:
        for rows in (arm.measured, arm.probes, arm.refitted):
            assert [row.completed for row in rows] == [5]
            assert all(row.jct_mean_s > 0 for row in rows)
        # The cache is the model's own: it holds what the engine held.
        assert arm.probes[0].cached_share == pytest.approx(arm.measured[0].cached_share, abs=0.1)
    assert found.drift is not None
    assert found.probes is not None
    assert found.probes.blocks == 600
    assert found.refitted is not None
    assert "order of the arms" in done.stdout


@pytest.mark.parametrize("tells", [True, False])
def test_what_was_told_of_deadlines_is_told_in_the_model(small: Path, tells: bool) -> None:
    changes = ["measure.deadlines=[1.5, 4.0]", f"measure.tells_deadlines={str(tells).lower()}"]
    scenario = load_scenario(small, changes=changes)
    loads = [make_load(scenario.workload, seed=0, beside=small.parent)]
    side = parse_side("agentsched@agentsched", engine=scenario.engine)
    alone_s = alone_seconds(loads, scenario.engine)
    result = new_result(scenario, [side], loads, how="live", alone_s=alone_s)
    result.runs = [Run(arm=side.name, repeat=0, seed=0, is_complete=True)]
    path = small.with_name("measured.json")
    write(result, path)

    (load,) = read_measured(path, beside=small.parent).loads

    assert result.deadlines_s
    assert load.deadlines_s == (result.deadlines_s if tells else {})
