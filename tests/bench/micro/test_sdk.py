"""What the SDK costs is measured, and stays far below what a call may cost."""

from __future__ import annotations

import pytest

from agentsched.sdk.reporter import reporter
from agentsched_bench.micro.sdk import costs_us, imports_ms


@pytest.mark.slow
def test_no_call_costs_much() -> None:
    costs = costs_us(calls=400, repeat=5)
    assert len(costs) == 7
    # Five times the promise: machines that run tests are slow and busy.
    assert {name: cost for name, cost in costs.items() if cost > 100} == {}
    assert not reporter().is_on


@pytest.mark.slow
def test_imports_are_timed() -> None:
    times = imports_ms(repeat=1)
    assert len(times) == 2
    assert all(0 < time < 5_000 for time in times.values())
