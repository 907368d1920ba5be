"""The process as metrics."""

from __future__ import annotations

import asyncio
import time

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

    watching = asyncio.create_task(lag.watch())
    await asyncio.sleep(0)
    time.sleep(0.05)  # noqa: ASYNC251  # the loop stands still
    await eventually(lambda: told() > 0.03)
    assert told() > 0.03
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
