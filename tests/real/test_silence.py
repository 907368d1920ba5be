"""A real vLLM that stands still: what is new goes elsewhere until it goes on; nothing is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from agentsched.config import Config
from agentsched.kernel import JournalEntry
from agentsched.kernel.records import EngineRecord
from agentsched.model import EngineId, EngineLost, StepFailed, StepFinished
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

CHAT = "/v1/chat/completions"
#: Looks that get no answer say so, and never amount to a loss.
UPSTREAM = {"probe_interval": "100ms", "probe_timeout": "5s", "failures_until_lost": 1_000_000}
#: Long enough to be stopped in, short enough for the context.
LONG = 200
#: Nothing here is awaited for long where all is well; a busy machine is no failure.
PATIENCE_S = 120.0


@dataclass(slots=True)
class Turns:
    """The journal in memory, told by `write`."""

    entries: list[JournalEntry] = field(default_factory=list)

    def write(self, entry: JournalEntry) -> None:
        self.entries.append(entry)

    def events(self, kind: type) -> list[Any]:
        return [e.event for e in self.entries if isinstance(e.event, kind)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """A proxy in front of `real`, a vLLM, and `spare`, an embedded engine."""

    gateway: Gateway
    client: httpx.AsyncClient
    turns: Turns

    def engine(self, name: str) -> EngineRecord:
        return self.gateway.host.scheduler.engines[EngineId(name)]

    async def drain(self, name: str, *, is_over: bool = False) -> None:
        verb = "undrain" if is_over else "drain"
        (await self.client.post(f"/agentsched/v1/engines/{name}/{verb}")).raise_for_status()

    async def silence(self) -> dict[str, tuple[bool, float]]:
        """Of each engine what the control plane and the metric say."""
        listed = (await self.client.get("/agentsched/v1/engines")).json()["engines"]
        page = (await self.client.get("/metrics")).text
        told = {}
        for engine in listed:
            start = f'agentsched_engine_silent{{engine="{engine["engine"]}"'
            [line] = [line for line in page.splitlines() if line.startswith(start)]
            is_silent = engine["silent_for_s"] is not None
            told[engine["engine"]] = is_silent, float(line.rpartition(" ")[2])
        return told

    async def chat(self, program: str, *said: str) -> httpx.Response:
        answer = await self.client.post(CHAT, json=body(*said), headers=named(program))
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 8
        return answer


def named(program: str) -> dict[str, str]:
    return {"x-agentsched-program": program}


def body(*said: str, tokens: int = 8, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    talk = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said or ("hello",))]
    exact = {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
    return {"model": "tiny", "messages": talk} | exact | fields


async def until(condition: Callable[[], bool]) -> None:
    """Looks, with a pause: an engine that stands still has no event to wait on."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@asynccontextmanager
async def rigged(url: str) -> AsyncIterator[Rig]:
    spare = ServerConfig(
        engine=EngineConfig.from_preset(preset("cpu-2core")), models=("tiny",), speed=50
    )
    async with running_engine(spare) as beside:
        engines = [{"url": url, "id": "real"}, {"url": beside.url, "id": "spare"}]
        config = Config.model_validate({"port": 0, "engines": engines, "upstream": UPSTREAM})
        turns = Turns()
        async with (
            running(config, sinks=[turns]) as (gateway, base),
            httpx.AsyncClient(base_url=base, timeout=PATIENCE_S) as client,
        ):
            engines_known = gateway.host.scheduler.engines
            await until(lambda: [e.is_up for e in engines_known.values()] == [True, True])
            yield Rig(gateway=gateway, client=client, turns=turns)
            await until(lambda: gateway.host.live_steps == 0)
            gateway.host.scheduler.check()


async def test_it_gets_nothing_new_while_it_is_stopped_and_is_used_again(
    vllm_url: str, vllm_slot: Any
) -> None:
    """Stopped in the middle of an answer; another step is inside before anybody knows."""
    async with rigged(vllm_url) as rig, asyncio.TaskGroup() as asked:
        await rig.drain("spare")
        first = await rig.chat("home")
        assert first.headers["x-agentsched-engine"] == "real"
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        streaming = rig.client.stream(
            "POST", CHAT, json=body(tokens=LONG, **usage), headers=named("streamed")
        )
        async with streaming as answer:
            assert answer.headers["x-agentsched-engine"] == "real"
            lines = answer.aiter_lines()
            await anext(lines)
            with vllm_slot.stopped():
                reading = asked.create_task(_last_usage(lines))
                whole = asked.create_task(rig.chat("whole"))
                # However quick the first one was: this one cannot have been answered.
                await until(lambda: "whole" in _inside(rig))
                await rig.drain("spare", is_over=True)
                await until(lambda: rig.engine("real").silent_since is not None)
                assert await rig.silence() == {"real": (True, 1.0), "spare": (False, 0.0)}
                for name in "abcd":
                    other = await rig.chat(name)
                    assert other.headers["x-agentsched-engine"] == "spare"
                assert not whole.done()
            # What had begun was not taken away, and comes to its end in full.
            assert await reading == LONG
            # A server that goes on may first close connections that were idle for too long, with
            # what it has not read of them: that step goes to another engine, and is answered.
            await whole
        await until(lambda: rig.engine("real").silent_since is None)
        assert await rig.silence() == {"real": (False, 0.0), "spare": (False, 0.0)}
        # And a program goes on where its context is.
        said = first.json()["choices"][0]["message"]["content"]
        again = await rig.chat("home", "hello", said, "go on")
        assert again.headers["x-agentsched-engine"] == "real"
        await until(lambda: len(rig.turns.events(StepFinished)) == 8)
        assert all(failed.is_retryable for failed in rig.turns.events(StepFailed))
        assert rig.turns.events(EngineLost) == []


def _inside(rig: Rig) -> set[str]:
    """The programs that have steps in the real engine."""
    return {step.program.rpartition("/")[2] for step in rig.engine("real").running.values()}


async def _last_usage(lines: AsyncIterator[str]) -> int:
    """Reads a stream to its end; how many tokens it says that it had."""
    data = [line.removeprefix("data: ") async for line in lines if line]
    assert data[-1] == "[DONE]"
    return int(json.loads(data[-2])["usage"]["completion_tokens"])
