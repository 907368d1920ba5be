"""Engines that stand still: scripted ones, and a real process that is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from proxy_upstream import ANSWER, DONE, Exchange, Gate, Upstream, chunk

from agentsched.model import EngineLost, EngineUnanswered, StepFailed
from agentsched_bench.live.processes import Ready, running

#: Looks that get no answer say so soon, and never amount to a loss.
STANDS: dict[str, Any] = {"probe_timeout": "1s", "failures_until_lost": 1_000_000}


async def listed(proxy: Any, engine: str) -> Any:
    return (await proxy.client.get(f"/agentsched/v1/engines/{engine}")).json()


async def measured(proxy: Any, engine: str) -> float:
    page = (await proxy.client.get("/metrics")).text
    [line] = [
        k for k in page.splitlines() if k.startswith(f'agentsched_engine_silent{{engine="{engine}"')
    ]
    return float(line.rpartition(" ")[2])


def silent(proxy: Any, engine: str) -> bool:
    return proxy.scheduler.engines[engine].silent_since is not None


@pytest.mark.slow
async def test_what_is_new_goes_elsewhere_until_a_look_is_answered(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    upstream.script = gate = Gate()
    async with start(upstream.url, second.url, upstream=STANDS) as proxy:
        asked = asyncio.create_task(proxy.chat())
        await upstream.exchange()
        upstream.is_well.clear()
        await proxy.turns.until(lambda: silent(proxy, "e0"))
        assert (await listed(proxy, "e0"))["silent_for_s"] > 0
        assert (await listed(proxy, "e1"))["silent_for_s"] is None
        assert (await measured(proxy, "e0"), await measured(proxy, "e1")) == (1, 0)
        for name in "abcd":
            response = await proxy.chat(agentsched={"program": name})
            assert response.headers["x-agentsched-engine"] == "e1"
        upstream.is_well.set()
        await proxy.turns.until(lambda: not silent(proxy, "e0"))
        gate.open.set()
        response = await asked
        assert (response.status_code, response.content) == (200, ANSWER)
        assert await measured(proxy, "e0") == 0
        assert proxy.turns.events(StepFailed) == proxy.turns.events(EngineLost) == []


@pytest.mark.slow
async def test_bytes_of_an_answer_say_that_an_engine_works_though_looks_get_none(
    start: Any, upstream: Upstream
) -> None:
    """Each look gets a part of that answer in place of one of its own."""
    upstream.script = gate = Gate(chunk("x"))

    over = asyncio.Event()

    async def look(_: Exchange) -> None:
        await upstream.exchanges[0].chunk(chunk("y"))
        await over.wait()

    patient = STANDS | {"probe_timeout": "3s"}
    async with start(upstream.url, upstream=patient) as proxy, proxy.streaming() as streamed:
        parts = streamed.aiter_raw()
        await anext(parts)
        upstream.look = look
        reading = asyncio.create_task(_rest(parts))
        await proxy.turns.until(lambda: len(proxy.turns.events(EngineUnanswered)) >= 2)
        assert all(e.heard_at > e.since for e in proxy.turns.events(EngineUnanswered))
        assert not silent(proxy, "e0")
        upstream.look = None
        over.set()
        gate.open.set()
        assert (await reading).endswith(DONE)


async def _rest(parts: Any) -> bytes:
    return b"".join([part async for part in parts])


@pytest.fixture
def processes() -> Iterator[list[Ready]]:
    """Two engines of ours as processes. They are started on a loop of their own: uvloop, on which
    the proxy runs, puts no process into a group."""
    command = ("engine", "sim", "--port", "0", "--model", "m", "--speed", "4")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            engines = (running(*command, name=f"engine {number}") for number in range(2))
            yield [runner.run(stack.enter_async_context(engine)) for engine in engines]
        finally:
            runner.run(stack.aclose())


@pytest.mark.slow
async def test_a_process_that_is_stopped_gets_nothing_new_and_goes_on_where_it_was(
    start: Any, processes: list[Ready]
) -> None:
    """It is stopped in the middle of an answer."""
    pids = {f"e{number}": engine.pid for number, engine in enumerate(processes)}
    engines = [{"url": e.url, "id": f"e{i}", "kind": "vllm"} for i, e in enumerate(processes)]
    settings = {"engines": engines, "upstream": STANDS | {"probe_timeout": "3s"}}
    async with start(**settings) as proxy:
        await proxy.turns.until(lambda: len(proxy.scheduler.engines) == 2)
        async with proxy.streaming("count", max_tokens=400) as answer:
            parts = answer.aiter_raw()
            await anext(parts)
            stopped = answer.headers["x-agentsched-engine"]
            [other] = set(pids) - {stopped}
            os.kill(pids[stopped], signal.SIGSTOP)
            try:
                await proxy.turns.until(lambda: silent(proxy, stopped))
                for name in "abcd":
                    response = await proxy.chat(max_tokens=1, agentsched={"program": name})
                    assert response.status_code == 200
                    assert response.headers["x-agentsched-engine"] == other
            finally:
                os.kill(pids[stopped], signal.SIGCONT)
            # Nothing that had begun was taken away: the same answer comes to its end.
            assert (await _rest(parts)).rstrip().endswith(b"data: [DONE]")
            await proxy.turns.until(lambda: not silent(proxy, stopped))
        assert proxy.turns.events(EngineLost) == proxy.turns.events(StepFailed) == []
