"""A request that comes twice is worked on once, and both get the whole answer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import pytest
from live import eventually
from proxy_upstream import ANSWER, CHAT_STREAM, DONE, USAGE_CHUNK, Gate, chunk

from agentsched.model import StepArrived, StepCancelled
from agentsched.proxy import idempotency

KEY = {"idempotency-key": "k1"}


async def chat(proxy: Any, headers: Any, text: str = "hi", **fields: Any) -> httpx.Response:
    return await proxy.chat(text, headers=headers, **fields)


async def test_the_second_joins_the_first(proxy: Any, upstream: Any) -> None:
    gate = upstream.script = Gate(is_stream=False)
    first = asyncio.ensure_future(chat(proxy, KEY))
    await gate.begun.wait()
    second = asyncio.ensure_future(chat(proxy, KEY | {"x-request-id": "other"}))
    await eventually(lambda: proxy.gateway.shared.joined_total == 1)
    gate.open.set()
    one, two = await first, await second
    assert one.content == two.content == ANSWER
    assert len(upstream.exchanges) == 1
    assert "x-agentsched-joined" not in one.headers
    assert two.headers["x-agentsched-joined"] == "1"
    assert two.headers["x-request-id"] == "other"
    assert one.headers["x-agentsched-step"] == two.headers["x-agentsched-step"]


async def test_a_stream_is_joined_from_its_beginning(proxy: Any, upstream: Any) -> None:
    gate = upstream.script = Gate(chunk("hel"), chunk("lo"))
    first = asyncio.ensure_future(chat(proxy, KEY, stream=True))
    await gate.begun.wait()
    second = asyncio.ensure_future(chat(proxy, KEY, stream=True))
    await eventually(lambda: proxy.gateway.shared.joined_total == 1)
    gate.open.set()
    one, two = await first, await second
    assert one.content == two.content
    assert one.content.startswith(chunk("hel") + chunk("lo"))
    assert one.headers["content-type"].startswith("text/event-stream")
    assert len(upstream.exchanges) == 1


@pytest.mark.slow
async def test_an_answer_can_be_had_again_for_a_while(start: Any, upstream: Any) -> None:
    async with start(upstream.url, idempotency={"window": "2s"}) as proxy:
        one, two = await chat(proxy, KEY), await chat(proxy, KEY)
        assert one.content == two.content
        assert len(upstream.exchanges) == 1
        await eventually(lambda: not len(proxy.gateway.shared))
        await chat(proxy, KEY)
        assert len(upstream.exchanges) == 2


async def test_work_goes_on_for_a_client_that_is_about_to_ask_again(
    proxy: Any, upstream: Any
) -> None:
    gate = upstream.script = Gate(*CHAT_STREAM[:2])
    first = asyncio.ensure_future(chat(proxy, KEY, stream=True))
    await gate.begun.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    again = asyncio.ensure_future(chat(proxy, KEY, stream=True))
    await eventually(lambda: proxy.gateway.shared.joined_total == 1)
    gate.open.set()
    assert (await again).content.startswith(b"".join(CHAT_STREAM[:2]))
    assert len(upstream.exchanges) == 1
    assert proxy.turns.events(StepCancelled) == []


async def test_who_comes_back_in_time_is_waited_for_no_more(proxy: Any, upstream: Any) -> None:
    gate = upstream.script = Gate(is_stream=False)
    first = asyncio.ensure_future(chat(proxy, KEY))
    await gate.begun.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    (entry,) = proxy.gateway.shared._entries.values()
    await eventually(lambda: entry.timer is not None)
    again = asyncio.ensure_future(chat(proxy, KEY))
    await eventually(lambda: entry.clients == 1)
    assert entry.timer is None
    gate.open.set()
    assert (await again).content == ANSWER


async def test_work_that_nobody_comes_back_for_is_stopped(start: Any, upstream: Any) -> None:
    gate = upstream.script = Gate(is_stream=False)
    async with start(upstream.url, idempotency={"patience": "50ms"}) as proxy:
        first = asyncio.ensure_future(chat(proxy, KEY))
        await gate.begun.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await (await upstream.exchange()).until_gone()
        await proxy.turns.until(lambda: bool(proxy.turns.events(StepCancelled)))
        assert not len(proxy.gateway.shared)


async def test_its_body_counts_for_as_long_as_the_work_goes_on(proxy: Any, upstream: Any) -> None:
    gate = upstream.script = Gate(is_stream=False)
    bodies, text = proxy.gateway.bodies, "x" * 5_000
    first = asyncio.ensure_future(chat(proxy, KEY, text=text))
    await gate.begun.wait()
    held = bodies.held
    second = asyncio.ensure_future(chat(proxy, KEY, text=text))
    await eventually(lambda: proxy.gateway.shared.joined_total == 1)
    assert bodies.held == 2 * held > 10_000
    [entry] = proxy.gateway.shared._entries.values()
    for client, left in ((second, 1), (first, 0)):
        client.cancel()
        await eventually(lambda left=left: entry.clients == left)  # type: ignore[misc]
        assert (await proxy.client.get("/healthz")).status_code == 200
        assert bodies.held == held
    gate.open.set()
    await eventually(lambda: entry.recording.is_over)
    await eventually(lambda: not bodies.held)


async def test_a_key_is_for_one_body(proxy: Any) -> None:
    await chat(proxy, KEY)
    answer = await chat(proxy, KEY, text="something else")
    assert answer.status_code == 422
    assert json.loads(answer.content)["error"]["code"] == "idempotency_key_reused"


async def test_a_request_id_is_a_key_together_with_the_body(proxy: Any, upstream: Any) -> None:
    headers = {"x-request-id": "r1"}
    await chat(proxy, headers)
    await chat(proxy, headers)
    await chat(proxy, headers, text="something else")
    assert len(upstream.exchanges) == 2


async def test_whose_beginning_is_not_kept_is_asked_for_anew(
    start: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes late could only have the rest of it."""
    monkeypatch.setattr(idempotency, "_ANSWER_BYTES_MAX", 1_000)
    gate = upstream.script = Gate(chunk("x" * 2_000), chunk("y"))
    async with start(upstream.url) as proxy:
        first = asyncio.ensure_future(chat(proxy, KEY, stream=True))
        await gate.begun.wait()
        (entry,) = proxy.gateway.shared._entries.values()
        await eventually(lambda: not entry.recording.is_joinable)
        again = asyncio.ensure_future(chat(proxy, KEY, stream=True))
        await eventually(lambda: len(upstream.exchanges) == 2)
        gate.open.set()
        one, two = await first, await again
        assert one.content == two.content
        assert "x-agentsched-joined" not in two.headers


async def test_an_id_that_we_do_not_take_is_no_key(proxy: Any, upstream: Any) -> None:
    """Whoever sends such ones gets ids of ours, a new one each time."""
    headers = {"x-request-id": "r" * 1_000}
    one, two = await chat(proxy, headers), await chat(proxy, headers)
    assert one.headers["x-request-id"] != two.headers["x-request-id"]
    assert len(upstream.exchanges) == 2


async def test_keys_are_a_tenants_own(proxy: Any, upstream: Any) -> None:
    await chat(proxy, KEY | {"authorization": "Bearer a"})
    await chat(proxy, KEY | {"authorization": "Bearer b"})
    assert len(upstream.exchanges) == 2


async def test_an_error_is_not_kept(proxy: Any, upstream: Any) -> None:
    async def broken(exchange: Any) -> None:
        await exchange.json({"error": {"message": "no"}}, 400)

    good, upstream.script = upstream.script, broken
    assert (await chat(proxy, KEY)).status_code == 400
    upstream.script = good
    assert (await chat(proxy, KEY)).content == ANSWER


async def test_a_key_that_is_too_long_is_refused(proxy: Any) -> None:
    answer = await chat(proxy, {"idempotency-key": "k" * 300})
    assert answer.status_code == 400


async def test_off_each_is_a_request_of_its_own(start: Any, upstream: Any) -> None:
    async with start(upstream.url, idempotency={"is_on": False}) as proxy:
        await chat(proxy, KEY)
        await chat(proxy, KEY)
        assert len(upstream.exchanges) == 2


async def test_what_is_kept_is_bounded(start: Any, upstream: Any) -> None:
    async def long(exchange: Any) -> None:
        await exchange.whole(200, ANSWER + b" " * 30_000, content_type="application/json")

    upstream.script = long
    async with start(upstream.url, idempotency={"bytes_max": 1 << 16}) as proxy:
        for number in range(5):
            await chat(proxy, {"idempotency-key": f"k{number}"})
        assert len(proxy.gateway.shared) == 2
        await chat(proxy, {"idempotency-key": "k4"})
        assert len(upstream.exchanges) == 5
        assert len(proxy.turns.events(StepArrived)) == 5


async def test_streams_under_way_are_bounded_together(start: Any, upstream: Any) -> None:
    """A proxy in front that gives each request an id makes all of them such streams."""
    may_end = asyncio.Event()
    half = chunk("x" * 40_000)

    async def script(exchange: Any) -> None:
        await exchange.head(content_type="text/event-stream")
        await exchange.chunk(half)
        await may_end.wait()
        await exchange.chunk(chunk("y" * 40_000) + chunk(finish="stop") + USAGE_CHUNK + DONE)
        await exchange.end()

    upstream.script = script
    async with start(upstream.url, idempotency={"bytes_max": 1 << 16}) as proxy:
        shared, begun = proxy.gateway.shared, Counter[int]()

        async def ask(number: int) -> bytes:
            body = {"model": "m", "messages": [{"role": "user", "content": f"program {number}"}]}
            headers = {"x-request-id": f"r{number}"}
            read = b""
            async with proxy.client.stream(
                "POST", "/v1/chat/completions", json=body | {"stream": True}, headers=headers
            ) as response:
                async for part in response.aiter_raw():
                    read += part
                    begun[number] = len(read)
            return read

        asked = [asyncio.create_task(ask(number)) for number in range(8)]
        await eventually(lambda: sum(size >= len(half) for size in begun.values()) == 8)
        await eventually(lambda: _in_memory(shared) <= 1 << 16)
        may_end.set()
        for answer in await asyncio.gather(*asked):
            assert answer.startswith(half)
            assert answer.endswith(DONE)
        await proxy.until_idle()
        assert _in_memory(shared) == shared._held_bytes <= 1 << 16


def _in_memory(shared: Any) -> int:
    entries = shared._entries.values()
    return sum(len(part) for entry in entries for part in entry.recording._parts)


async def test_one_that_reads_slowly_takes_the_answer_from_nobody(
    start: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads all the time, though what it is behind takes it longer than the write timeout."""
    monkeypatch.setattr(idempotency, "_ANSWER_BYTES_MAX", 20_000)
    send = idempotency.send

    async def slowly(request: Any, response: Any, part: bytes, http: Any) -> None:
        if "x-slow" in request.headers:
            for _ in range(1 + len(part) // 400):
                await asyncio.sleep(0.002)
        await send(request, response, part, http)

    monkeypatch.setattr(idempotency, "send", slowly)

    async def long(exchange: Any) -> None:
        await eventually(lambda: proxy.gateway.shared.joined_total == 1)
        parts = [chunk("y" * 300)] * 100
        await exchange.stream(*parts, chunk(finish="stop"), DONE)

    async with start(upstream.url, http={"write_timeout": "50ms"}) as proxy:
        upstream.script = long
        first = chat(proxy, KEY, stream=True)
        one, two = await asyncio.gather(first, chat(proxy, KEY | {"x-slow": "1"}, stream=True))
        assert one.content == two.content
        assert one.content.endswith(DONE)
        assert len(upstream.exchanges) == 1
        assert proxy.turns.events(StepCancelled) == []


async def test_the_number_of_keys_is_bounded(
    proxy: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "_ENTRIES_MAX", 2)
    for key in ("k0", "k1", "k2"):
        await chat(proxy, {"idempotency-key": key})
    assert len(proxy.gateway.shared) == 2
    await chat(proxy, {"idempotency-key": "k2"})
    assert len(upstream.exchanges) == 3
    await chat(proxy, {"idempotency-key": "k0"})
    assert len(upstream.exchanges) == 4, "the one asked for longest ago is forgotten"


async def test_who_made_room_for_newer_keys_is_answered_all_the_same(
    proxy: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "_ENTRIES_MAX", 1)
    usual, gate = upstream.script, Gate(is_stream=False)
    upstream.script = gate
    first = asyncio.ensure_future(chat(proxy, KEY))
    await gate.begun.wait()
    upstream.script = usual
    await chat(proxy, {"idempotency-key": "newer"}, text="something else")
    assert len(proxy.gateway.shared) == 1
    gate.open.set()
    assert (await first).content == ANSWER
    # Nobody can have it again: it was forgotten while it ran.
    again = await chat(proxy, KEY)
    assert "x-agentsched-joined" not in again.headers
    assert len(upstream.exchanges) == 3
