"""Replay on a real vLLM: lengths, caching and counts are its own."""

from __future__ import annotations

import pytest

from agentsched.proxy.request import Dialect
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.live.replay import Arm, ReplayOptions, replay_all
from agentsched_bench.live.results import SCHEMA, ArmRow, Recorder, Result, TraceRow
from agentsched_bench.workload.generate import sample_path
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs, read_trace


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    "dialect", [Dialect.CHAT, Dialect.COMPLETIONS, Dialect.RESPONSES, Dialect.MESSAGES]
)
async def test_real_lengths_are_the_planned_ones(dialect: Dialect, vllm_url: str) -> None:
    rows = list(read_trace(sample_path()))
    shape = ShapeOptions(scale_tokens=16, gap_cap_s=0.0, steps_max=4, context_tokens_max=3_000)
    plans = plan_programs(group_programs(rows)[:4], shape, shared=SharedPrompts.learn(rows))
    arm = Arm(name="vllm", url=vllm_url)
    trace = TraceRow(name="sample", sha256="", programs=4, calls=0, is_synthetic=True)
    recorder = Recorder(
        Result(
            schema=SCHEMA,
            command=[],
            seed=0,
            versions={},
            trace=trace,
            options={},
            arms=[ArmRow(name="vllm", url=vllm_url, ids="none")],
        ),
        path=None,
    )
    options = ReplayOptions(
        dialect=dialect, arrivals=parse_arrivals("closed:4"), salt=f"test/{dialect}"
    )

    await replay_all(plans, [arm], options, recorder)

    (summary,) = recorder.result.summary
    assert [row.error for row in recorder.result.calls if row.error] == []
    assert summary.programs["completed"] == 4
    assert summary.prompt_error == pytest.approx(0.0, abs=0.05)
    for row in recorder.result.calls:
        if dialect is not Dialect.MESSAGES:
            assert row.output_tokens == row.planned_output_tokens
        if dialect is Dialect.COMPLETIONS:
            assert row.prompt_tokens == row.planned_prompt_tokens
    assert summary.cached_share is not None
    assert summary.cached_share > 0.5
