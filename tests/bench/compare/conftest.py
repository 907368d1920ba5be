"""A comparison small enough to read, and a scenario small enough to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentsched_bench.compare import results
from agentsched_bench.compare.results import ArmRow, Call, CompareResult, Program, Run
from agentsched_bench.live.results import TraceRow

SMALL = """
name = "small"
question = "Does it run?"
arms = ["direct", "passthrough"]
[engine]
blocks = 300
max_model_len = 8192
speed = 20.0
[measure]
repeat = 2
[workload]
programs = 3
steps_max = 3
gap_cap_s = 2
context_tokens_max = 7936
arrivals = { process = "regular", rate = 4.0 }
sources = [{ trace = "sample" }]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A scenario that runs in seconds."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def comparison() -> Callable[..., CompareResult]:
    """Makes a comparison from job completion times: {arm: [{program: seconds} per repeat]}."""

    def make(times: dict[str, list[dict[str, float]]]) -> CompareResult:
        names = list(times)
        runs = []
        for arm, repeats in times.items():
            for repeat, row in enumerate(repeats):
                calls = [
                    Call(
                        program=name,
                        conversation=name,
                        step=0,
                        sent_s=0.0,
                        latency_s=jct_s,
                        ttft_s=jct_s / 2,
                        prompt_tokens=100,
                        cached_tokens=40,
                        output_tokens=10,
                        known_tokens=60,
                    )
                    for name, jct_s in row.items()
                ]
                programs = [
                    Program(program=name, started_s=0.0, jct_s=jct_s, outcome="completed")
                    for name, jct_s in row.items()
                ]
                runs.append(
                    Run(
                        arm=arm,
                        repeat=repeat,
                        seed=repeat,
                        duration_s=max(row.values(), default=0.0),
                        is_complete=True,
                        calls=calls,
                        programs=programs,
                    )
                )
        return CompareResult(
            schema=results.SCHEMA,
            name="made",
            how="live",
            command=[],
            started_at="",
            versions={},
            machine={},
            spec={},
            trace=TraceRow(name="t", sha256="", programs=1, calls=1, is_synthetic=True),
            arms=[ArmRow(name=name, text=name) for name in names],
            baseline=names[0],
            runs=runs,
        )

    return make
