"""A real proxy in this process, in front of scripted engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvloop
from proxy_upstream import Upstream, running_upstream

from agentsched.config import Config
from agentsched.kernel import JournalEntry
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running

#: As in a config file; quick, so that tests are.
SETTINGS: dict[str, Any] = {
    "port": 0,
    "upstream": {"probe_interval": "50ms", "probe_timeout": "2s", "connect_timeout": "2s"},
    "limits": {"engine_wait_max": "20s"},
}


#: For tests of what is said when no engine comes up in time.
HURRIES: dict[str, Any] = {"engine_wait_max": "300ms"}


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = (
            over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


class Turns:
    """The journal in memory; wakes whoever waits for something to become true."""

    def __init__(self) -> None:
        self.entries: list[JournalEntry] = []
        self._turned = asyncio.Event()

    def write(self, entry: JournalEntry) -> None:
        self.entries.append(entry)
        self._turned.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a turn makes this true."""
        async with asyncio.timeout(60):
            while not condition():
                self._turned.clear()
                await self._turned.wait()
                await asyncio.sleep(0)  # a sink hears of a turn before its commands are performed

    def events(self, kind: type) -> list[Any]:
        return [e.event for e in self.entries if isinstance(e.event, kind)]

    def commands(self, kind: type) -> list[Any]:
        return [c for e in self.entries for c in e.commands if isinstance(c, kind)]


@dataclass
class Proxy:
    """A running proxy and a client of it."""

    gateway: Gateway
    url: str
    client: httpx.AsyncClient
    turns: Turns = field(default_factory=Turns)

    @property
    def scheduler(self) -> Any:
        return self.gateway.host.scheduler

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def chat(self, text: str = "hi", headers: Any = None, **fields: Any) -> httpx.Response:
        body = chat(text, **fields)
        return await self.client.post("/v1/chat/completions", content=body, headers=headers)

    def streaming(
        self, text: str = "hi", **fields: Any
    ) -> AbstractAsyncContextManager[httpx.Response]:
        body = chat(text, stream=True, **fields)
        return self.client.stream("POST", "/v1/chat/completions", content=body)

    async def until_idle(self) -> None:
        await self.turns.until(lambda: self.gateway.is_idle)

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def say(self, data: bytes) -> bytes:
        """Send bytes and read until the proxy closes the connection."""
        reader, writer = await self.raw(data)
        try:
            async with asyncio.timeout(60):
                return await reader.read()
        finally:
            writer.close()


def chat(text: str = "hi", **fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]} | fields
    return json.dumps(body).encode()


Start = Callable[..., AbstractAsyncContextManager[Proxy]]


@contextlib.asynccontextmanager
async def start_proxy(*urls: str, **settings: Any) -> AsyncIterator[Proxy]:
    """A proxy in front of these engines (called e0, e1, ...); nothing may be left at its end."""
    engines = [{"url": url, "id": f"e{i}", "kind": "openai"} for i, url in enumerate(urls)]
    config = Config(**over(SETTINGS | {"engines": engines}, settings))
    turns = Turns()
    async with (
        running(config, sinks=[turns]) as (gateway, url),
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        proxy = Proxy(gateway, url, client, turns)
        yield proxy
        await proxy.until_idle()
        gateway.host.scheduler.check()
        assert not gateway.host.scheduler.steps


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that `serve` runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def start() -> Start:
    return start_proxy


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running_upstream() as engine:
        yield engine


@pytest.fixture
async def second() -> AsyncIterator[Upstream]:
    async with running_upstream() as engine:
        yield engine


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy in front of `upstream`."""
    async with start_proxy(upstream.url) as started:
        yield started
