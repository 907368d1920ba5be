"""What is relayed beside the scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import Any

import openai
import pytest
from live import eventually
from proxy_rig import HURRIES
from proxy_upstream import Exchange, Gate, Upstream, drop, running_upstream

from agentsched.model import EngineId, StepFinished
from agentsched.proxy.plain import _model_of_form


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/v1/models/m"),
        ("GET", "/v1/models/org%2Fm"),  # so SDKs ask for a model whose name has a slash
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/anything/at%20all?x=%2F&y"),
        ("OPTIONS", "/v1/chat/completions"),
    ],
)
async def test_bytes_pass_as_they_are(
    proxy: Any, upstream: Upstream, method: str, path: str
) -> None:
    said = b'{ "odd":   [1,\n2] }'

    async def script(exchange: Exchange) -> None:
        await exchange.whole(201, said, content_type="application/json", x_more="yes")

    upstream.script = script
    body = b'{"model" :"m", "input": "\xc3\xa9"}' if method == "POST" else b""
    response = await proxy.client.request(
        method, path, content=body, headers={"x-agentsched-program": "p", "cookie": "a=b"}
    )
    seen = await upstream.exchange()
    assert (seen.method, seen.target, seen.body) == (method, path, body)
    assert "cookie" not in seen.headers
    assert "x-agentsched-program" not in seen.headers
    assert (response.status_code, response.content) == (201, said)
    assert response.headers["content-length"] == str(len(said))
    assert response.headers["x-more"] == "yes"
    assert response.headers["x-agentsched-engine"] == "e0"
    assert response.headers["x-request-id"] == seen.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/realtime?model=m", "/v1/responses"])
async def test_a_websocket_is_refused_in_plain_words(
    proxy: Any, upstream: Upstream, path: str
) -> None:
    begins = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    response = await proxy.client.get(path, headers=begins)
    assert (response.status_code, response.json()["error"]["code"]) == (501, "no_websockets")
    assert upstream.exchanges == []


async def test_head(proxy: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n")

    upstream.script = script
    response = await proxy.client.head("/v1/models/m")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == "1234"


async def test_a_stream_passes_as_it_comes(proxy: Any, upstream: Upstream) -> None:
    gate = upstream.script = Gate(b"data: 1\n\n")
    async with proxy.client.stream("GET", "/v1/responses/r/events") as response:
        parts = response.aiter_raw()
        assert await anext(parts) == b"data: 1\n\n"
        gate.open.set()
        assert b"[DONE]" in b"".join([part async for part in parts])


async def test_a_hang_up_reaches_the_engine(proxy: Any, upstream: Upstream) -> None:
    upstream.script = Gate()
    asked = asyncio.create_task(proxy.client.post("/v1/embeddings", content=b"{}"))
    exchange = await upstream.exchange()
    asked.cancel()
    await exchange.until_gone()
    await eventually(lambda: proxy.gateway.plain_requests == 0)


async def test_the_next_engine_is_tried(start: Any, upstream: Upstream, second: Upstream) -> None:
    upstream.script = drop
    async with start(upstream.url, second.url) as proxy:
        for _ in range(3):
            response = await proxy.client.post("/v1/embeddings", content=b'{"model": "m"}')
            assert response.headers["x-agentsched-engine"] == "e1"


async def test_what_brings_engines_down_does_not_go_round(start: Any) -> None:
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(running_upstream()) for _ in range(5)]
        for engine in engines:
            engine.script = drop
        starting = start(*(engine.url for engine in engines), limits={"retries_max": 2})
        proxy = await stack.enter_async_context(starting)
        poison = await proxy.client.post("/v1/embeddings", json={"model": "m", "input": "x"})
        assert poison.status_code == 502
        assert sum(len(engine.exchanges) for engine in engines) == 3
        look = await proxy.client.get("/v1/models/m")
        assert look.status_code == 502
        for engine in engines:
            assert "GET" in {exchange.method for exchange in engine.exchanges}


async def test_one_that_went_meanwhile_is_not_tried(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def late(exchange: Exchange) -> None:
        asked.set()
        await go.wait()
        exchange.cut()

    upstream.script = second.script = late
    async with start(upstream.url, second.url) as proxy:
        body = b'{"model": "m"}'
        answer = asyncio.create_task(proxy.client.post("/v1/embeddings", content=body))
        await asked.wait()
        other = "e1" if upstream.exchanges else "e0"
        assert (await proxy.client.delete(f"/agentsched/v1/engines/{other}")).status_code == 202
        await eventually(lambda: other not in proxy.gateway.fleet.members)
        go.set()
        assert (await answer).status_code == 502
        assert len(upstream.exchanges) + len(second.exchanges) == 1


async def test_failures_between_answers_do_not_add_up(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    """An engine of embeddings closes a connection now and then just as it is used."""
    numbers = itertools.count()

    async def script(exchange: Exchange) -> None:
        if next(numbers) % 4 == 3:
            exchange.cut()
        else:
            await exchange.json({"object": "list", "data": []})

    upstream.script, second.models = script, ["other"]
    settings = {"failures": 3, "failure_share": 1.0}
    async with start(upstream.url, second.url, breaker=settings) as proxy:
        statuses = []
        for _ in range(16):
            asked = {"model": "m", "input": "x"}
            statuses.append((await proxy.client.post("/v1/embeddings", json=asked)).status_code)
        assert statuses.count(502) == 4
        assert proxy.gateway.fleet.health.told("e0").opened_total == 0


async def test_nobody_answers(proxy: Any, upstream: Upstream) -> None:
    upstream.script = drop
    response = await proxy.client.post("/v1/embeddings", content=b'{"model": "m"}')
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "engine_failed"


async def test_no_engine(start: Any) -> None:
    async with start("http://127.0.0.1:1", limits=HURRIES) as proxy:
        response = await proxy.client.post("/v1/messages/count_tokens", content=b"{}")
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "overloaded_error"
        assert 1 <= int(response.headers["retry-after"]) <= 60


async def test_an_answer_that_is_cut_looks_cut(proxy: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{")
        exchange.cut()

    upstream.script = script
    said = await proxy.say(b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"content-length: 99" in said.lower()
    assert said.endswith((b"\r\n\r\n{", b"\r\n\r\n"))


async def test_upstream_errors_pass(proxy: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(429, b"slow down", retry_after="999")

    upstream.script = script
    response = await proxy.client.post("/tokenize", content=b"{}")
    assert (response.status_code, response.content) == (429, b"slow down")
    assert response.headers["retry-after"] == "60"


async def test_the_engine_that_has_the_model(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    second.models = ["other"]
    async with start(upstream.url, second.url) as proxy:
        for _ in range(3):
            body = json.dumps({"model": "other", "input": "x"}).encode()
            response = await proxy.client.post("/v1/embeddings", content=body)
            assert response.headers["x-agentsched-engine"] == "e1"


class TestModels:
    async def test_one_list_is_passed_as_it_is(self, proxy: Any, upstream: Upstream) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.whole(200, b'{"data": [] , "x":1}')

        upstream.script = script
        assert (await proxy.client.get("/v1/models")).content == b'{"data": [] , "x":1}'

    async def test_different_lists_are_joined(
        self, start: Any, upstream: Upstream, second: Upstream
    ) -> None:
        second.models = ["other", "m"]
        upstream.script, second.script = upstream.list_models, second.list_models
        async with start(upstream.url, second.url) as proxy:
            listed = (await proxy.client.get("/v1/models")).json()
        assert [entry["id"] for entry in listed["data"]] == ["m", "other"]

    async def test_one_of_them_fails(
        self, start: Any, upstream: Upstream, second: Upstream
    ) -> None:
        second.models = ["other"]
        upstream.script, second.script = upstream.list_models, drop
        async with start(upstream.url, second.url) as proxy:
            listed = (await proxy.client.get("/v1/models")).json()
        assert [entry["id"] for entry in listed["data"]] == ["m"]

    async def test_one_of_them_says_nothing(
        self, start: Any, upstream: Upstream, second: Upstream
    ) -> None:
        """Whoever asks for a list has no half hour for it."""

        async def silent(exchange: Exchange) -> None:
            if "x-request-id" in exchange.headers:  # a probe is answered
                await exchange.until_gone()
            else:
                await second.list_models(exchange)

        second.models = ["other"]
        upstream.script, second.script = upstream.list_models, silent
        quick = {"probe_timeout": "2s", "failures_until_lost": 1_000}
        async with start(upstream.url, second.url, upstream=quick) as proxy:
            listed = (await proxy.client.get("/v1/models")).json()
        assert [entry["id"] for entry in listed["data"]] == ["m"]

    async def test_all_of_them_refuse(
        self, start: Any, upstream: Upstream, second: Upstream
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.json({"error": {"message": "no key"}}, status=401)

        second.models = ["other"]
        upstream.script = second.script = script
        async with start(upstream.url, second.url) as proxy:
            assert (await proxy.client.get("/v1/models")).status_code == 401


async def test_a_stored_response_is_at_its_engine(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.json({"id": "resp_9", "status": "completed", "output": [], "model": "m"})

    upstream.script = second.script = script
    async with start(upstream.url, second.url) as proxy:
        made = await proxy.client.post("/v1/responses", content=b'{"model": "m", "input": "x"}')
        home = made.headers["x-agentsched-engine"]
        for _ in range(3):
            got = await proxy.client.get("/v1/responses/resp_9")
            assert got.headers["x-agentsched-engine"] == home
            cancelled = await proxy.client.post("/v1/responses/resp_9/cancel")
            assert cancelled.headers["x-agentsched-engine"] == home
            for path in ("compact", "input_tokens"):
                body = {"model": "m", "previous_response_id": "resp_9"}
                asked = await proxy.client.post(f"/v1/responses/{path}", json=body)
                assert asked.headers["x-agentsched-engine"] == home


async def test_a_form_goes_to_the_engine_that_has_its_model(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    """A recording that is to be written down; openai's client sends it so."""
    second.models = ["whisper"]

    async def script(exchange: Exchange) -> None:
        await exchange.json({"text": "hello"})

    upstream.script = second.script = script
    async with start(upstream.url, second.url) as proxy:
        client = openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0)
        async with client:
            for _ in range(3):
                file = ("a.wav", b'RIFF\r\n\r\nname="model"\r\n\r\nm\r\n', "audio/wav")
                said = await client.audio.transcriptions.create(file=file, model="whisper")
                assert said.text == "hello"
        for _ in range(3):
            await proxy.client.get("/v1/models/whisper")
    assert (len(upstream.exchanges), len(second.exchanges)) == (0, 6)


async def test_a_slash_too_many_redirects_to_us(proxy: Any, upstream: Upstream) -> None:
    """vLLM's web framework answers so, with the address by which it was asked."""

    async def script(exchange: Exchange) -> None:
        if exchange.target.endswith("/"):
            place = f"http://{exchange.headers['host']}{exchange.target.rstrip('/')}"
            await exchange.whole(307, b"", location=place)
        else:
            await upstream.list_models(exchange)

    upstream.script = script
    moved = await proxy.client.get("/v1/models/", follow_redirects=True)
    assert moved.json()["data"][0]["id"] == "m"
    assert moved.url == f"{proxy.url}/v1/models"


async def test_a_response_in_the_background_is_at_its_engine(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    """Its first answer says that it is queued: that is no answer that was cut short."""

    async def script(exchange: Exchange) -> None:
        status = "queued" if exchange.method == "POST" else "completed"
        await exchange.json({"id": "resp_7", "status": status, "output": [], "model": "m"})

    upstream.script = second.script = script
    async with start(upstream.url, second.url) as proxy:
        asked = {"model": "m", "input": "x", "background": True}
        made = await proxy.client.post("/v1/responses", json=asked)
        assert made.json()["status"] == "queued"
        home = made.headers["x-agentsched-engine"]
        for _ in range(3):
            got = await proxy.client.get("/v1/responses/resp_7")
            assert got.headers["x-agentsched-engine"] == home
        assert proxy.gateway.fleet.health.told(home).failures_total == 0
        # Drained, or ejected, it has the answer still, and to look at that is no new work.
        proxy.gateway.fleet.health.drained(EngineId(home), is_draining=True)
        got = await proxy.client.get("/v1/responses/resp_7")
        assert got.headers["x-agentsched-engine"] == home
        [ended] = proxy.turns.events(StepFinished)
        assert ended.finish_reason == "queued"


async def test_a_client_that_never_reads_is_cut_off(start: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        while not exchange.gone.is_set():
            await exchange.chunk(b"x" * 50_000)

    upstream.script = script
    async with start(upstream.url, http={"write_timeout": "100ms"}) as proxy:
        _, writer = await proxy.raw(b"GET /v1/files/x HTTP/1.1\r\nhost: x\r\n\r\n")
        writer.transport.pause_reading()
        await (await upstream.exchange()).until_gone()
        writer.close()


FORM_HEAD = b'Content-Disposition: form-data; name="model"'
DECOY = b'x; name="model"\r\n\r\nwrong\r\n'


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b"--b\r\n" + FORM_HEAD + b"\r\n\r\nwhisper\r\n--b--", "whisper"),
        (b"--b\r\n" + FORM_HEAD.lower() + b"\r\nX: y\r\n\r\nwhisper\r\n--b--", "whisper"),
        (b"--b\r\n" + FORM_HEAD + b"\r\n\r\nm\r\n--b--", "m"),
        (b"--b\r\n" + FORM_HEAD + b"\r\n\r\n\r\n--b--", ""),
        (b"--b\r\n" + FORM_HEAD + b"\r\n\r\nwhisper", ""),
        (b"--b\r\n" + FORM_HEAD + b"\r\n", ""),
        (b"--b\r\n" + FORM_HEAD + b"\r\n\r\n" + b"w" * 254 + b"\r\n", "w" * 254),
        (b"--b\r\n" + FORM_HEAD + b"\r\n\r\n" + b"w" * 255 + b"\r\n", ""),
        (b"--b\r\n" + FORM_HEAD + b"\r\nX: " + b"y" * 600 + b"\r\n\r\nwhisper\r\n", ""),
        (b"--b\r\n" + DECOY * 7 + FORM_HEAD + b"\r\n\r\nwhisper\r\n", "whisper"),
        (b"--b\r\n" + DECOY * 8 + FORM_HEAD + b"\r\n\r\nwhisper\r\n", ""),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nRIFF\r\n', ""),
    ],
)
def test_the_model_of_a_form_is_read_within_bounds(body: bytes, model: str) -> None:
    assert _model_of_form(body) == model


async def test_while_we_drain_nothing_new_is_relayed(proxy: Any, upstream: Upstream) -> None:
    proxy.gateway.draining.set()
    said = await proxy.client.post("/v1/embeddings", json={"model": "m", "input": "x"})
    assert said.status_code == 503
    assert upstream.exchanges == []


async def test_nor_are_lists_put_together(start: Any, upstream: Upstream, second: Upstream) -> None:
    second.models = ["other"]
    upstream.script, second.script = upstream.list_models, second.list_models
    async with start(upstream.url, second.url) as proxy:
        proxy.gateway.draining.set()
        said = await proxy.client.get("/v1/models")
        assert (said.status_code, said.json()["error"]["code"]) == (503, "draining")


async def test_only_an_answer_that_is_one_ends_a_row_of_failures(
    proxy: Any, upstream: Upstream
) -> None:
    status = 500

    async def script(exchange: Exchange) -> None:
        await exchange.json({"error": {"message": "it is broken"}}, status=status)

    upstream.script = script
    await proxy.chat()
    [engine] = proxy.scheduler.engines
    health = proxy.gateway.fleet.health
    assert health.told(engine).failures_in_a_row == 1
    assert (await proxy.client.get("/v1/models/m")).status_code == 500
    assert health.told(engine).failures_in_a_row == 1
    status = 404
    assert (await proxy.client.get("/v1/models/m")).status_code == 404
    assert health.told(engine).failures_in_a_row == 0
