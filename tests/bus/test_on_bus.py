"""Two real proxies on one real broker: shared memory, shared shares, tool events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiomqtt
import httpx
import pytest

from agentsched.config import Config
from agentsched.model import ToolFinished
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.on_bus import joined
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import CPU_2CORE
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.services.mosquitto import LocalMosquitto

pytestmark = pytest.mark.services


@pytest.fixture
def broker() -> Iterator[LocalMosquitto]:
    with LocalMosquitto() as started:
        yield started


@contextlib.asynccontextmanager
async def proxy(
    engine: str, broker: LocalMosquitto, name: str
) -> AsyncIterator[tuple[Gateway, str]]:
    settings: dict[str, Any] = {
        "port": 0,
        "engines": [{"url": engine, "id": "e0"}],
        "bus": {"url": broker.url, "replica": name},
    }
    config = Config(**settings)
    async with running(config) as (gateway, url), joined(config, gateway, url=url) as bus:
        assert bus is not None
        await bus.connection.is_up.wait()
        yield gateway, url


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)


async def ask(url: str, program: str, tokens: int = 300) -> None:
    body = {
        "model": "sim",
        "messages": [{"role": "user", "content": "word " * tokens}],
        "max_tokens": 8,
    }
    headers = {"x-agentsched-program": program, "x-agentsched-tenant": "red"}
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text


async def test_two_replicas_count_each_others_memory_and_service(broker: LocalMosquitto) -> None:
    engine = EngineConfig(
        cost=CPU_2CORE,
        blocks=513,
        block_size=32,
        max_num_seqs=8,
        max_num_batched_tokens=2_048,
        max_model_len=8_192,
    )
    async with (
        running_engine(ServerConfig(engine=engine, models=("sim",), speed=100)) as sim,
        proxy(sim.url, broker, "one") as (one, first),
        proxy(sim.url, broker, "two") as (two, _),
    ):
        await ask(first, "a")
        engines = two.host.scheduler.engines
        await until(lambda: engines["e0"].peer_tokens > 200)
        await ask(first, "b")
        await until(lambda: "red" in two.host.scheduler.tenants)
        mine, theirs = one.host.scheduler.tenants["red"], two.host.scheduler.tenants["red"]
        await until(lambda: theirs.output_tokens >= 8)
        assert theirs.elsewhere[1] == theirs.output_tokens <= mine.output_tokens
        # What one served does not come back to it as somebody else's.
        assert mine.elsewhere == (0, 0, 0)
        # A tool's end, told over the broker, is an event of the replica that knows the program.
        heard: list[Any] = []

        class Sink:
            def write(self, entry: Any) -> None:
                heard.append(entry.event)

        one.host.watch(Sink())
        async with aiomqtt.Client("127.0.0.1", broker.port) as runner:
            said = json.dumps({"tool": "bash", "took_s": 1.0})
            await runner.publish("agentsched/default/tools/red%2Fa/-/finished", said, 1)
        await until(lambda: any(isinstance(e, ToolFinished) for e in heard))
        [finished] = [e for e in heard if isinstance(e, ToolFinished)]
        assert (finished.program, finished.tool) == ("red/a", "bash")
        # The broker dies: each decides alone, and goes on.
        broker.kill()
        await until(lambda: not engines["e0"].peers)
        await ask(first, "c")
