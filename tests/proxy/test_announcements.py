"""The Responses API announces an answer before its engine has queued it: that is no answer yet."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from live import eventually
from proxy_upstream import RESPONSE, RESPONSE_STREAM, Exchange, Upstream, answer, event

from agentsched.model import EngineId, EngineLost, StepCancelled, StepFailed, StepStarted

CREATED = RESPONSE_STREAM[0]
WAITS = {"response": RESPONSE | {"output": [], "status": "in_progress"}}
IN_PROGRESS = event("response.in_progress", {"sequence_number": 1} | WAITS)
WHOLE = b"".join(RESPONSE_STREAM)


def asked(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "stream": True, "input": "x"} | fields).encode()


async def answers(exchange: Exchange) -> None:
    await exchange.stream(*RESPONSE_STREAM)


class Announcing:
    """An engine that announces an answer in these pieces, and then says no more."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces or (CREATED,)
        self.begun = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self.say(exchange)
        await exchange.gone.wait()

    async def say(self, exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        for piece in self._pieces:
            await exchange.chunk(piece)
        self.begun.set()


@pytest.mark.parametrize("is_clean", [False, True])
@pytest.mark.parametrize(
    "pieces",
    [
        (CREATED,),
        (CREATED, IN_PROGRESS),
        (CREATED[:30], CREATED[30:] + IN_PROGRESS[:9]),
        (CREATED, IN_PROGRESS[:90]),
    ],
    ids=["created", "in progress", "in pieces", "and a half"],
)
async def test_another_engine_can_answer(
    start: Any, upstream: Upstream, second: Upstream, pieces: tuple[bytes, ...], is_clean: bool
) -> None:
    announcing = Announcing(*pieces)

    async def dies(exchange: Exchange) -> None:
        await announcing.say(exchange)
        if is_clean:
            await exchange.end()
        else:
            exchange.cut()

    upstream.script, second.script = dies, answers
    async with start(upstream.url, second.url) as proxy:
        response = await proxy.client.post("/v1/responses", content=asked())
        assert (response.status_code, response.content) == (200, WHOLE)
        assert response.headers["x-agentsched-engine"] == "e1"
        assert [e.is_retryable for e in proxy.turns.events(StepFailed)] == [True]
        assert len(proxy.turns.events(StepStarted)) == 1


async def test_official_clients_notice_nothing(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    async def dies(exchange: Exchange) -> None:
        await Announcing().say(exchange)
        exchange.cut()

    upstream.script, second.script = dies, answers
    async with (
        start(upstream.url, second.url) as proxy,
        openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0) as client,
    ):
        stream = await client.responses.create(model="m", input="x", stream=True)
        kinds = [said.type async for said in stream]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert kinds.count("response.created") == 1


async def test_where_none_can_the_error_is_a_status(proxy: Any, upstream: Upstream) -> None:
    async def dies(exchange: Exchange) -> None:
        await Announcing().say(exchange)
        await exchange.end()

    upstream.script = dies
    response = await proxy.client.post("/v1/responses", content=asked())
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "engine_failed"
    assert len(upstream.exchanges) == 3


async def test_a_lost_engines_step_is_moved(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    """Its connection is well: only the looks at it fail."""
    upstream.script, second.script = Announcing(), answers
    async with start(upstream.url, second.url) as proxy:
        member = proxy.gateway.fleet.members[EngineId("e0")]
        before = member.heard_at
        task = asyncio.create_task(proxy.client.post("/v1/responses", content=asked()))
        exchange = await upstream.exchange()
        await eventually(lambda: member.heard_at != before)
        proxy.gateway.host.feed(EngineLost(engine=EngineId("e0"), reason="probe failed"))
        response = await task
        assert response.content == WHOLE
        assert response.headers["x-agentsched-engine"] == "e1"
        await exchange.until_gone()


async def test_batch_work_gives_way(start: Any, upstream: Upstream) -> None:
    announcing = Announcing()

    async def script(exchange: Exchange) -> None:
        if exchange.target != "/v1/responses":
            await answer(exchange)
        elif announcing.begun.is_set():
            await answers(exchange)
        else:
            await announcing(exchange)

    upstream.script = script
    batch = {"x-agentsched-class": "batch"}
    async with start(upstream.url, limits={"running_steps_per_engine_max": 1}) as proxy:
        post = proxy.client.post("/v1/responses", content=asked(), headers=batch)
        task = asyncio.create_task(post)
        first = await upstream.exchange()
        await announcing.begun.wait()
        assert (await proxy.chat()).status_code == 200
        await first.until_gone()
        assert (await task).content == WHOLE
        assert [e.is_retryable for e in proxy.turns.events(StepFailed)] == [True]


async def test_who_joins_gets_the_one_answer(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    announcing, go = Announcing(), asyncio.Event()

    async def dies(exchange: Exchange) -> None:
        await announcing.say(exchange)
        await go.wait()
        exchange.cut()

    upstream.script, second.script = dies, answers
    key = {"idempotency-key": "k1"}
    async with start(upstream.url, second.url) as proxy:
        posts = [
            asyncio.create_task(proxy.client.post("/v1/responses", content=asked(), headers=key))
            for _ in range(2)
        ]
        await announcing.begun.wait()
        await eventually(lambda: proxy.gateway.shared.joined_total == 1)
        go.set()
        assert [(await post).content for post in posts] == [WHOLE, WHOLE]
    assert (len(upstream.exchanges), len(second.exchanges)) == (1, 1)


async def test_a_client_that_leaves_is_noticed(proxy: Any, upstream: Upstream) -> None:
    announcing = upstream.script = Announcing()
    task = asyncio.create_task(proxy.client.post("/v1/responses", content=asked()))
    exchange = await upstream.exchange()
    await announcing.begun.wait()
    task.cancel()
    await exchange.until_gone()
    await proxy.until_idle()
    assert len(proxy.turns.events(StepCancelled)) == 1


async def test_who_announces_without_end_is_relayed(
    proxy: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.proxy.engine_answer._ANNOUNCED_BYTES_MAX", 2_000)
    upstream.script = Announcing(CREATED, *[IN_PROGRESS] * 9)
    async with proxy.client.stream("POST", "/v1/responses", content=asked()) as response:
        assert (await anext(response.aiter_raw())).startswith(CREATED)


async def test_the_last_event_may_lack_its_blank_line(proxy: Any, upstream: Upstream) -> None:
    last = RESPONSE_STREAM[-1].rstrip(b"\n")

    async def script(exchange: Exchange) -> None:
        await exchange.stream(CREATED, last)

    upstream.script = script
    response = await proxy.client.post("/v1/responses", content=asked())
    assert (response.status_code, response.content) == (200, CREATED + last)
    assert len(upstream.exchanges) == 1


async def test_work_in_the_background_is_announced_at_once_and_has_a_home(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    """Its client may leave, come back for the rest by its id, or end it."""

    async def script(exchange: Exchange) -> None:
        if exchange.target.endswith("/cancel"):
            await exchange.json({"id": "resp_1", "status": "cancelled", "output": []})
        else:
            await Announcing(CREATED[:30], CREATED[30:])(exchange)

    upstream.script = second.script = script
    async with start(upstream.url, second.url) as proxy:
        post = proxy.client.stream("POST", "/v1/responses", content=asked(background=True))
        async with post as made:
            assert await anext(made.aiter_raw()) == CREATED
            home = made.headers["x-agentsched-engine"]
            for _ in range(3):
                told = await proxy.client.post("/v1/responses/resp_1/cancel")
                assert told.headers["x-agentsched-engine"] == home
        await proxy.until_idle()
        told = await proxy.client.post("/v1/responses/resp_1/cancel")
        assert told.headers["x-agentsched-engine"] == home
