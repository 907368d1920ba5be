"""Warm-ups on engines that cannot pin: what was evicted is computed again before it is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote

import aiomqtt
import httpx
import pytest

from agentsched.config import Config
from agentsched.kernel import JournalEntry
from agentsched.model import HintAnswered, HintOutcome, Prefetch
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.on_bus import joined
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.services.mosquitto import LocalMosquitto

#: Pools have 256 blocks of 32 tokens; seven such prompts do not fit (their tokenizers differ).
WORDS = {"sim": 1_000, "vllm": 420}
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


class Journal:
    """Entries, and a way to wait for one."""

    def __init__(self) -> None:
        self.entries: list[JournalEntry] = []
        self._came = asyncio.Event()

    def write(self, entry: JournalEntry) -> None:
        self.entries.append(entry)
        self._came.set()

    async def answer(self) -> HintAnswered:
        """The first answer to a warm-up."""
        async with asyncio.timeout(60):
            while True:
                for entry in self.entries:
                    if isinstance(entry.event, HintAnswered):
                        return entry.event
                self._came.clear()
                await self._came.wait()

    def warm_ups(self) -> list[Prefetch]:
        return [c for e in self.entries for c in e.commands if isinstance(c, Prefetch)]


CHAT = {"max_tokens": 16}


def body(dialect: str, model: str, name: str, *, answer: str = "") -> dict[str, Any]:
    """A long prompt of a program; with an answer it is the next step's."""
    kind = name.partition("/")[0]
    tag = name if kind == "sim" else f"{dialect[:2]}{name[-1]}"
    text = " ".join(f"{tag}{number}" for number in range(WORDS[kind]))
    if dialect == "completions":
        return {"model": model, "prompt": text + answer + (" go on" if answer else ""), **CHAT}
    talk = [{"role": "user", "content": text}]
    if answer:
        talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "go on"}]
    if dialect == "responses":
        return {"model": model, "input": talk, "max_output_tokens": 16}
    return {"model": model, "messages": talk, **CHAT}


def text_of(dialect: str, answer: Any) -> str:
    match dialect:
        case "chat":
            return str(answer["choices"][0]["message"]["content"])
        case "completions":
            return str(answer["choices"][0]["text"])
        case "responses":
            return str(answer["output"][-1]["content"][0]["text"])
        case _:
            return "".join(block.get("text", "") for block in answer["content"])


@asynccontextmanager
async def proxied(
    url: str, broker: str | None = None
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient, Journal]]:
    settings: dict[str, Any] = {
        "port": 0,
        "engines": [{"url": url, "id": "e"}],
        "profile": "passthrough",
        "policies": {"prefetch": {"name": "value"}},
        # A model on a busy CPU takes its time to say what it can do.
        "limits": {"engine_wait_max": "90s"},
        "upstream": {"probe_timeout": "20s", "trial_timeout": "60s"},
    }
    if broker is not None:
        settings["bus"] = {"url": broker}
    config, journal = Config(**settings), Journal()
    async with (
        running(config, sinks=[journal]) as (gateway, base),
        joined(config, gateway, url=base) as bus,
        httpx.AsyncClient(base_url=base, timeout=120) as client,
    ):
        if bus is not None:
            async with asyncio.timeout(60):
                await bus.connection.is_up.wait()
        yield gateway, client, journal
        gateway.host.scheduler.check()


async def ask(client: httpx.AsyncClient, dialect: str, program: str, fields: dict[str, Any]) -> Any:
    headers = {"x-agentsched-program": program}
    answer = await client.post(PATHS[dialect], json=fields, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


Tell = Callable[[httpx.AsyncClient, str, str], Awaitable[None]]


async def programs_of(client: httpx.AsyncClient) -> list[str]:
    """Their ids, as the answers' `x-agentsched-program` shows them."""
    overview = (await client.get("/agentsched/v1/overview")).json()
    return [row["program"] for row in overview["programs"]]


async def over_http(client: httpx.AsyncClient, program: str, event: str) -> None:
    """A tool's start or end, as an agent's SDK reports it."""
    report = {"program": program, "tool": "bash", "call_id": "t1", "event": event}
    told = await client.post("/agentsched/v1/tools", json=report)
    assert told.json()["accepted"] == 1


async def warmed(
    url: str,
    model: str,
    dialect: str,
    *,
    names: str = "sim",
    broker: str | None = None,
    tell: Tell = over_http,
) -> tuple[int, int]:
    """A program pauses, others push it out, its tool ends, and it comes back: cached and prompt."""
    async with proxied(url, broker) as (gateway, client, journal):
        first = f"{names}/{dialect}A"
        said = text_of(dialect, await ask(client, dialect, first, body(dialect, model, first)))
        for other in "BCDEFG":
            name = f"{names}/{dialect}{other}"
            await ask(client, dialect, name, body(dialect, model, name))
        for event in ("started", "finished"):
            await tell(client, first, event)
        assert (await journal.answer()).outcome is HintOutcome.ACCEPTED
        assert [w.program for w in journal.warm_ups()] == [
            p for p in gateway.host.scheduler.programs if p.endswith(f"{dialect}A")
        ]
        await ask(client, dialect, first, body(dialect, model, first, answer=said))
        [finished] = [
            e.event.usage for e in journal.entries[-4:] if type(e.event).__name__ == "StepFinished"
        ]
        account = gateway.host.scheduler.warm_accounts
        assert [a.hit > 0 for a in account.values()] == [True]
        return finished.cached_tokens or 0, finished.prompt_tokens


@pytest.mark.slow
@pytest.mark.parametrize("dialect", list(PATHS))
async def test_the_embedded_engine_finds_what_was_warmed(dialect: str) -> None:
    config = EngineConfig.from_preset(preset("cpu-2core"))
    engine = ServerConfig(
        engine=replace(config, blocks=257, block_size=32, max_model_len=8_000),
        models=("tiny",),
        speed=1_000.0,
    )
    async with running_engine(engine) as running_one:
        cached, prompt = await warmed(running_one.url, "tiny", dialect)
    assert cached > 0.8 * prompt


@pytest.mark.services
@pytest.mark.slow
async def test_a_runner_over_mqtt_warms_before_the_next_request_comes() -> None:
    config = EngineConfig.from_preset(preset("cpu-2core"))
    small = replace(config, blocks=257, block_size=32, max_model_len=8_000)
    engine = ServerConfig(engine=small, models=("tiny",), speed=1_000.0)
    with LocalMosquitto() as broker:
        async with (
            running_engine(engine) as running_one,
            aiomqtt.Client("127.0.0.1", broker.port) as runner,
        ):

            async def tell(client: httpx.AsyncClient, program: str, event: str) -> None:
                [full] = [p for p in await programs_of(client) if unquote(p) == program]
                name = quote(full, safe="")
                said = json.dumps({"tool": "bash"})
                await runner.publish(f"agentsched/default/tools/{name}/t1/{event}", said, 1)

            cached, prompt = await warmed(
                running_one.url, "tiny", "chat", broker=broker.url, tell=tell
            )
    assert cached > 0.8 * prompt


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("dialect", list(PATHS))
async def test_a_real_vllm_finds_what_was_warmed(vllm_url: str, dialect: str) -> None:
    cached, prompt = await warmed(vllm_url, "tiny", dialect, names="vllm")
    assert cached > 0.8 * prompt
