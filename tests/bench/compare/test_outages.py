"""Embedded engines are lost when the scenario says so, and serve again when the run is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agentsched.model import EngineError, Instant, seconds
from agentsched_bench.compare.outages import failing
from agentsched_bench.compare.watch import watching
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import RunningEngine, ServerConfig, running_engine
from agentsched_bench.sim.faults import Outage

_LONG = {
    "model": "sim", "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 500, "min_tokens": 500, "ignore_eos": True,
}  # fmt: skip


@pytest.fixture
async def engine() -> AsyncIterator[RunningEngine]:
    config = replace(EngineConfig.from_preset(preset("cpu-2core")), max_model_len=2048)
    async with running_engine(ServerConfig(engine=config)) as served:
        yield served


async def test_a_call_breaks_at_the_loss_and_another_is_answered_after_the_run(
    engine: RunningEngine,
) -> None:
    gone = Outage(engine=0, at=Instant(seconds(0.2)), back_at=Instant(seconds(3600)))
    url = f"{engine.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as client:
        async with failing([engine.url], [gone], speed=1.0):
            with pytest.raises(aiohttp.ClientError):
                async with asyncio.timeout(30), client.post(url, json=_LONG) as answer:
                    await answer.read()
        async with client.post(url, json={**_LONG, "max_tokens": 2, "min_tokens": 2}) as answer:
            assert answer.status == 200


async def test_a_loss_lasts_though_another_ends_inside(engine: RunningEngine) -> None:
    at, soon, late = (Instant(seconds(value)) for value in (0.05, 0.051, 3600))
    gone = [Outage(engine=0, at=at, back_at=end) for end in (late, soon)]
    async with aiohttp.ClientSession() as client, failing([engine.url], gone, speed=1.0):
        url = f"{engine.url}/v1/chat/completions"
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(30), client.post(url, json=_LONG) as answer:
                await answer.read()
        # By the clock of the one that plays them, the shorter one is over by then.
        for _ in range(5):
            async with client.get(f"{engine.url}/sim/state") as answer:
                assert (await answer.json())["crashed"]


async def test_what_an_engine_did_before_a_loss_is_in_the_share_of_time_that_it_was_busy(
    engine: RunningEngine,
) -> None:
    """Engines are kept from run to run: what an earlier one counted is taken off."""
    ask = {**_LONG, "max_tokens": 4, "min_tokens": 4}
    async with aiohttp.ClientSession() as client:

        async def post(path: str, body: object = None) -> None:
            async with client.post(f"{engine.url}{path}", json=body) as answer:
                assert answer.status == 200

        await post("/v1/chat/completions", ask)
        async with watching([engine.url], every_s=60) as seen:
            await post("/v1/chat/completions", ask)
            await post("/sim/crash")
            await post("/sim/resume")

    assert seen.busy_share is not None
    assert 0 < seen.busy_share < 1
    assert seen.preemptions == 0


async def test_what_the_body_raises_is_what_is_heard(engine: RunningEngine) -> None:
    gone = Outage(engine=0, at=Instant(seconds(3600)), back_at=Instant(seconds(7200)))
    with pytest.raises(EngineError, match="of the body"):
        async with failing([engine.url], [gone], speed=1.0):
            raise EngineError("of the body")


async def test_an_engine_that_cannot_be_lost_ends_the_run(engine: RunningEngine) -> None:
    gone = Outage(engine=0, at=Instant(0), back_at=Instant(seconds(3600)))
    with pytest.raises(EngineError, match="only embedded engines"):
        async with failing([f"{engine.url}/elsewhere"], [gone], speed=1.0):
            await asyncio.Event().wait()


async def test_without_outages_nothing_is_asked() -> None:
    async with failing([], [], speed=1.0):
        await asyncio.sleep(0)


async def test_a_loss_that_begins_as_another_ends_is_no_return() -> None:
    """At one instant the return comes first; the other way round the engine stayed up."""
    seen: list[str] = []
    is_played = asyncio.Event()

    async def note(request: web.Request) -> web.Response:
        seen.append(request.match_info["deed"])
        if len(seen) == 4:
            is_played.set()
        return web.Response()

    app = web.Application()
    app.router.add_post("/sim/{deed}", note)
    spans = [(4, 6), (1, 4)]
    gone = [
        Outage(engine=0, at=Instant(seconds(at)), back_at=Instant(seconds(end)))
        for at, end in spans
    ]
    async with (
        TestServer(app) as server,
        failing([str(server.make_url("")).rstrip("/")], gone, speed=1e6),
    ):
        await is_played.wait()

    assert seen[:4] == ["crash", "resume", "crash", "resume"]
