"""`agentsched simulate`: what is refused before the work, and what a stop leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from agentsched.cli.root import app
from agentsched.model import ConfigError
from agentsched_bench.sim import cli
from agentsched_bench.sim.arms import Arm, Outcome, Scenario, run_arm
from agentsched_bench.sim.results import SimResult
from agentsched_bench.workload.generate import sample_path

Simulate = Callable[..., Result]


@pytest.fixture
def simulate() -> Simulate:
    def run(*arguments: str) -> Result:
        few = ["--programs", "2", "--steps", "2", "--profile", "direct", "--profile", "fcfs"]
        return CliRunner().invoke(app, ["simulate", str(sample_path()), *few, *arguments])

    return run


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Has Ctrl-C come after so many simulations; returns the seeds of those that began."""

    def stop(count: int) -> list[int]:
        begun: list[int] = []

        def play(arm: Arm, scenario: Scenario, *, seed: int) -> Outcome:
            if len(begun) == count:
                raise KeyboardInterrupt
            begun.append(seed)
            return run_arm(arm, scenario, seed=seed)

        monkeypatch.setattr(cli, "run_arm", play)
        return begun

    return stop


def test_a_stop_keeps_the_seeds_that_every_arm_has(
    simulate: Simulate, stopped_after: Callable[[int], list[int]], tmp_path: Path
) -> None:
    stopped_after(5)
    out = tmp_path / "r.json"

    done = simulate("--seeds", "4,5,6", "--out", str(out))

    assert done.exit_code == 130
    kept = msgspec.json.decode(out.read_bytes(), type=SimResult)
    assert kept.seeds == [4, 5]
    assert [(row.arm, row.seed) for row in kept.rows] == [
        ("direct", 4),
        ("direct", 5),
        ("fcfs", 4),
        ("fcfs", 5),
    ]
    assert [arm.arm for arm in kept.summary] == ["direct", "fcfs"]


def test_a_stop_before_anything_is_done_leaves_an_earlier_result(
    simulate: Simulate, stopped_after: Callable[[int], list[int]], tmp_path: Path
) -> None:
    stopped_after(1)
    out = tmp_path / "r.json"
    out.write_text("earlier")

    assert simulate("--out", str(out)).exit_code == 130
    assert out.read_text() == "earlier"


def test_a_file_that_cannot_be_written_costs_no_work(
    simulate: Simulate, stopped_after: Callable[[int], list[int]], tmp_path: Path
) -> None:
    begun = stopped_after(99)

    done = simulate("--out", str(tmp_path / "gone" / "r.json"))

    assert isinstance(done.exception, OSError)
    assert not begun


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tenants", "a=0"),
        ("--tenants", "a=1,b=-1"),
        ("--tenants", "a=nan"),
        ("--tenants", "=1"),
        ("--scale-tokens", "nan"),
        ("--scale-tokens", "inf"),
        ("--scale-time", "nan"),
        ("--gap-cap", "nan"),
        ("--chaos", "7:0"),
        ("--chaos", "7:-1"),
        ("--chaos", "7:nan"),
        ("--chaos", "7:1:inf"),
        ("--chaos", "7:1:0"),
        ("--outage", "0@inf+5"),
        ("--slowdown", "0@1+5xinf"),
    ],
)
def test_numbers_that_are_none_are_refused(simulate: Simulate, arguments: tuple[str, str]) -> None:
    assert isinstance(simulate(*arguments).exception, ConfigError)


def test_a_policy_may_be_called_so(simulate: Simulate, tmp_path: Path) -> None:
    out = tmp_path / "r.json"

    assert not simulate("--policy", "saga", "--seeds", "1", "--out", str(out)).exit_code
    assert "saga" in [
        row.arm for row in msgspec.json.decode(out.read_bytes(), type=SimResult).summary
    ]


def test_a_composed_trace_is_simulated_as_it_asks(tmp_path: Path) -> None:
    spec, trace, out = tmp_path / "s.toml", tmp_path / "w.jsonl", tmp_path / "r.json"
    spec.write_text(
        '[workload]\nscale_tokens = 20\n[[workload.sources]]\ntrace = "sample"\nprograms = 6\n'
        '[[workload.tenants]]\nname = "looped"\n'
        'arrivals = { process = "closed", concurrency = 1 }\n'
        '[[workload.tenants]]\nname = "timed"\narrivals = { process = "regular", rate = 50 }\n'
    )
    options = ["--arrivals", "recorded", "--steps", "2", "--seeds", "1", "--profile", "direct"]
    for arguments in (
        ["trace", "compose", str(spec), "-o", str(trace)],
        ["simulate", str(trace), *options, "--out", str(out)],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.exception

    (row,) = msgspec.json.decode(out.read_bytes(), type=SimResult).rows
    assert {name: tenant.programs for name, tenant in row.tenants.items()} == {
        "looped": 3,
        "timed": 3,
    }
