"""Figures of traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched_bench.workload.generate import sample_path
from agentsched_bench.workload.statistics import quantile, spread, trace_statistics
from agentsched_bench.workload.trace import Recording, read_trace


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_between_the_extremes(values: list[float], q: float) -> None:
    ordered = sorted(values)

    assert ordered[0] <= quantile(ordered, q) <= ordered[-1]
    assert quantile(ordered, 0.0) == ordered[0]
    assert quantile(ordered, 1.0) == ordered[-1]


def test_quantiles_interpolate() -> None:
    figures = spread([4.0, 1.0, 2.0, 3.0])

    assert (figures.count, figures.mean, figures.p50, figures.max) == (4, 2.5, 2.5, 4.0)
    assert spread([]).max == 0.0


def test_counts_and_shares(recording: Callable[..., Recording]) -> None:
    rows = [
        recording((100, 10, None), (150, 20, 40), (90, 5, None), name="a"),
        recording((50, 1, None), name="b", parent="a"),
    ]

    figures = trace_statistics(rows)

    assert (figures.recordings, figures.programs, figures.calls) == (2, 1, 4)
    assert figures.cut_share == 0.25
    assert figures.reused_share is None
    assert figures.steps.max == 3


def test_the_shipped_sample_is_small_synthetic_and_shaped_as_published() -> None:
    path = sample_path()
    figures = trace_statistics(read_trace(path))

    assert path.stat().st_size < 200_000
    assert figures.programs == 60
    assert figures.synthetic == figures.recordings
    assert set(figures.sources) == {"synthetic"}
    assert 15 <= figures.steps.p50 <= 45
    assert figures.reused_share is not None
    assert figures.reused_share > 0.8
    assert figures.tool_s["bash"].p50 == pytest.approx(0.18, rel=0.3)


@pytest.mark.traces
def test_shapes_of_recorded_claude_code(traces: Path) -> None:
    figures = trace_statistics(read_trace(traces / "agentcgroup-swe-rebench.jsonl.gz"))

    assert figures.recordings == 87
    assert figures.programs == 72
    assert figures.shared_first_share is not None
    assert figures.shared_first_share > 0.5
    assert figures.reused_share is not None
    assert figures.reused_share > 0.9
    assert "Bash" in figures.tool_s


@pytest.mark.traces
def test_shapes_of_recorded_mini_swe_agent(traces: Path) -> None:
    figures = trace_statistics(read_trace(traces / "miniswe-gemini3-swebench-verified.jsonl.gz"))

    assert figures.steps.p50 == pytest.approx(36, abs=3)
    assert figures.prompt_tokens.p50 == pytest.approx(14_000, rel=0.1)
    assert figures.output_tokens.p50 == pytest.approx(89, rel=0.1)
