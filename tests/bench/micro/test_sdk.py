"""What the SDK costs is measured; how much that may be depends on the machine."""

from __future__ import annotations

import pytest

from agentsched.sdk.reporter import reporter
from agentsched_bench.micro.sdk import costs_us, imports_ms


@pytest.mark.slow
def test_calls_are_timed() -> None:
    costs = costs_us(calls=400, repeat=5)
    assert len(costs) == 7
    assert all(cost > 0 for cost in costs.values())
    assert not reporter().is_on


@pytest.mark.slow
def test_imports_are_timed() -> None:
    times = imports_ms(repeat=1)
    assert len(times) == 2
    assert all(time > 0 for time in times.values())
