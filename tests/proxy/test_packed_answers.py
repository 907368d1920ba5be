"""Engines, or gateways before them, that compress their answers though identity was asked for."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from proxy_upstream import ANSWER, DONE, USAGE_CHUNK, Exchange, Upstream, chunk, data

from agentsched.model import StepFailed, StepFinished, ToolCall

CALL = data(
    {
        "id": "c1",
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "delta": {
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "bash", "arguments": "{}"},
                        }
                    ]
                },
                "finish_reason": None,
            }
        ],
    }
)
PARTS = (chunk("hel"), CALL, chunk(finish="tool_calls"), USAGE_CHUNK, DONE)


async def whole(exchange: Exchange) -> None:
    body = gzip.compress(ANSWER)
    await exchange.whole(200, body, content_type="application/json", Content_Encoding="gzip")


async def test_a_whole_answer(
    proxy: Any, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    """Every request was a 502, "the answer is not whole JSON", and the engine was shut out."""
    upstream.script = whole
    for _ in range(2):
        answer = await proxy.chat(headers={"accept-encoding": "identity"})
        assert (answer.status_code, answer.content) == (200, ANSWER)
        assert "content-encoding" not in answer.headers
        assert upstream.exchanges[-1].headers["accept-encoding"] == "identity"
    await proxy.until_idle()
    ended = proxy.turns.events(StepFinished)
    assert [(e.usage.prompt_tokens, e.usage.output_tokens) for e in ended] == [(7, 2)] * 2
    assert caplog.text.count("engine e0 answers in the encoding gzip") == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("wants_usage", [True, False])
async def test_a_stream(proxy: Any, upstream: Upstream, coding: str, wants_usage: bool) -> None:
    async def stream(exchange: Exchange) -> None:
        packer = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
        await exchange.head(content_type="text/event-stream", Content_Encoding=coding.upper())
        for part in PARTS:
            await exchange.chunk(packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH))
        await exchange.chunk(packer.flush())
        await exchange.end()

    upstream.script = stream
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    async with proxy.streaming(**options) as response:
        assert response.status_code == 200
        assert "content-encoding" not in response.headers
        body = b"".join([part async for part in response.aiter_raw()])
    assert body == b"".join(p for p in PARTS if wants_usage or p != USAGE_CHUNK)
    await proxy.until_idle()
    [ended] = proxy.turns.events(StepFinished)
    assert (ended.usage.prompt_tokens, ended.usage.output_tokens) == (7, 2)
    assert [call.tool for call in ended.tool_calls] == ["bash"]
    assert isinstance(ended.tool_calls[0], ToolCall)


async def test_an_error(proxy: Any, upstream: Upstream) -> None:
    said = json.dumps({"error": {"message": "too long", "code": 400}}).encode()

    async def refuse(exchange: Exchange) -> None:
        body = gzip.compress(said)
        await exchange.whole(400, body, content_type="application/json", content_encoding="gzip")

    upstream.script = refuse
    answer = await proxy.chat()
    assert (answer.status_code, answer.content) == (400, said)


async def test_one_that_is_not_what_it_is_said_to_be(proxy: Any, upstream: Upstream) -> None:
    async def wrong(exchange: Exchange) -> None:
        await exchange.whole(200, ANSWER, content_encoding="gzip")

    upstream.script = wrong
    answer = await proxy.chat()
    assert answer.status_code == 502
    await proxy.until_idle()
    [failed] = proxy.turns.events(StepFailed)
    assert "not the gzip that it is said to be" in failed.reason


async def test_what_nobody_undoes_is_named_and_left_as_it_is(
    proxy: Any, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    """Some servers write a character set there."""

    async def named(exchange: Exchange) -> None:
        await exchange.whole(200, ANSWER, content_encoding="UTF-8")

    upstream.script = named
    answer = await proxy.chat()
    assert (answer.status_code, answer.content) == (200, ANSWER)
    assert answer.headers["content-encoding"] == "UTF-8"
    assert "engine e0 answers in the encoding utf-8" in caplog.text


async def test_lists_of_models(start: Any, upstream: Upstream, second: Upstream) -> None:
    """An engine whose list could not be read was never up."""

    async def listed(exchange: Exchange) -> None:
        body = gzip.compress(json.dumps({"data": [{"id": "other"}]}).encode())
        await exchange.whole(200, body, content_encoding="gzip")

    upstream.look = listed
    second.script = second.list_models
    upstream.script = listed
    async with start(upstream.url, second.url) as proxy:
        await proxy.turns.until(lambda: len(proxy.gateway.fleet.up()) == 2)
        assert proxy.scheduler.engines["e0"].capabilities.models == ("other",)
        models = (await proxy.client.get("/v1/models")).json()["data"]
        assert {model["id"] for model in models} == {"other", "m"}


async def test_what_is_only_passed_on_stays_packed(proxy: Any, upstream: Upstream) -> None:
    """Nobody reads it here, and a file's encoding may be the file's own."""
    packed = gzip.compress(ANSWER)
    upstream.script = whole
    asked = proxy.client.build_request("POST", "/v1/embeddings", json={"model": "m", "input": "a"})
    answer = await proxy.client.send(asked, stream=True)
    assert answer.headers["content-encoding"] == "gzip"
    body = b"".join([part async for part in answer.aiter_raw()])
    assert gzip.decompress(body) == gzip.decompress(packed)
