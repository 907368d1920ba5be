"""The process as metrics."""

from __future__ import annotations

import asyncio

import pytest
from live import eventually
from prometheus_client import CollectorRegistry

from agentsched.telemetry import process
from agentsched.telemetry.process import LoopLag


async def test_a_late_loop_is_told_to_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader takes nothing away from the next: a second server, a push, somebody's look."""
    monkeypatch.setattr(process, "_LOOK_EVERY_S", 0.01)
    registry = CollectorRegistry()
    lag = LoopLag()
    registry.register(lag)

    def told() -> float:
        return registry.get_sample_value("agentsched_loop_lag_seconds") or 0.0

    loop, late_by = asyncio.get_running_loop(), 0.0
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + late_by)
    watching = asyncio.create_task(lag.watch())
    await asyncio.sleep(0)
    late_by = 5.0  # the loop stood still
    await eventually(lambda: told() > 4)
    assert told() > 4
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
