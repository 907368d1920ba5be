"""A real proxy in this process, in front of engines that pin, and a browser to look at it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvloop
from browser_window import PATIENCE_MS, Window

from agentsched.config import Config, EngineConfig
from agentsched.model import EngineId
from agentsched.ports import Engine
from agentsched.proxy import app
from agentsched.proxy.fleet import Member
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_adapters.fake import FakeEngine, FakeSpeed
from agentsched_adapters.fake_wire import FakeReply

SYSTEM = "You are a careful engineer. " * 60


@dataclass
class Board:
    """A running proxy, its engines, and a client."""

    gateway: Gateway
    url: str
    client: httpx.AsyncClient
    engines: list[FakeEngine]

    async def get(self, path: str, *, status: int = 200, **headers: str) -> Any:
        answer = await self.client.get(f"/agentsched/v1{path}", headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def chat(
        self, program: str, *texts: str, tenant: str = "red", **fields: Any
    ) -> httpx.Response:
        """One step: the shared system prompt, then these messages, turn by turn."""
        roles = ("user", "assistant")
        turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        body = {
            "model": "fake",
            "messages": [{"role": "system", "content": SYSTEM}, *turns],
            "max_tokens": 8,
        }
        names = {"x-agentsched-program": program, "x-agentsched-tenant": tenant}
        return await self.client.post("/v1/chat/completions", json=body | fields, headers=names)


def _reply(body: Any) -> FakeReply:
    tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
    return FakeReply(text="well", calls=tuple((name, "{}") for name in tools))


Start = Callable[..., AbstractAsyncContextManager[Board]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a proxy in front of engines in this process; settings are those of a file."""

    @contextlib.asynccontextmanager
    async def started(
        *, count: int = 2, blocks: int = 1_024, speed: FakeSpeed | None = None, **settings: Any
    ) -> AsyncIterator[Board]:
        engines = {
            f"gpu-{i}": FakeEngine(
                EngineId(f"gpu-{i}"), blocks=blocks, pins=True, speed=speed, reply=_reply
            )
            for i in range(count)
        }

        def member(engine: EngineConfig, config: Config) -> Member:
            async def connect() -> Engine:
                return engines[engine.name]

            return Member(id=EngineId(engine.name), url=engine.base_url, connect=connect)

        monkeypatch.setattr(app, "_member", member)
        described = [{"id": name, "url": f"http://{name}.test"} for name in engines]
        fixed = {"port": 0, "engines": described, "upstream": {"probe_interval": "100ms"}}
        config = Config(**fixed | settings)
        async with (
            running(config) as (gateway, url),
            httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client,
        ):
            yield Board(gateway, url, client, list(engines.values()))

    return started


@pytest.fixture
async def board(start: Start) -> AsyncIterator[Board]:
    async with start() as running_board:
        yield running_board


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that `serve` runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    """Chromium without a window. Mark tests that use it `services`."""
    from playwright.async_api import async_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path is not None, "no Chromium (scripts/install-services)"
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield started
        finally:
            await started.close()


@pytest.fixture
async def window(browser: Any) -> AsyncIterator[Any]:
    """Opens a page of a board's dashboard. What a page complained of fails the test."""
    made: list[tuple[Any, Window]] = []

    async def open_window(board: Any, **settings: Any) -> Window:
        context = await browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}} | settings
        )
        context.set_default_timeout(PATIENCE_MS)
        shown = Window(await context.new_page(), board.url)
        made.append((context, shown))
        return shown

    yield open_window
    for context, shown in made:
        await context.close()
        assert shown.complaints == []
