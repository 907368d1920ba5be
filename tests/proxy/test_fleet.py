"""Engines that come, go, hang and are slow."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from live import eventually
from proxy_rig import HURRIES
from proxy_upstream import ANSWER, DONE, Exchange, Gate, Upstream, chunk

from agentsched.model import EngineLost, EngineReported, StepFailed
from agentsched_bench.ports import free_port

#: A look fails of an engine that hangs, and never of a loop that had much else to do.
HANGS = {"probe_timeout": "400ms", "failures_until_lost": 2}


async def test_an_engine_that_comes_up_later(start: Any, upstream: Upstream) -> None:
    await upstream.stop()
    upstream.port = free_port()  # nobody else takes it meanwhile
    async with start(upstream.url, limits={"engine_wait_max": "60s"}) as proxy:
        assert (await proxy.client.get("/readyz")).status_code == 503
        held = asyncio.create_task(proxy.chat())
        await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 1)
        await upstream.start()
        response = await held
        assert response.status_code == 200
        assert (await proxy.client.get("/readyz")).status_code == 200


async def test_a_model_that_is_loaded_later_is_served(proxy: Any, upstream: Upstream) -> None:
    """A LoRA adapter in vLLM, a model that another server pulls."""
    assert (await proxy.chat(model="lora")).status_code == 404
    upstream.models = ["m", "lora"]
    await proxy.turns.until(lambda: "lora" in proxy.scheduler.engines["e0"].capabilities.models)
    assert (await proxy.chat(model="lora")).status_code == 200
    upstream.models = ["m"]
    await proxy.turns.until(lambda: proxy.scheduler.engines["e0"].capabilities.models == ("m",))
    assert (await proxy.chat(model="lora")).status_code == 404


async def test_all_are_down(start: Any) -> None:
    async with start("http://127.0.0.1:1", "http://127.0.0.1:2", limits=HURRIES) as proxy:
        began = asyncio.get_running_loop().time()
        response = await proxy.chat()
        assert asyncio.get_running_loop().time() - began >= 0.25
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "no_engine"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert "x-agentsched-program" in response.headers


async def test_one_that_dies_is_lost_at_once_and_comes_back(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    await upstream.stop()
    upstream.port = free_port()  # nobody else takes it when it is away
    await upstream.start()
    async with start(upstream.url, second.url) as proxy:
        await upstream.stop()
        for name in "abcd":
            response = await proxy.chat(agentsched={"program": name})
            assert response.headers["x-agentsched-engine"] == "e1"
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
        await upstream.start()
        await proxy.turns.until(lambda: proxy.scheduler.engines["e0"].is_up)
        homes = {
            (await proxy.chat(agentsched={"program": n})).headers["x-agentsched-engine"]
            for n in "efgh"
        }
        assert "e0" in homes


@pytest.mark.slow
async def test_one_that_hangs_gives_its_unanswered_steps_back(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    silent, half = Gate(), Gate(chunk("hel"))

    async def script(exchange: Exchange) -> None:
        await (half if exchange.fields.get("stream") else silent)(exchange)

    upstream.script = script
    waits = {"engine_wait_max": "60s"}
    async with start(upstream.url, upstream=HANGS, limits=waits) as proxy:
        async with proxy.streaming() as streamed:
            parts = streamed.aiter_raw()
            assert await anext(parts) == chunk("hel")
            asked = asyncio.create_task(proxy.chat())
            await upstream.exchange(1)
            upstream.is_well.clear()
            await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
            # It answers nobody any more; a second one takes what it had not begun.
            retried = await upstream.exchange(1)
            await retried.until_gone()
            upstream.is_well.set()
            silent.open.set()
            response = await asked
            assert (response.status_code, response.content) == (200, ANSWER)
            # A stream that still comes is not broken off for a probe that failed.
            half.open.set()
            rest = b"".join([part async for part in parts])
            assert rest.endswith(DONE)
        [failed] = proxy.turns.events(StepFailed)
        assert failed.is_retryable


@pytest.mark.slow
async def test_one_that_hangs_beside_one_that_is_well(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    upstream.script = Gate()
    async with start(upstream.url, second.url, upstream=HANGS) as proxy:
        asked = asyncio.create_task(proxy.chat())
        exchange = await upstream.exchange()
        upstream.is_well.clear()
        response = await asked
        assert response.headers["x-agentsched-engine"] == "e1"
        await exchange.until_gone()


async def test_one_failed_look_is_forgiven(start: Any, upstream: Upstream) -> None:
    async def refuse(exchange: Exchange) -> None:
        upstream.look = None
        await exchange.whole(500, b"{}")

    async with start(upstream.url, upstream={"failures_until_lost": 2}) as proxy:
        upstream.look = refuse
        seen = upstream.looks
        await eventually(lambda: upstream.looks >= seen + 3)
        assert proxy.turns.events(EngineLost) == []
        assert proxy.gateway.fleet.members["e0"].failures == 0


async def test_one_that_refuses_every_look_is_lost(start: Any, upstream: Upstream) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.whole(500, b"{}")

    async with start(upstream.url) as proxy:
        upstream.look = refuse
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
        assert "500" in proxy.gateway.fleet.members["e0"].last_error


async def test_one_that_is_slow_at_first_does_not_keep_the_others(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    upstream.is_well.clear()
    settings = {"upstream": {"probe_timeout": "200ms"}, "limits": {"engine_wait_max": "60s"}}
    async with start(upstream.url, second.url, **settings) as proxy:
        for name in "ab":
            response = await proxy.chat(agentsched={"program": name})
            assert response.headers["x-agentsched-engine"] == "e1"
        upstream.is_well.set()
        await proxy.turns.until(lambda: "e0" in proxy.scheduler.engines)


async def test_a_trial_may_take_longer_than_a_look(start: Any, upstream: Upstream) -> None:
    first = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        # The first look is quick, the trial after it waits for its turn in the engine.
        if first.is_set():
            await asyncio.sleep(0.15)
            upstream.look = None
        first.set()
        await upstream.list_models(exchange)

    upstream.look = slow
    settings = {"probe_timeout": "100ms", "trial_timeout": "5s"}
    async with start(upstream.url, upstream=settings) as proxy:
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineReported)))
        assert (await proxy.chat()).status_code == 200


async def test_a_defect_of_an_adapter_is_a_failed_look(
    proxy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    member = proxy.gateway.fleet.members["e0"]

    async def broken() -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(member.engine, "load", broken)
    await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
    assert "a defect while looking at engine e0" in caplog.text
    monkeypatch.undo()
    await proxy.turns.until(lambda: proxy.scheduler.engines["e0"].is_up)
    assert (await proxy.chat()).status_code == 200


async def test_a_server_error_makes_us_look(start: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(500, b"{}")

    upstream.script = script
    async with start(upstream.url, upstream={"probe_interval": "1h"}) as proxy:
        before = upstream.looks
        assert (await proxy.chat()).status_code == 500
        await eventually(lambda: upstream.looks > before)


async def test_one_that_was_never_up_is_told_once_and_why(
    start: Any, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong address, or a key that is wanted: nobody loses what never came."""

    async def refuse(exchange: Exchange) -> None:
        await exchange.whole(401, b'{"error": {"message": "no key"}}')

    def warned() -> list[str]:
        told = [r for r in caplog.records if r.name == "agentsched.proxy.fleet"]
        return [r.getMessage() for r in told if r.levelno == logging.WARNING]

    upstream.look = refuse
    async with start(upstream.url) as proxy:
        member = proxy.gateway.fleet.members["e0"]
        await eventually(lambda: member.looks >= 4)
        [text] = warned()
        assert text.startswith("engine e0 is not up: ")
        assert "401" in text
        upstream.look = None
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineReported)))
        await upstream.stop()
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
        seen = member.looks
        await eventually(lambda: member.looks >= seen + 2)
        assert len(warned()) == 2
        assert warned()[1].startswith("engine e0 is lost: ")
