"""One scheduled request when something goes away: the client, the engine, or our own wits."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from proxy_upstream import (
    ANSWER,
    CHAT,
    CHAT_STREAM,
    COMPLETION,
    DIALECTS,
    DONE,
    MESSAGE_STREAM,
    Exchange,
    Gate,
    Upstream,
    chunk,
    data,
    drop,
    event,
    oddly_spelled,
)

from agentsched.model import (
    Dispatch,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepStarted,
)

#: What vLLM says of an answer that it gives up before its first token: whole, and as a stream.
GIVEN_UP: dict[str, tuple[dict[str, Any], bytes]] = {
    "/v1/chat/completions": (
        CHAT | {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "abort"}]},
        chunk("") + chunk("", "abort") + DONE,
    ),
    "/v1/completions": (
        COMPLETION | {"choices": [{"index": 0, "text": "", "finish_reason": "abort"}]},
        data({"id": "c1", "choices": [{"index": 0, "text": "", "finish_reason": "abort"}]}) + DONE,
    ),
    # This API has no word for it, and vLLM leaves out what is null in a whole message.
    "/v1/messages": (
        {"id": "msg_1", "type": "message", "content": [{"type": "text", "text": ""}]},
        MESSAGE_STREAM[0]
        + event("message_delta", {"delta": {"stop_reason": None}, "usage": {"output_tokens": 0}})
        + event("message_stop", {}),
    ),
}


class TestHangUp:
    """The client goes away; upstream, which would never answer, hears of it; nothing is left."""

    async def ends_as_cancelled(self, proxy: Any, steps: int = 1) -> None:
        await proxy.until_idle()
        assert len(proxy.turns.events(StepCancelled)) == steps
        assert proxy.gateway.host.live_steps == 0
        proxy.scheduler.check()

    async def test_while_held(self, start: Any, upstream: Upstream) -> None:
        gate = upstream.script = Gate()
        async with start(upstream.url, limits={"running_steps_per_engine_max": 1}) as proxy:
            first = asyncio.create_task(proxy.chat("first"))
            await upstream.exchange()
            held = asyncio.create_task(proxy.chat("second"))
            await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 1)
            held.cancel()
            await proxy.turns.until(lambda: proxy.gateway.host.live_steps == 1)
            assert len(proxy.turns.events(StepCancelled)) == 1
            gate.open.set()
            assert (await first).status_code == 200
            assert len(upstream.exchanges) == 1

    @pytest.mark.parametrize("is_stream", [False, True])
    async def test_before_the_first_byte(
        self, proxy: Any, upstream: Upstream, is_stream: bool
    ) -> None:
        upstream.script = Gate()
        asked = asyncio.create_task(proxy.chat(stream=is_stream))
        exchange = await upstream.exchange()
        asked.cancel()
        await exchange.until_gone()
        await self.ends_as_cancelled(proxy)

    async def test_in_the_middle_of_a_stream(self, proxy: Any, upstream: Upstream) -> None:
        upstream.script = Gate(chunk("hel"), chunk("lo"))
        async with proxy.streaming() as response:
            async for _ in response.aiter_raw():
                break
            exchange = await upstream.exchange()
        await exchange.until_gone()
        await self.ends_as_cancelled(proxy)
        assert len(proxy.turns.events(StepStarted)) == 1

    async def test_in_the_middle_of_a_whole_answer(self, proxy: Any, upstream: Upstream) -> None:
        started = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            started.set()
            await exchange.gone.wait()

        upstream.script = script
        asked = asyncio.create_task(proxy.chat())
        await started.wait()
        asked.cancel()
        await (await upstream.exchange()).until_gone()
        await self.ends_as_cancelled(proxy)

    async def test_while_the_body_is_sent(self, proxy: Any, upstream: Upstream) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
        _, writer = await proxy.raw(head)
        writer.transport.abort()
        assert (await proxy.chat()).status_code == 200
        assert len(proxy.turns.events(StepArrived)) == 1


class TestFailingEngines:
    async def test_an_engine_that_dies_before_it_answers(
        self, start: Any, upstream: Upstream, second: Upstream
    ) -> None:
        upstream.script = drop
        async with start(upstream.url, second.url) as proxy:
            for is_stream in (False, True):
                response = await proxy.chat(stream=is_stream)
                assert response.status_code == 200
                assert response.headers["x-agentsched-engine"] == "e1"
        assert upstream.exchanges
        dispatches = proxy.turns.commands(Dispatch)
        assert [d.engine for d in dispatches[:2]] == ["e0", "e1"]

    @pytest.mark.parametrize("length", [0, 10])
    async def test_a_whole_answer_that_is_cut_is_asked_for_again(
        self, start: Any, upstream: Upstream, second: Upstream, length: int
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n" + b"{" * length)
            exchange.cut()

        upstream.script = script
        async with start(upstream.url, second.url) as proxy:
            response = await proxy.chat()
            assert (response.status_code, response.content) == (200, ANSWER)

    @pytest.mark.parametrize("path", DIALECTS)
    @pytest.mark.parametrize("length", [0, 30])
    async def test_an_answer_that_is_not_whole_json_is_asked_for_again(
        self, start: Any, upstream: Upstream, second: Upstream, path: str, length: int
    ) -> None:
        """HTTP's end is right: the engine died while it wrote, and a gateway closed for it."""
        fields, answer, _ = DIALECTS[path]
        whole = json.dumps(answer).encode()

        async def broken(exchange: Exchange) -> None:
            await exchange.whole(200, whole[:length], content_type="application/json")

        async def good(exchange: Exchange) -> None:
            await exchange.whole(200, whole, content_type="application/json")

        upstream.script, second.script = broken, good
        async with start(upstream.url, second.url) as proxy:
            response = await proxy.client.post(path, json={"model": "m", **fields})
            assert (response.status_code, response.content) == (200, whole)
            assert response.headers["x-agentsched-engine"] == "e1"
            assert len(proxy.turns.events(StepFinished)) == 1

    @pytest.mark.parametrize(
        ("plain", "odd"),
        [
            (b'"index": 0', b'"index": 0, "logprobs": {"x": -Infinity}'),
            (b'"index": 0', b'"index": 0, "logprobs": {"x": NaN}'),
            (b'"hello"', b'"hello \\ud83d"'),
        ],
    )
    async def test_json_as_python_writes_it_is_whole(
        self, proxy: Any, upstream: Upstream, plain: bytes, odd: bytes
    ) -> None:
        body = ANSWER.replace(plain, odd)

        async def script(exchange: Exchange) -> None:
            await exchange.whole(200, body, content_type="application/json")

        upstream.script = script
        response = await proxy.chat()
        assert (response.status_code, response.content) == (200, body)
        assert len(upstream.exchanges) == 1
        [ended] = proxy.turns.events(StepFinished)
        assert (ended.usage.prompt_tokens, ended.finish_reason) == (7, "stop")

    async def test_official_clients_try_again_what_no_engine_could_finish(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        async def script(exchange: Exchange) -> None:
            is_last = len(upstream.exchanges) > 3
            body = ANSWER if is_last else ANSWER[:30]
            await exchange.whole(200, body, content_type="application/json")

        upstream.script = script
        async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="k") as client:
            answer = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}]
            )
        assert answer.choices
        assert {e.step for e in proxy.turns.events(StepFinished)}
        assert len(upstream.exchanges) == 4

    async def test_a_stream_without_a_byte_is_asked_for_again(
        self, start: Any, upstream: Upstream, second: Upstream
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.stream()

        upstream.script = script
        async with start(upstream.url, second.url) as proxy:
            response = await proxy.chat(stream=True)
            assert response.headers["x-agentsched-engine"] == "e1"
            assert response.content.endswith(DONE)

    @pytest.mark.parametrize("path", GIVEN_UP)
    @pytest.mark.parametrize("is_stream", [False, True])
    async def test_an_answer_that_its_engine_gives_up_is_asked_for_again(
        self, start: Any, upstream: Upstream, second: Upstream, path: str, is_stream: bool
    ) -> None:
        """As vLLM may end what reaches it while it stops: at once, with status 200."""
        fields, answer, parts = DIALECTS[path]
        whole, stream = GIVEN_UP[path]

        async def gives_up(exchange: Exchange) -> None:
            await (exchange.stream(stream) if is_stream else exchange.json(whole))

        async def good(exchange: Exchange) -> None:
            await (exchange.stream(*parts) if is_stream else exchange.json(answer))

        upstream.script, second.script = gives_up, good
        async with start(upstream.url, second.url) as proxy:
            body = {"model": "m", **fields, "stream": is_stream}
            response = await proxy.client.post(path, json=body)
            assert response.status_code == 200
            assert response.headers["x-agentsched-engine"] == "e1"
            assert "hel" in response.text
            assert len(upstream.exchanges) == 1
            assert len(proxy.turns.events(StepFailed)) == 1
            assert len(proxy.turns.events(StepFinished)) == 1

    async def test_what_is_given_up_and_no_engine_takes_is_no_answer(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.json(GIVEN_UP["/v1/chat/completions"][0])

        upstream.script = script
        response = await proxy.chat()
        assert response.status_code in (502, 503)
        assert not proxy.turns.events(StepFinished)

    async def test_a_stream_that_its_engine_gives_up_ends_in_an_error(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.stream(chunk("hel"), chunk("", "abort"), DONE)

        upstream.script = script
        response = await proxy.chat(stream=True)
        assert response.content.startswith(chunk("hel"))
        rest = response.content.removeprefix(chunk("hel"))
        assert b'"code":502' in rest
        assert b"abort" not in rest
        assert DONE not in rest
        await proxy.until_idle()
        assert not proxy.turns.events(StepFinished)
        assert len(proxy.turns.events(StepFailed)) == 1

    async def test_the_only_engine_fails_again_and_again(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        upstream.script = drop
        response = await proxy.chat()
        assert response.status_code in (502, 503)
        assert response.json()["error"]["code"] in ("engine_failed", "no_engine")
        assert int(response.headers["retry-after"]) <= 60
        assert len(upstream.exchanges) == 3

    @pytest.mark.parametrize("path", DIALECTS)
    @pytest.mark.parametrize("is_clean", [False, True])
    async def test_killed_in_the_middle_of_a_stream(
        self, proxy: Any, upstream: Upstream, path: str, is_clean: bool
    ) -> None:
        fields, _, parts = DIALECTS[path]
        half = parts[: len(parts) // 2]

        async def script(exchange: Exchange) -> None:
            await exchange.head(content_type="text/event-stream")
            for part in half:
                await exchange.chunk(part)
            # Half an event, which an error event must not be glued to.
            await exchange.chunk(parts[len(half)][:5])
            if is_clean:
                await exchange.end()
            else:
                exchange.cut()

        upstream.script = script
        response = await proxy.client.post(path, content=oddly_spelled(fields, stream=True))
        assert response.status_code == 200
        assert response.content.startswith(b"".join(half))
        last = response.content.removeprefix(b"".join(half))
        lines = [line for line in last.decode().split("\n") if line.startswith("data: ")]
        said = json.loads(lines[-1].removeprefix("data: "))
        if path == "/v1/messages":
            assert said["error"]["type"] == "api_error"
        elif path == "/v1/responses":
            assert said["type"] == "response.failed"
            assert said["response"]["id"] == "resp_1"
        else:
            assert said["error"]["code"] == 502
        assert DONE not in response.content
        await proxy.until_idle()
        assert len(proxy.turns.events(StepFailed)) == 1

    async def test_clients_see_a_cut_stream_as_an_error(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.stream(chunk("hel"))

        upstream.script = script
        async with openai.AsyncOpenAI(
            base_url=f"{proxy.url}/v1", api_key="k", max_retries=0
        ) as client:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=True
            )
            with pytest.raises(openai.APIError, match="too early"):
                async for _ in stream:
                    pass

    async def test_qwen_code_is_left_to_notice_a_broken_stream_by_itself(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.stream(chunk("hel"))

        upstream.script = script
        qwen = {"user-agent": "QwenCode/0.24.4 (linux; x64)"}
        assert (await proxy.chat(stream=True, headers=qwen)).content == chunk("hel")
        assert b'"error"' in (await proxy.chat(stream=True)).content

    async def test_what_breaks_after_the_end_harms_nobody(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.head(content_type="text/event-stream")
            for part in CHAT_STREAM:
                await exchange.chunk(part)
            exchange.cut()

        upstream.script = script
        response = await proxy.chat(stream=True)
        assert response.content == b"".join(CHAT_STREAM)
        assert len(proxy.turns.events(StepFinished)) == 1

    @pytest.mark.slow
    async def test_silence_in_a_stream(self, start: Any, upstream: Upstream) -> None:
        upstream.script = Gate(chunk("hel"))
        # Long enough for what was said at once to be heard on a machine that does much else.
        async with start(upstream.url, upstream={"idle_timeout": "500ms"}) as proxy:
            response = await proxy.chat(stream=True)
        assert response.content.startswith(chunk("hel"))
        assert b'"code":504' in response.content

    async def test_silence_before_an_answer(self, start: Any, upstream: Upstream) -> None:
        upstream.script = Gate()
        async with start(upstream.url, upstream={"first_byte_timeout": "50ms"}) as proxy:
            response = await proxy.chat()
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "engine_timeout"

    async def test_what_is_not_http(self, proxy: Any, upstream: Upstream) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.send(b"SSH-2.0-OpenSSH\r\n\r\n")
            exchange.writer.close()

        upstream.script = script
        response = await proxy.chat()
        assert response.status_code == 502
        assert "127.0.0.1" not in response.text

    async def test_an_answer_without_end(
        self, proxy: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agentsched_adapters.whole.BYTES_MAX", 1_000)

        async def script(exchange: Exchange) -> None:
            await exchange.whole(200, b"x" * 5_000)

        upstream.script = script
        assert (await proxy.chat()).status_code == 502


class TestDefects:
    """What we did wrong ourselves."""

    async def test_before_the_answer(
        self, proxy: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*args: object) -> None:
            raise ZeroDivisionError("surprise")

        monkeypatch.setattr("agentsched.proxy.generation.read_answer", broken)
        response = await proxy.chat(headers={"x-request-id": "r1"})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert response.headers["x-request-id"] == "r1"
        assert "surprise" not in response.text
        assert len([r for r in caplog.records if r.exc_info]) == 1
        assert [e.reason for e in proxy.turns.events(StepCancelled)] == ["a defect"]

    async def test_in_the_middle_of_a_stream(
        self, proxy: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: object) -> bytes:
            raise ZeroDivisionError("surprise")

        monkeypatch.setattr("agentsched.proxy.sse.SseTap.close", broken)
        monkeypatch.setattr("agentsched.proxy.sse.SseTap.is_over", False)
        response = await proxy.chat(stream=True)
        assert response.status_code == 200
        assert b'"code":500' in response.content
        assert b"HTTP/1.1" not in response.content
        assert len([r for r in caplog.records if r.exc_info]) == 1
        assert len(proxy.turns.events(StepCancelled)) == 1

    async def test_in_the_scheduler(
        self, proxy: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle = proxy.scheduler.handle

        def broken(event: Any, *, now: Any) -> Any:
            if isinstance(event, StepArrived):
                raise ZeroDivisionError("surprise")
            return handle(event, now=now)

        monkeypatch.setattr(proxy.scheduler, "handle", broken)
        assert (await proxy.chat()).status_code == 500
        assert proxy.gateway.host.live_steps == 0
        monkeypatch.undo()
        assert (await proxy.chat()).status_code == 200


async def test_a_client_that_never_reads_is_cut_off(start: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        while not exchange.gone.is_set():
            await exchange.chunk(chunk("x" * 50_000))

    upstream.script = script
    async with start(upstream.url, http={"write_timeout": "100ms"}) as proxy:
        body = json.dumps(
            {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        ).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        reader, writer = await proxy.raw(head % len(body) + body)
        writer.transport.pause_reading()
        await (await upstream.exchange()).until_gone()
        await proxy.until_idle()
        assert len(proxy.turns.events(StepCancelled)) == 1
        writer.close()
        del reader
