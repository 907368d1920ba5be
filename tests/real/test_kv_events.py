"""KV events of a real vLLM: what others evicted is known to be gone without our plugin."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
import pytest

from agentsched.config import Config
from agentsched.kernel import JournalEntry
from agentsched.model import ConversationId, EngineId, EngineReported, ProgramId
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_adapters.vllm import VllmEngine
from agentsched_bench.vllm_local import LocalVllmConfig

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

CHAT = "/v1/chat/completions"
#: Nothing here is awaited for long where all is well; a busy machine is no failure.
PATIENCE_S = 120.0


@dataclass(slots=True)
class Reports:
    """The engine's reports, as they come into the journal."""

    gone: list[ConversationId] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, entry: JournalEntry) -> None:
        if isinstance(entry.event, EngineReported) and entry.event.load is not None:
            self.gone += entry.event.load.gone
            self.changed.set()

    async def wait_for(self, conversation: ConversationId) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while conversation not in self.gone:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def engine(vllm_slot: Any, vllm_config: LocalVllmConfig, port: int) -> str:
    told = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{port}"}
    extra = ("--kv-events-config", msgspec.json.encode(told).decode())
    return str(vllm_slot.url(replace(vllm_config, extra_args=vllm_config.extra_args + extra)))


@asynccontextmanager
async def proxied(engine: str, **more: Any) -> AsyncIterator[tuple[Gateway, Any, Reports]]:
    config = Config.model_validate(
        {
            "port": 0,
            "engines": [{"url": engine, "id": "real", **more}],
            "upstream": {"probe_interval": "200ms", "probe_timeout": "20s"},
        }
    )
    reports = Reports()
    async with (
        running(config, sinks=[reports]) as (gateway, base),
        httpx.AsyncClient(base_url=base, timeout=PATIENCE_S) as client,
    ):
        await listening(gateway, client)
        yield gateway, client, reports
        gateway.host.scheduler.check()


async def listening(gateway: Gateway, client: httpx.AsyncClient) -> None:
    """Until something was heard: what is said before somebody listens is said to nobody."""
    words = 0
    async with asyncio.timeout(PATIENCE_S):
        while gateway.fleet.members[EngineId("real")].engine is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        adapter = gateway.fleet.engine(EngineId("real"))
        assert isinstance(adapter, VllmEngine)
        while not adapter.hears_events:
            words += 50
            asked = body(" ".join(f"knock{number}" for number in range(words)))
            (await client.post(CHAT, json=asked)).raise_for_status()


def body(text: str) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": text}]}


async def test_what_strangers_evicted_is_not_taken_for_resident(engine: str, port: int) -> None:
    """The other traffic goes to the engine past the proxy, which sees nothing of it."""
    address = f"tcp://127.0.0.1:{port}"
    async with proxied(engine, kv_events=address) as (gateway, client, reports):
        asked = body(" ".join(f"mine{number}" for number in range(120)))
        named = {"x-agentsched-program": "mine"}
        answer = await client.post(CHAT, json=asked, headers=named)
        assert answer.status_code == 200, answer.text
        [record] = gateway.host.scheduler.programs[ProgramId("mine")].conversations.values()
        assert record.is_resident
        async with httpx.AsyncClient(base_url=engine, timeout=PATIENCE_S) as beside:
            for stranger in range(12):
                text = " ".join(f"other{stranger}of{number}" for number in range(240))
                (await beside.post(CHAT, json=body(text))).raise_for_status()
        await reports.wait_for(record.conversation)
        assert not record.is_resident
        again = (await client.post(CHAT, json=asked, headers=named)).json()
        assert (again["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0) < 64
