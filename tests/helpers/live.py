"""Servers in this process that tests of several rooms need, and the wait for what they do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from agentsched.bus.service import Bus
from agentsched.config import Config
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.memory import remembered
from agentsched.proxy.on_bus import joined
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import CPU_2CORE
from agentsched_bench.engine.requests import EngineConfig


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def small_engine(**sizes: Any) -> EngineConfig:
    """An engine as fast as two cores, of 512 blocks that requests may take."""
    usual = {"blocks": 513, "block_size": 32, "max_num_seqs": 8, "max_model_len": 8_192}
    return EngineConfig(cost=CPU_2CORE, **usual | {"max_num_batched_tokens": 2_048} | sizes)


@contextlib.asynccontextmanager
async def replica(
    name: str, *engines: str, bus: dict[str, str] | None, **settings: Any
) -> AsyncIterator[tuple[Gateway, str, Bus | None]]:
    """One of several proxies before these engines, its URL and, once it is there, its bus."""
    if bus is not None:
        settings["bus"] = {"replica": name} | bus
    listed = [{"url": url, "id": f"e{number}"} for number, url in enumerate(engines)]
    config = Config(port=0, engines=listed, **settings)
    async with (
        remembered(config) as memory,
        running(config, memory=memory) as (gateway, url),
        joined(config, gateway, url=url) as joint,
    ):
        if joint is not None:
            await joint.connection.is_up.wait()
        yield gateway, url, joint
