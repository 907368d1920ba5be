"""`python -m agentsched_bench.sim.speed`: it counts what was played, and stops when told to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agentsched.model import Instant
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import DIRECT, Scenario, alone, parse_arm, play
from agentsched_bench.sim.clients import Start
from agentsched_bench.sim.speed import SCHEMA, Speed, main, measure
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs, write_trace


def scenario(*, engines: int = 1) -> Scenario:
    rows = list(generate(programs=6, seed=3, interarrival_s=1.0, steps_max=6))
    shape = ShapeOptions(scale_tokens=4, steps_max=6, context_tokens_max=6_000)
    made = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    config = EngineConfig.from_preset(preset("cpu-2core"))
    return Scenario(plans=made, engines=[config] * engines, arrivals=parse_arrivals("burst:4/s"))


@pytest.mark.slow
def test_what_was_played_is_counted_and_hashed() -> None:
    made = scenario(engines=2)
    row = measure("fcfs", made, seed=1, digest=True)
    assert row.is_finished
    assert row.calls == sum(plan.calls for plan in made.plans)
    assert row.turns > 2 * row.calls
    assert row.calls_per_cpu_s > 0
    assert row.jct_mean_s is not None
    assert 0 < row.jct_mean_s <= row.simulated_s
    assert row.digest == measure("fcfs", made, seed=1, digest=True).digest
    assert row.digest != measure("fcfs", made, seed=2, digest=True).digest


def test_a_simulation_whose_time_is_up_ends_and_says_so() -> None:
    made = scenario()
    row = measure("fcfs", made, seed=1, cpu_limit_s=0.0)
    assert not row.is_finished
    assert 0 < row.calls < sum(plan.calls for plan in made.plans)
    assert row.turns == 64
    assert row.jct_mean_s is None
    assert row.digest is None


def test_the_command_prints_and_writes_one_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = tmp_path / "trace.jsonl", tmp_path / "speed.json"
    write_trace(generate(programs=3, seed=3, interarrival_s=1.0, steps_max=3), trace)
    options = ["--preset", "cpu-2core", "--scale-tokens", "8", "--engines", "2", "--programs", "5"]
    options += ["--profile", "fcfs", "--seeds", "1,2", "--arrivals", "burst:4/s"]
    assert main([str(trace), *options, "--out", str(out)]) == 0
    found = msgspec.json.decode(out.read_bytes(), type=Speed)
    assert msgspec.json.decode(capsys.readouterr().out, type=Speed) == found
    assert found.schema == SCHEMA
    assert (found.programs, found.engines, found.block_size) == (5, 2, 32)
    assert [(row.arm, row.seed) for row in found.rows] == [("fcfs", 1), ("fcfs", 2)]
    assert all(row.is_finished for row in found.rows)
    assert found.alone_cpu_s is not None
    assert found.total_cpu_s >= sum(row.cpu_s for row in found.rows)
    assert found.peak_memory_mib > 10


def test_alone_is_what_the_arm_of_engines_alone_takes() -> None:
    """Its scheduler is made once and has no graph, which must change nothing."""
    made = scenario()
    found = alone(made)
    for plan in made.plans[:1]:
        start = Start(plan=plan, at=Instant(0))
        outcome = play(parse_arm(DIRECT), made, [start], engines=made.engines)
        assert outcome.runs[0].ended_at is not None
        assert found[plan.program] == outcome.runs[0].ended_at / 1e9
