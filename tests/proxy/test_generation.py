"""One scheduled request: bytes in both directions, errors, hang-ups, retries."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import anthropic
import openai
import pytest
from proxy_rig import HURRIES
from proxy_upstream import (
    CHAT,
    DIALECTS,
    DONE,
    MESSAGE,
    MESSAGE_STREAM,
    RESPONSE,
    RESPONSE_STREAM,
    USAGE_CHUNK,
    Exchange,
    Gate,
    Upstream,
    answer,
    chunk,
    data,
    oddly_spelled,
)

from agentsched.model import (
    EngineId,
    StepFailed,
    StepFinished,
    StepStarted,
    after,
    seconds,
)
from agentsched.proxy.sse import SseTap


class TestBytes:
    @pytest.mark.parametrize("path", DIALECTS)
    async def test_a_whole_answer_is_relayed_as_it_is(
        self, proxy: Any, upstream: Upstream, path: str
    ) -> None:
        fields, answer, _ = DIALECTS[path]
        body, said = oddly_spelled(fields), b" \n" + json.dumps(answer, indent=5).encode()

        async def script(exchange: Exchange) -> None:
            await exchange.whole(200, said, content_type="application/json; charset=utf-8")

        upstream.script = script
        response = await proxy.client.post(f"{path}?a=%20b", content=body)
        seen = await upstream.exchange()
        assert (seen.method, seen.target, seen.body) == ("POST", f"{path}?a=%20b", body)
        assert (response.status_code, response.content) == (200, said)
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        assert response.headers["content-length"] == str(len(said))
        [finished] = proxy.turns.events(StepFinished)
        assert finished.usage.prompt_tokens in (5, 7)
        # No token was seen coming, so no time of a first token is claimed.
        assert proxy.turns.events(StepStarted) == []

    @pytest.mark.parametrize("path", DIALECTS)
    @pytest.mark.parametrize("size", [1, 7, 10_000])
    async def test_a_stream_is_relayed_as_it_is(
        self, proxy: Any, upstream: Upstream, path: str, size: int
    ) -> None:
        fields, _, parts = DIALECTS[path]
        body, whole = oddly_spelled(fields, stream=True), b"".join(parts)

        async def script(exchange: Exchange) -> None:
            pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
            await exchange.stream(*pieces)

        upstream.script = script
        response = await proxy.client.post(path, content=body)
        assert response.content == whole
        assert response.headers["content-type"].startswith("text/event-stream")
        seen = await upstream.exchange()
        spliced = seen.body.replace(b',"stream_options":{"include_usage":true}}', b"}")
        assert spliced == body
        assert (seen.body == body) == (path not in ("/v1/chat/completions", "/v1/completions"))
        assert len(proxy.turns.events(StepStarted)) == len(proxy.turns.events(StepFinished)) == 1

    async def test_a_stream_with_an_event_too_large_to_read(
        self, proxy: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = partial(SseTap, event_bytes_max=1_000)
        monkeypatch.setattr("agentsched.proxy.generation.SseTap", small)
        parts = (chunk("x" * 5_000), chunk(finish="stop"), DONE)

        async def script(exchange: Exchange) -> None:
            await exchange.stream(*parts)

        upstream.script = script
        response = await proxy.chat(stream=True, stream_options={"include_usage": True})
        assert response.content == b"".join(parts)
        assert proxy.gateway.fleet.health.told(EngineId("e0")).failures_total == 0
        assert len(proxy.turns.events(StepFinished)) == 1

    async def test_usage_is_asked_for_and_hidden(self, proxy: Any, upstream: Upstream) -> None:
        response = await proxy.chat(stream=True)
        assert (await upstream.exchange()).fields["stream_options"] == {"include_usage": True}
        assert response.content == b"".join((chunk("hel"), chunk("lo"), chunk(finish="stop"), DONE))
        [finished] = proxy.turns.events(StepFinished)
        assert (finished.usage.prompt_tokens, finished.usage.output_tokens) == (7, 2)

    async def test_an_answer_about_streams_is_not_their_end(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        """A model that writes about this very protocol; its usage comes in a packet of its own."""
        may_end = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await exchange.head(content_type="text/event-stream")
            await exchange.chunk(chunk("data: [DONE]") + chunk(finish="stop"))
            await may_end.wait()
            await exchange.chunk(USAGE_CHUNK + DONE)
            await exchange.end()

        upstream.script = script
        async with proxy.streaming() as streamed:
            parts = streamed.aiter_raw()
            assert b"[DONE]" in await anext(parts)
            may_end.set()
            assert b"".join([part async for part in parts]).endswith(DONE)
        [finished] = proxy.turns.events(StepFinished)
        assert (finished.usage.prompt_tokens, finished.usage.output_tokens) == (7, 2)

    async def test_usage_is_shown_to_who_asked(self, proxy: Any, upstream: Upstream) -> None:
        response = await proxy.chat(stream=True, stream_options={"include_usage": True})
        assert USAGE_CHUNK in response.content

    async def test_what_is_meant_for_us_does_not_reach_the_engine(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        await proxy.chat(agentsched={"program": "mine"}, seed=3)
        seen = (await upstream.exchange()).fields
        assert "agentsched" not in seen
        assert seen["seed"] == 3


class TestHeaders:
    async def test_ours_are_added(self, proxy: Any) -> None:
        response = await proxy.chat(headers={"x-agentsched-program": "mine"})
        headers = response.headers
        assert headers["x-agentsched-program"] == "mine"
        assert headers["x-agentsched-engine"] == "e0"
        assert headers["x-agentsched-step"] == "1"
        decision = dict(word.split("=") for word in headers["x-agentsched-decision"].split(" "))
        assert decision["order"] == "remaining-work"
        assert decision["place"] == "new"
        assert decision["as"] == "ours"
        assert int(decision["wait_ms"]) >= 0
        assert headers["server"] == "agentsched"

    async def test_which_reach_the_engine(self, proxy: Any, upstream: Upstream) -> None:
        ours = {
            "X-AgentSched-Program": "p",
            "Cookie": "a=b",
            "Accept-Encoding": "gzip, br",
            "Authorization": "Bearer client",
            "X-Api-Key": "client",
            "Connection": "keep-alive, X-Only-Here",
            "X-Only-Here": "1",
            "TE": "trailers",
            "Traceparent": "00-1-2-03",
            "X-Custom": "caf\xe9".encode("latin-1").decode("latin-1"),
        }
        pairs = [(k.encode(), v.encode("latin-1")) for k, v in ours.items()]
        response = await proxy.chat(headers=pairs)
        assert response.status_code == 200
        seen = (await upstream.exchange()).headers
        assert not [name for name in seen if name.startswith("x-agentsched-")]
        for name in ("cookie", "te", "x-only-here", "connection"):
            assert name not in seen
        assert seen["accept-encoding"] == "identity"
        assert seen["authorization"] == "Bearer client"
        assert seen["x-api-key"] == "client"
        assert seen["traceparent"] == "00-1-2-03"
        assert seen["host"] == upstream.url.removeprefix("http://")
        assert seen["x-request-id"] == response.headers["x-request-id"]

    async def test_an_engines_headers_come_back(self, proxy: Any, upstream: Upstream) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.json(
                CHAT,
                x_agentsched_engine="forged",
                x_ratelimit_remaining="9",
                server="secret/1.0",
                keep_alive="timeout=5",
                x_request_id="theirs",
            )

        upstream.script = script
        response = await proxy.chat(headers={"x-request-id": "my-id"})
        assert response.headers.get_list("x-agentsched-engine") == ["e0"]
        assert response.headers["x-ratelimit-remaining"] == "9"
        assert response.headers.get_list("server") == ["agentsched"]
        assert "keep-alive" not in response.headers
        assert response.headers.get_list("x-request-id") == ["my-id"]
        assert (await upstream.exchange()).headers["x-request-id"] == "my-id"

    @pytest.mark.parametrize("name", ["x-trace-id", "x-correlation-id"])
    async def test_an_id_of_a_run_names_none_of_its_requests(
        self, proxy: Any, upstream: Upstream, name: str
    ) -> None:
        """vLLM names its answers by what it is told."""
        for _ in range(2):
            response = await proxy.chat(headers={name: "run-7"})
            assert response.headers["x-request-id"] == "run-7"
        told = [exchange.headers["x-request-id"] for exchange in upstream.exchanges]
        assert len(set(told)) == 2
        assert all(one.startswith("run-7-") for one in told)

    async def test_keys_stay_here_where_that_is_wanted(
        self, start: Any, upstream: Upstream
    ) -> None:
        async with start(upstream.url, upstream={"forward_authorization": False}) as proxy:
            await proxy.chat(headers={"authorization": "Bearer c", "x-api-key": "c"})
        seen = (await upstream.exchange()).headers
        assert "authorization" not in seen
        assert "x-api-key" not in seen

    async def test_an_engines_own_key_replaces_the_clients(
        self, start: Any, upstream: Upstream
    ) -> None:
        engines = [{"url": upstream.url, "id": "e0", "kind": "openai", "api_key": "ours"}]
        async with start(engines=engines) as proxy:
            await proxy.chat(headers={"authorization": "Bearer c", "x-api-key": "c"})
        seen = await upstream.exchange()
        assert [v for n, v in seen.pairs if n.lower() == "authorization"] == ["Bearer ours"]
        assert "x-api-key" not in seen.headers

    async def test_an_odd_program_id_is_fit_for_a_header(self, proxy: Any) -> None:
        odd = "a\r\nx-evil: 1 é/#?%"
        response = await proxy.chat(agentsched={"program": odd})
        assert response.status_code == 200
        assert "x-evil" not in response.headers
        assert response.headers["x-agentsched-program"].isascii()


class TestUpstreamErrors:
    @pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
    async def test_pass_in_their_own_shape(
        self, proxy: Any, upstream: Upstream, status: int
    ) -> None:
        said = b'{"detail": "as the engine likes it"}'

        async def script(exchange: Exchange) -> None:
            await exchange.whole(status, said, content_type="application/json", x_why="so")

        upstream.script = script
        for is_stream in (False, True):
            response = await proxy.chat(stream=is_stream)
            assert (response.status_code, response.content) == (status, said)
            assert response.headers["x-why"] == "so"
            assert ("retry-after" in response.headers) == (status in (429, 503))
        assert len(proxy.turns.events(StepFailed)) == 2

    @pytest.mark.parametrize(
        ("said", "passed"),
        [("3", "3"), ("0", "0"), ("7200", "60"), ("Wed, 21 Oct 2026 07:28:00 GMT", "60")],
    )
    async def test_retry_after_is_bounded(
        self, proxy: Any, upstream: Upstream, said: str, passed: str
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.whole(429, b"{}", retry_after=said)

        upstream.script = script
        response = await proxy.chat()
        assert response.headers.get_list("retry-after") == [passed]

    async def test_an_error_event_passes_and_fails_the_step(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        error = data({"error": {"message": "died", "type": "x", "code": 500}})

        async def script(exchange: Exchange) -> None:
            await exchange.stream(chunk("hel"), error, DONE)

        upstream.script = script
        response = await proxy.chat(stream=True)
        assert response.content == chunk("hel") + error + DONE
        assert [e.reason for e in proxy.turns.events(StepFailed)] == ["status 500"]

    async def test_clients_understand_our_own(self, start: Any) -> None:
        async with start("http://127.0.0.1:1", limits=HURRIES) as proxy:
            with pytest.raises(openai.InternalServerError) as refused:
                async with openai.AsyncOpenAI(
                    base_url=f"{proxy.url}/v1", api_key="k", max_retries=0
                ) as client:
                    await client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": "x"}]
                    )
            assert refused.value.status_code == 503
            assert refused.value.code == "no_engine"
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
            with pytest.raises(anthropic.APIStatusError) as overloaded:
                async with anthropic.AsyncAnthropic(
                    base_url=proxy.url, api_key="k", max_retries=0
                ) as claude:
                    await claude.messages.create(
                        model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}]
                    )
            body: Any = overloaded.value.body
            assert body["type"] == "error"
            assert body["error"]["type"] == "overloaded_error"
            assert body["request_id"] == overloaded.value.response.headers["x-request-id"]


class TestOfficialClients:
    async def test_openai(self, proxy: Any) -> None:
        async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="k") as client:
            whole = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}]
            )
            assert whole.choices[0].message.content == "hello"
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=True
            )
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            assert text == "hello"

    async def test_openai_responses(self, proxy: Any, upstream: Upstream) -> None:
        async def script(exchange: Exchange) -> None:
            if exchange.fields.get("stream"):
                await exchange.stream(*RESPONSE_STREAM)
            else:
                await exchange.json(RESPONSE)

        upstream.script = script
        async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="k") as client:
            whole = await client.responses.create(model="m", input="x")
            assert whole.output_text == "hello"
            stream = await client.responses.create(model="m", input="x", stream=True)
            kinds = [e.type async for e in stream]
            assert kinds[-1] == "response.completed"

    async def test_anthropic(self, proxy: Any, upstream: Upstream) -> None:
        async def script(exchange: Exchange) -> None:
            if exchange.fields.get("stream"):
                await exchange.stream(*MESSAGE_STREAM)
            else:
                await exchange.json(MESSAGE)

        upstream.script = script
        messages: Any = [{"role": "user", "content": "x"}]
        async with anthropic.AsyncAnthropic(base_url=proxy.url, api_key="k") as client:
            whole = await client.messages.create(model="m", max_tokens=5, messages=messages)
            assert whole.content[0].text == "hello"  # type: ignore[union-attr]
            async with client.messages.stream(model="m", max_tokens=5, messages=messages) as stream:
                assert await stream.get_final_text() == "hello"


async def test_pipelined_requests_are_answered_in_turn(proxy: Any, upstream: Upstream) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    one = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: %d\r\n%s"
    length = b"content-length: %d\r\n\r\n" % len(body) + body
    last = b"connection: close\r\n" + length
    said = await proxy.say(one % (1, length) + one % (2, length) + one % (3, last))
    assert said.count(b"HTTP/1.1 200 OK") == 3
    ids = [line for line in said.split(b"\r\n") if line.lower().startswith(b"x-request-id")]
    assert [i.split(b": ")[1] for i in ids] == [b"1", b"2", b"3"]


async def test_a_program_is_recognised_over_its_steps(proxy: Any) -> None:
    messages = [{"role": "user", "content": "a long question of its own " * 20}]
    first = await proxy.chat(messages=messages)
    messages += [
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and then?"},
    ]
    then = await proxy.chat(messages=messages, stream=True)
    assert then.headers["x-agentsched-program"] == first.headers["x-agentsched-program"]
    assert then.headers["x-agentsched-step"] == "2"
    assert "as=prefix" in then.headers["x-agentsched-decision"]
    assert "place=stay" in then.headers["x-agentsched-decision"]


async def test_a_program_whose_answer_takes_hours_is_not_idle(
    proxy: Any, upstream: Upstream
) -> None:
    gate = upstream.script = Gate(chunk("at last"))
    messages = [{"role": "user", "content": "a very long question of its own " * 20}]
    async with proxy.streaming(messages=messages) as streamed:
        parts = streamed.aiter_raw()
        assert await anext(parts) == chunk("at last")
        in_hours = after(proxy.gateway.host.now(), seconds(5 * 3_600))
        assert proxy.gateway.index.expire(now=in_hours) == ()
        gate.open.set()
        assert b"".join([part async for part in parts]).endswith(DONE)
    messages += [
        {"role": "assistant", "content": "at last"},
        {"role": "user", "content": "and then?"},
    ]
    upstream.script = answer
    then = await proxy.chat(messages=messages)
    program = streamed.headers["x-agentsched-program"]
    assert (then.headers["x-agentsched-program"], then.headers["x-agentsched-step"]) == (
        program,
        "2",
    )
    # Nothing is under way any more, so now it may go.
    long_after = after(in_hours, seconds(5 * 3_600))
    assert proxy.gateway.index.expire(now=long_after) == (program,)


async def test_an_absolute_target_is_ours(proxy: Any, upstream: Upstream) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    head = (
        b"POST http://elsewhere.example/v1/chat/completions?q=1 HTTP/1.1\r\nhost: x\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    assert b"200 OK" in await proxy.say(head + body)
    assert (await upstream.exchange()).target == "/v1/chat/completions?q=1"


@pytest.mark.parametrize("more", [b"", b"connection: keep-alive\r\n"])
async def test_http_1_0(proxy: Any, more: bytes) -> None:
    """As nginx speaks where nobody tells it otherwise, at times with its client's `Connection`."""
    body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}]}'
    head = b"POST /v1/chat/completions HTTP/1.0\r\n%scontent-length: %d\r\n\r\n" % (more, len(body))
    said = await proxy.say(head + body)
    assert said.endswith(DONE)
    assert b"chunked" not in said
