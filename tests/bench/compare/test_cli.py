"""Going on from an earlier result: with what is the same, against the arm that was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

from agentsched.cli.root import app
from agentsched.model import ConfigError
from agentsched_bench.compare import cli, results
from agentsched_bench.compare.capacity import at_rate
from agentsched_bench.compare.cli import resumed
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.results import ArmRow, CompareResult
from agentsched_bench.compare.scenario import load_scenario
from agentsched_bench.whole_file import only_writer

Make = Callable[..., CompareResult]
ONCE = [{"a": 1.0}]


def asked(made: CompareResult, *arms: object, baseline: str | None = None) -> CompareResult:
    """The comparison with a specification that has these arms."""
    made.spec = {"arms": list(arms), "measure": {}, "baseline": baseline}
    return made


def named(run: str, **more: str) -> dict[str, object]:
    return {"name": "ours", "run": run, "ids": None, "client": None} | more


def test_an_arm_that_is_another_by_now_is_not_gone_on_with(
    comparison: Make, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    made = asked(comparison({"ours": ONCE}), named("fcfs"))
    made.arms = [ArmRow(name="ours", text="fcfs", version="1")]
    results.write(made, path)

    def again(run: str, *, ids: str = "none", version: str = "1", **more: str) -> int:
        new = asked(comparison({"ours": []}), named(run, **more))
        new.arms = [ArmRow(name="ours", text=run, ids=ids, version=version)]
        return len(resumed(new, path, redo_stalled=False).runs)

    assert again("fcfs") == 1
    assert again("fcfs", version="") == 1, "a peer that is not installed now has no version"
    for changed in (
        {"run": "saga"},
        {"run": "fcfs", "ids": "session"},
        {"run": "fcfs", "version": "2"},
        {"run": "fcfs", "client": "mini-swe-agent"},
    ):
        with pytest.raises(ConfigError, match="another arm or version that is called 'ours'"):
            again(**changed)


def test_runs_of_another_version_are_not_gone_on_with(comparison: Make, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    made = asked(comparison({"direct": ONCE}), "direct")
    made.versions = {"agentsched": "0.1.0"}
    results.write(made, path)
    new = asked(comparison({"direct": []}), "direct")
    new.versions = {"agentsched": "0.2.0"}

    with pytest.raises(ConfigError, match=r"runs of agentsched 0\.1\.0, this is 0\.2\.0"):
        resumed(new, path, redo_stalled=False)


def test_engines_that_are_others_by_now_are_not_gone_on_with(
    comparison: Make, tmp_path: Path
) -> None:
    """`agentsched calibrate` has written the same file again, say."""
    path = tmp_path / "r.json"
    results.write(asked(comparison({"direct": ONCE}), "direct"), path)
    new = asked(comparison({"direct": []}), "direct")
    new.engines_sha256 = "b"
    assert len(resumed(new, path, redo_stalled=False).runs) == 1, "it does not say"

    earlier = asked(comparison({"direct": ONCE}), "direct")
    earlier.engines_sha256 = "a"
    results.write(earlier, path)

    with pytest.raises(ConfigError, match="another comparison"):
        resumed(new, path, redo_stalled=False)


def test_the_first_arm_is_the_baseline_though_it_ran_last(comparison: Make, tmp_path: Path) -> None:
    """`--only ours` first, and then the rest: the others are compared with what was asked."""
    path = tmp_path / "r.json"
    arms = ("direct", "ours")
    results.write(asked(comparison({"ours": ONCE}), *arms), path)

    assert resumed(asked(comparison({"direct": []}), *arms), path, redo_stalled=False).baseline == (
        "direct"
    )
    # And with the baseline done before, the others alone are compared with it.
    results.write(asked(comparison({"direct": ONCE}), *arms, baseline="direct"), path)
    later = asked(comparison({"ours": []}), *arms, baseline="direct")
    assert resumed(later, path, redo_stalled=False).baseline == "direct"


def test_times_alone_of_earlier_repeats_are_kept(comparison: Make, tmp_path: Path) -> None:
    """Fewer repeats this time: the earlier runs stay, and what a program takes alone with them."""
    path = tmp_path / "r.json"
    made = asked(comparison({"direct": [{"p": 4.0}, {"q": 8.0}]}), "direct")
    made.alone_s, made.alone_how = {"p": 1.0, "q": 2.0}, "by the engine's model"
    results.write(made, path)
    new = asked(comparison({"direct": []}), "direct")
    new.alone_s = {"p": 1.0}

    again = resumed(new, path, redo_stalled=False)

    (figures,) = summarise(again)
    assert figures.slowdown is not None
    assert (figures.completed, figures.slowdown.count) == (2, 2)
    assert again.alone_how == "by the engine's model"


def test_each_rate_has_logs_of_its_own(small: Path) -> None:
    """Arms and repeats have the same names at all of them, and so would their journals."""
    scenario = load_scenario(small)
    rates = [at_rate(scenario, rate) for rate in (0.1, 0.2)]

    found = [cli._logs(Path("r.json"), Path("logs"), each, is_one=False) for each in rates]

    assert found == [Path("logs/small-0.1"), Path("logs/small-0.2")]
    assert cli._logs(Path("r.json"), Path("logs"), scenario, is_one=True) == Path("logs")
    assert cli._logs(Path("r.json.gz"), None, scenario, is_one=True) == Path("r.logs")


def test_runs_of_another_machine_are_not_gone_on_with(comparison: Make, tmp_path: Path) -> None:
    """The machine that one has is another one after a restart in a cloud, say."""
    path = tmp_path / "r.json"
    here = {"processor": "fast", "cpus": "2", "load_before": "0.10"}

    def again(machine: dict[str, str], *, how: Literal["live", "simulated"] = "live") -> int:
        made, new = (asked(comparison({"direct": runs}), "direct") for runs in (ONCE, []))
        made.how = new.how = how
        made.machine, new.machine = here, machine
        results.write(made, path)
        return len(resumed(new, path, redo_stalled=False).runs)

    assert again(here | {"load_before": "1.50"}) == 1
    assert again({}) == 1, "it does not say"
    assert again({"processor": "slow"}, how="simulated") == 1, "virtual time is the same everywhere"
    for other in ({"processor": "slow"}, {"cpus": "4"}):
        with pytest.raises(ConfigError, match="runs of another machine"):
            again(here | other)


def test_two_comparisons_at_once_do_not_write_over_each_other(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with only_writer(out):
        with pytest.raises(ConfigError, match=r"r\.json is being written by another process"):
            cli.compare(small, simulate=True, out=out, as_json=True)
        cli.compare(small, simulate=True, out=out, dry_run=True)
        assert not out.exists()


@pytest.mark.slow
def test_a_folder_of_other_tools_recordings_is_compared(tmp_path: Path) -> None:
    """As `simulate` takes one: nothing but our own traces was looked for in it."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("one", "two"):
        said = [{"role": "user", "content": f"mend {name}"}]
        for number in range(3):
            said.append({"role": "assistant", "content": f"look at {name} {number}"})
            said.append({"role": "user", "content": "nothing there " * 30})
        said.append({"role": "assistant", "content": "done"})
        (folder / f"{name}.traj").write_text(json.dumps({"messages": said}))
    out = tmp_path / "r.json"
    asked_for = ["compare", str(folder), "--simulate", "--arm", "direct", "--out", str(out)]

    done = CliRunner().invoke(app, [*asked_for, "--set", "workload.programs=2"])

    assert done.exit_code == 0, done.output
    assert results.read(out).trace.programs == 2
    assert {row.outcome for row in results.read(out).runs[0].programs} == {"completed"}


def test_a_folder_without_any_recording_says_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.traj, \.json"):
        cli._traces(tmp_path)
