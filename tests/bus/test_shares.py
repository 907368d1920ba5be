"""Two real proxies, one real broker: the gap of two tenants stays within the bound of the docs.

Counted in tokens at every turn of either proxy, with what the bound is made of measured in the same
run; so it holds however slow the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from agentsched.bus.service import Bus
from agentsched.config import Config
from agentsched.kernel import JournalEntry
from agentsched.model import TenantId
from agentsched.policy import Prices
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.on_bus import joined
from agentsched.proxy.serve import running
from agentsched_bench.cluster.gaps import Gap, GapWatch
from agentsched_bench.engine.cost import CPU_2CORE
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.services.mosquitto import LocalMosquitto

pytestmark = [pytest.mark.services, pytest.mark.slow]

BLUE, RED = TenantId("blue"), TenantId("red")
PRICES = Prices(output=4.0, memory=0.0)
SHARE = {"burst": 0.0, "output_price": 4.0, "memory_price": 0.0}


@pytest.fixture
def broker() -> Iterator[LocalMosquitto]:
    with LocalMosquitto() as started:
        yield started


@contextlib.asynccontextmanager
async def proxy(
    engine: str, broker: LocalMosquitto, name: str
) -> AsyncIterator[tuple[Gateway, str, Bus]]:
    settings: dict[str, Any] = {
        "port": 0,
        "profile": "fcfs",
        "policies": {
            "share": {"name": "weighted", "params": SHARE},
            "admit": {"name": "depth", "params": {"depth": 2}},
        },
        "engines": [{"url": engine, "id": "e0"}],
        "bus": {"url": broker.url, "replica": name},
    }
    config = Config(**settings)
    async with running(config) as (gateway, url), joined(config, gateway, url=url) as bus:
        assert bus is not None
        await bus.connection.is_up.wait()
        yield gateway, url, bus


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[str]:
    config = EngineConfig(
        cost=CPU_2CORE,
        blocks=2_049,
        block_size=32,
        max_num_seqs=8,
        max_num_batched_tokens=2_048,
        max_model_len=8_192,
    )
    async with running_engine(ServerConfig(engine=config, models=("sim",), speed=50)) as started:
        yield started.url


class Watch:
    """A sink of one proxy's journal; tells the watch of all, and when steps enough are done."""

    def __init__(self, gateway: Gateway, gaps: GapWatch, found: list[Gap]) -> None:
        self._scheduler = gateway.host.scheduler
        self._gaps = gaps
        self._found = found

    def write(self, entry: JournalEntry) -> None:
        self._gaps.took(self._scheduler, entry)
        self._found += self._gaps.gaps(now=entry.now)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes over the broker."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)


async def agent(client: httpx.AsyncClient, urls: list[str], tenant: str, number: int) -> None:
    """Asks again when it is answered, at one replica and then the other."""
    for step in range(12):
        body = {
            "model": "sim",
            "messages": [
                {"role": "user", "content": f"task {number} step {step} " + "word " * 150}
            ],
            "max_tokens": 4 + (number + step) % 9,
        }
        headers = {
            "x-agentsched-program": f"{tenant}-{number}",
            "x-agentsched-tenant": tenant,
        }
        url = urls[(number + step) % len(urls)]
        answer = await client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text


async def test_the_gap_over_two_replicas_is_within_the_bound(broker: LocalMosquitto) -> None:
    async with (
        engine() as sim,
        proxy(sim, broker, "one") as (one, first, bus_one),
        proxy(sim, broker, "two") as (two, second, bus_two),
        httpx.AsyncClient(timeout=120) as client,
    ):
        # What was served before they met is nobody else's to charge.
        await until(lambda: "two" in bus_one.peers.names and "one" in bus_two.peers.names)
        both = [one, two]
        gaps = GapWatch(
            schedulers=[g.host.scheduler for g in both],
            tenants=[BLUE, RED],
            prices=PRICES,
            burst=0.0,
        )
        found: list[Gap] = []
        for gateway in both:
            gateway.host.watch(Watch(gateway, gaps, found))
        # Three agents of four are one tenant's.
        agents = [(BLUE, n) for n in range(18)] + [(RED, n) for n in range(6)]
        await asyncio.gather(*(agent(client, [first, second], t, n) for t, n in agents))
        assert found, "both never waited on both"
        assert all(gap.is_within for gap in found), max(
            found, key=lambda gap: gap.width / gap.bound
        )
        # They hear of each other, if not at the very end: all is told twice a second.
        await until(lambda: min(gaps.heard(g.host.scheduler, BLUE) for g in both) > 0)
        for gateway in both:
            gateway.host.scheduler.check()
