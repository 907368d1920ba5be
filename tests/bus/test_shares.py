"""Two real proxies, one real broker: the gap of two tenants stays within the bound of the docs.

Counted in tokens at every turn of either proxy, with what the bound is made of measured in the same
run; so it holds however slow the machine is.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from live import eventually, replica, small_engine

from agentsched.kernel import JournalEntry
from agentsched.model import TenantId
from agentsched.policy import Prices
from agentsched.proxy.gateway import Gateway
from agentsched_bench.cluster.gaps import Gap, GapWatch
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.services.mosquitto import LocalMosquitto

pytestmark = [pytest.mark.services, pytest.mark.slow]

BLUE, RED = TenantId("blue"), TenantId("red")
PRICES = Prices(output=4.0, memory=0.0)
SHARE = {"burst": 0.0, "output_price": 4.0, "memory_price": 0.0}


class Watch:
    """A sink of one proxy's journal; tells the watch of all, and when steps enough are done."""

    def __init__(self, gateway: Gateway, gaps: GapWatch, found: list[Gap]) -> None:
        self._scheduler = gateway.host.scheduler
        self._gaps = gaps
        self._found = found

    def write(self, entry: JournalEntry) -> None:
        self._gaps.took(self._scheduler, entry)
        self._found += self._gaps.gaps(now=entry.now)


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
    engine = ServerConfig(engine=small_engine(blocks=2_049), models=("sim",), speed=50)
    policies = {
        "share": {"name": "weighted", "params": SHARE},
        "admit": {"name": "depth", "params": {"depth": 2}},
    }
    common: Any = {"bus": {"url": broker.url}, "profile": "fcfs", "policies": policies}
    async with (
        running_engine(engine) as sim,
        replica("one", sim.url, **common) as (one, first, bus_one),
        replica("two", sim.url, **common) as (two, second, bus_two),
        httpx.AsyncClient(timeout=120) as client,
    ):
        assert bus_one is not None
        assert bus_two is not None
        # What was served before they met is nobody else's to charge.
        await eventually(lambda: "two" in bus_one.peers.names and "one" in bus_two.peers.names)
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
        await eventually(lambda: min(gaps.heard(g.host.scheduler, BLUE) for g in both) > 0)
        for gateway in both:
            gateway.host.scheduler.check()
