"""The process itself as metrics: version, memory, files, tasks, and how late its loop is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.version import __version__

_LOOK_EVERY_S: Final = 0.5
_WINDOW_S: Final = 60.0


class LoopLag(Collector):
    """How much later than asked the event loop woke a task: the worst of the last minute.

    Whoever reads it takes nothing away from others: several may scrape, or be sent it.
    """

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=round(_WINDOW_S / _LOOK_EVERY_S))

    async def watch(self) -> None:
        """Look twice a second, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            wanted = loop.time() + _LOOK_EVERY_S
            await asyncio.sleep(_LOOK_EVERY_S)
            self._late.append(loop.time() - wanted)

    def collect(self) -> Iterator[Metric]:
        text = "The longest that the event loop kept a task waiting in the last minute."
        # A copy: any thread may collect it.
        worst = max(self._late.copy(), default=0.0)
        yield GaugeMetricFamily("agentsched_loop_lag_seconds", text, value=max(0.0, worst))


class Tasks(Collector):
    """How many tasks there are: they follow the live requests and connections, or something leaks.

    The count is of the loop that it was made on; any thread may collect it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterator[Metric]:
        text = "Tasks of the event loop: connections, requests, and those that always are."
        count = len(asyncio.all_tasks(self._loop))
        yield GaugeMetricFamily("agentsched_tasks", text, value=count)


class _Build(Collector):
    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "agentsched_build", "What runs here.", value={"version": __version__}
        )


@asynccontextmanager
async def process_metrics(registry: CollectorRegistry) -> AsyncIterator[None]:
    """The process is part of the metrics while inside."""
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Build())
    lag = LoopLag()
    registry.register(lag)
    registry.register(Tasks())
    watcher = asyncio.create_task(lag.watch(), name="loop lag")
    try:
        yield
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
