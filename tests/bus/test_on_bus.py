"""Two real proxies on one real broker: shared memory, shared shares, tool events."""

from __future__ import annotations

import json
from typing import Any

import aiomqtt
import httpx
import pytest
from live import eventually, replica, small_engine

from agentsched.model import ToolFinished
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.services.mosquitto import LocalMosquitto

pytestmark = pytest.mark.services


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
    bus = {"url": broker.url}
    async with (
        running_engine(ServerConfig(engine=small_engine(), models=("sim",), speed=100)) as sim,
        replica("one", sim.url, bus=bus) as (one, first, _),
        replica("two", sim.url, bus=bus) as (two, _, _),
    ):
        await ask(first, "a")
        engines = two.host.scheduler.engines
        await eventually(lambda: engines["e0"].peer_tokens > 200)
        await ask(first, "b")
        await eventually(lambda: "red" in two.host.scheduler.tenants)
        mine, theirs = one.host.scheduler.tenants["red"], two.host.scheduler.tenants["red"]
        await eventually(lambda: theirs.output_tokens >= 8)
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
        await eventually(lambda: any(isinstance(e, ToolFinished) for e in heard))
        [finished] = [e for e in heard if isinstance(e, ToolFinished)]
        assert (finished.program, finished.tool) == ("red/a", "bash")
        # The broker dies: each decides alone, and goes on.
        broker.kill()
        await eventually(lambda: not engines["e0"].peers)
        await ask(first, "c")
