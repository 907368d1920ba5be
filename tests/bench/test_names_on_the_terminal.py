"""Names are others': a tool, a tenant or an arm may be called like a tag, and is printed so."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from agentsched.cli.root import app
from agentsched_bench.calibrate.cli import _print
from agentsched_bench.calibrate.model_file import FitRow, of_config
from agentsched_bench.compare.capacity import Carried, print_capacity
from agentsched_bench.compare.scenario import make_scenario
from agentsched_bench.compare.show import print_comparison
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.results import Result, read_result
from agentsched_bench.report.sources import load
from agentsched_bench.report.table import print_summary
from agentsched_bench.sim.results import SimResult, print_simulation
from agentsched_bench.tune.cli import print_tuning
from agentsched_bench.tune.sweep import Trial, Tuning
from agentsched_bench.whatif.cli import print_answer
from agentsched_bench.whatif.predict import Answer, Course, TenantPart, Trust
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.statistics import spread

ROOT = Path(__file__).parents[2]
#: An end of a tag that nobody has opened; rich would raise, or leave it out.
NAME = "[/b]"


def compared(console: Console) -> None:
    made = load(ROOT / "bench/results/calm-vllm-quiet-2026-11-22.json")
    made.name = NAME
    for arm in made.summary:
        arm.arm = NAME + arm.arm
    print_comparison(made, console=console)


def carried(console: Console) -> None:
    workload = {"programs": 1, "sources": [{"trace": "sample"}]}
    scenario = make_scenario({"name": NAME, "workload": workload}, where="test")
    row = Carried(arm=NAME, rate=1.0, is_limit=True, slowdown_p95={"1": 1.0})
    print_capacity([row], scenario, console=console)


def replayed(console: Console) -> None:
    found: Result = read_result(ROOT / "bench/results/burst-vllm.json")
    found.trace.name = NAME
    found.summary[0] = msgspec.structs.replace(found.summary[0], arm=NAME)
    print_summary(found, console=console)


def simulated(console: Console) -> None:
    found = simulation()
    found.trace.name = NAME
    found.summary[0].arm = NAME
    print_simulation(found, console=console)


def simulation() -> SimResult:
    path = ROOT / "bench/results/sim-burst-shared.json"
    return msgspec.json.decode(path.read_bytes(), type=SimResult)


def tuned(console: Console) -> None:
    sweep = Tuning(command=[], options={}, metric="jct_mean", candidates=[NAME])
    row = simulation().rows[0]
    sweep.trials = [Trial(arm=NAME, half="tune", seed=1, score=1.0, row=row)]
    print_tuning(sweep, console=console)


def foretold(console: Console) -> None:
    times = spread([1.0])
    parts = {
        name: TenantPart(programs=1, jct_mean_s=1.0, wait_max_s=1.0) for name in (NAME, "other")
    }
    course = Course(
        name=NAME, programs=2, calls=2, jct_s=times, first_token_s=times, held_s=times,
        prompt_tokens=9, cached_tokens=1, tenants=parts,
    )  # fmt: skip
    fit = FitRow(calls=9, held_out=9, first_token_error=0.0, answer_error=0.0)
    trust = Trust(
        entries=1, diverged_at=None, divergence="", fit=fit, self_error=0.0, program_error=0.0,
        cached_error=0.0, unfinished=0,
    )  # fmt: skip
    found = Answer(
        journal="j", policy=NAME, trust=trust, recorded=course, same=course, others=[course],
        ratios={NAME: 1.0},
    )  # fmt: skip
    print_answer(found, console=console)


@pytest.mark.parametrize("printed", [compared, carried, replayed, simulated, tuned, foretold])
def test_a_name_is_printed_as_it_is(printed: Callable[[Console], None]) -> None:
    console = Console(file=io.StringIO(), width=200)

    printed(console)

    assert isinstance(console.file, io.StringIO)
    assert NAME in console.file.getvalue()


def test_a_models_name_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    config = EngineConfig.from_preset(preset("cpu-2core"))

    _print(of_config(config, source=f"fitted to {NAME}"), Path(f"{NAME}.json"))

    assert capsys.readouterr().out.count(NAME) == 2


def test_tools_and_agents_of_a_trace_are_printed_as_they_are(tmp_path: Path) -> None:
    """They are whatever somebody recorded."""
    line = msgspec.to_builtins(next(iter(generate(programs=1, seed=1, interarrival_s=1.0))))
    line["agent"] = NAME
    line["steps"][0]["tools"] = [{"name": NAME, "duration_s": 1.0}]
    path = tmp_path / "t.jsonl"
    path.write_bytes(msgspec.json.encode(line) + b"\n")

    done = CliRunner().invoke(app, ["trace", "stats", str(path)])

    assert done.exit_code == 0, done.exception
    assert f"tool {NAME}, s" in done.output
    assert f"agents: {NAME} 1" in done.output
