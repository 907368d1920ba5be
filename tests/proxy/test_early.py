"""Streams that are opened before any engine answers, and refusals before a client gives up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx
import openai
import pytest
from proxy_upstream import (
    CHAT_STREAM,
    COMPLETION_STREAM,
    DIALECTS,
    DONE,
    MESSAGE_STREAM,
    RESPONSE_STREAM,
    Exchange,
    Gate,
    Upstream,
    chunk,
    drop,
)

from agentsched.config import ClientName, HttpConfig
from agentsched.model import Nanos, StepCancelled, StepFailed, StepFinished, seconds
from agentsched.proxy.early import HEADER, keep_alive_after
from agentsched.proxy.errors import keep_alive
from agentsched.proxy.request import Dialect, ParsedRequest

MESSAGES: Any = [{"role": "user", "content": "hi"}]
SOON = {HEADER: "0.01"}
ONE = {"running_steps_per_engine_max": 1}
STREAMS = {
    "/v1/chat/completions": CHAT_STREAM,
    "/v1/completions": COMPLETION_STREAM,
    "/v1/messages": MESSAGE_STREAM,
    "/v1/responses": RESPONSE_STREAM,
}
PATHS = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/messages": Dialect.MESSAGES,
    "/v1/responses": Dialect.RESPONSES,
}


def body_of(path: str) -> bytes:
    return json.dumps({"model": "m", "stream": True} | DIALECTS[path][0]).encode()


class Early:
    """A request that is sent with an early stream asked for; `begun` once a no-op came."""

    def __init__(self, proxy: Any, path: str = "/v1/chat/completions", **headers: str) -> None:
        self.response: httpx.Response | None = None
        self.begun = asyncio.Event()
        self.content = b""
        self._proxy = proxy
        self._path = path
        self._headers = headers or SOON
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> bytes:
        async with self._proxy.client.stream(
            "POST", self._path, content=body_of(self._path), headers=self._headers
        ) as response:
            self.response = response
            async for piece in response.aiter_raw():
                self.content += piece
                self.begun.set()
        return self.content

    async def until_begun(self) -> None:
        async with asyncio.timeout(60):
            await self.begun.wait()

    async def end(self) -> bytes:
        """What came after the no-ops."""
        async with asyncio.timeout(60):
            content = await self.task
        beat = keep_alive(PATHS[self._path], model="m")
        assert content.startswith(beat)
        while content.startswith(beat):
            content = content.removeprefix(beat)
        return content


class Waiting:
    """An engine that says nothing until told what."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts
        self.open = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self.open.wait()
        await exchange.stream(*self.parts)


@pytest.mark.parametrize("path", list(PATHS))
async def test_while_an_engine_is_silent(proxy: Any, upstream: Upstream, path: str) -> None:
    script = upstream.script = Waiting(*STREAMS[path])
    early = Early(proxy, path)
    await early.until_begun()
    assert early.response is not None
    assert early.response.status_code == 200
    assert early.response.headers["x-agentsched-decision"] == "early"
    assert early.response.headers["x-agentsched-step"] == "1"
    assert early.response.headers["content-type"].startswith("text/event-stream")
    script.open.set()
    assert await early.end() == b"".join(STREAMS[path])
    await proxy.until_idle()
    assert len(proxy.turns.events(StepFinished)) == 1


async def test_while_an_answer_is_announced_only(proxy: Any, upstream: Upstream) -> None:
    go = asyncio.Event()

    async def announces(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        await exchange.chunk(RESPONSE_STREAM[0])
        await go.wait()
        for part in RESPONSE_STREAM[1:]:
            await exchange.chunk(part)
        await exchange.end()

    upstream.script = announces
    early = Early(proxy, "/v1/responses")
    await early.until_begun()
    go.set()
    assert await early.end() == b"".join(RESPONSE_STREAM)


async def test_while_held(start: Any, upstream: Upstream) -> None:
    gate = upstream.script = Gate()
    async with start(upstream.url, limits=ONE) as proxy:
        first = asyncio.create_task(proxy.chat("first"))
        await upstream.exchange()
        early = Early(proxy)
        await early.until_begun()
        assert len(upstream.exchanges) == 1
        gate.open.set()
        assert await early.end() == b"".join(CHAT_STREAM)
        assert (await first).status_code == 200


async def test_a_quick_answer_has_its_own_headers(proxy: Any) -> None:
    response = await proxy.chat(stream=True, headers={HEADER: "60"})
    assert response.content == b"".join(CHAT_STREAM)
    assert "order=" in response.headers["x-agentsched-decision"]


async def test_nothing_early_without_being_asked(start: Any, upstream: Upstream) -> None:
    gate = upstream.script = Gate()
    async with start(upstream.url, http={"keep_alive": {"qwen": "10ms"}}) as proxy:
        qwen = Early(proxy, **{"user-agent": "QwenCode/1"})
        other = Early(proxy, **{"user-agent": "curl/8"})
        whole = asyncio.create_task(proxy.chat(headers=SOON))
        await qwen.until_begun()
        assert other.response is None
        gate.open.set()
        await qwen.end()
        assert await other.task == b"".join(CHAT_STREAM)
        assert (await whole).json()["object"] == "chat.completion"


async def test_no_ops_are_not_as_close_as_a_client_likes(proxy: Any, upstream: Upstream) -> None:
    script = upstream.script = Waiting(*CHAT_STREAM)
    early = Early(proxy, **{HEADER: "0.001"})
    await early.until_begun()
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, later.set)
    await later.wait()
    assert early.content.count(b"data: ") <= 3
    script.open.set()
    assert await early.end() == b"".join(CHAT_STREAM)


async def test_another_engine_takes_over(start: Any, upstream: Upstream, second: Upstream) -> None:
    asked, broken = asyncio.Event(), asyncio.Event()

    async def breaks(exchange: Exchange) -> None:
        asked.set()
        await broken.wait()
        await drop(exchange)

    async with start(upstream.url, second.url, limits={"engine_wait_max": "5s"}) as proxy:
        upstream.script = second.script = breaks
        early = Early(proxy)
        await early.until_begun()
        async with asyncio.timeout(60):
            await asked.wait()  # a no-op goes out whether or not the engine has heard of it
        chosen, other = (upstream, second) if upstream.exchanges else (second, upstream)
        other.script = Waiting(*CHAT_STREAM)
        other.script.open.set()
        broken.set()
        assert await early.end() == b"".join(CHAT_STREAM)
        assert len(chosen.exchanges) == len(other.exchanges) == 1
        assert [e.is_retryable for e in proxy.turns.events(StepFailed)] == [True]


@pytest.mark.slow
async def test_a_late_no_is_an_event(start: Any, upstream: Upstream) -> None:
    gate = upstream.script = Gate()
    # Long enough for the streams to be open by then on a machine that does much else.
    async with start(upstream.url, limits=ONE | {"max_wait": "2s"}) as proxy:
        first = asyncio.create_task(proxy.chat("first"))
        await upstream.exchange()
        paths = ["/v1/chat/completions", "/v1/responses", "/v1/messages"]
        held = [Early(proxy, path) for path in paths]
        chat, responses, messages = [await early.end() for early in held]
        gate.open.set()
        await first
    error = json.loads(chat.removeprefix(b"data: "))["error"]
    assert error["code"] == 429
    assert "try again in 5.0s" in error["message"]
    assert b"rate_limit_exceeded" in responses
    assert b"try again in" in responses
    # The one that Claude Code was seen to send again.
    assert b"overloaded_error" in messages


@pytest.mark.parametrize("status", [400, 429, 503, 529])
async def test_an_engines_error_is_an_event(proxy: Any, upstream: Upstream, status: int) -> None:
    go = asyncio.Event()

    async def refuses(exchange: Exchange) -> None:
        await go.wait()
        error = {"error": {"message": "no room for this", "type": "x", "code": status}}
        await exchange.json(error, status=status)

    upstream.script = refuses
    early = Early(proxy)
    await early.until_begun()
    go.set()
    error = json.loads((await early.end()).removeprefix(b"data: "))["error"]
    assert error["code"] == status
    assert error["message"].startswith("no room for this")
    assert ("try again in" in error["message"]) == (status != 400)
    assert len(proxy.turns.events(StepFailed)) == 1


async def test_an_answer_that_is_not_streamed(proxy: Any, upstream: Upstream) -> None:
    go = asyncio.Event()

    async def whole(exchange: Exchange) -> None:
        await go.wait()
        await exchange.json({"id": "c"})

    upstream.script = whole
    early = Early(proxy)
    await early.until_begun()
    go.set()
    assert b'"code":502' in await early.end()


async def test_the_engine_dies(proxy: Any, upstream: Upstream) -> None:
    go = asyncio.Event()

    async def half(exchange: Exchange) -> None:
        await go.wait()
        await exchange.head(content_type="text/event-stream")
        await exchange.chunk(chunk("hel"))
        exchange.cut()

    upstream.script = half
    early = Early(proxy)
    await early.until_begun()
    go.set()
    assert b'"code":502' in await early.end()


async def test_a_client_that_leaves_is_noticed(proxy: Any, upstream: Upstream) -> None:
    upstream.script = Gate()
    early = Early(proxy)
    await early.until_begun()
    exchange = await upstream.exchange()
    early.task.cancel()
    await exchange.until_gone()
    await proxy.until_idle()
    assert len(proxy.turns.events(StepCancelled)) == 1


async def test_a_drain_ends_it_with_an_event(proxy: Any, upstream: Upstream) -> None:
    upstream.script = Gate()
    early = Early(proxy)
    await early.until_begun()
    proxy.gateway.host.stop_all("draining")
    assert b'"code":503' in await early.end()


class TestRealClients:
    """The official SDKs read what comes early, and what follows."""

    async def test_openai_chat(self, proxy: Any, upstream: Upstream) -> None:
        script = upstream.script = Waiting(*CHAT_STREAM)
        async with self.gpt(proxy) as client:
            create = client.chat.completions.create
            stream = await create(model="m", messages=MESSAGES, stream=True)
            first = await anext(stream)
            script.open.set()
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert (first.choices[0].delta.content, text) == (None, "hello")

    async def test_openai_chat_helper(self, proxy: Any, upstream: Upstream) -> None:
        script = upstream.script = Waiting(*CHAT_STREAM)
        async with (
            self.gpt(proxy) as client,
            client.chat.completions.stream(model="m", messages=MESSAGES) as stream,
        ):
            script.open.set()
            completion = await stream.get_final_completion()
        assert completion.choices[0].message.content == "hello"

    async def test_openai_responses(self, proxy: Any, upstream: Upstream) -> None:
        script = upstream.script = Waiting(*RESPONSE_STREAM)
        async with self.gpt(proxy) as client:
            stream = await client.responses.create(model="m", input="hi", stream=True)
            first = await anext(stream)
            script.open.set()
            last = [event async for event in stream][-1]
        assert (first.type, last.type) == ("response.in_progress", "response.completed")

    async def test_anthropic(self, proxy: Any, upstream: Upstream) -> None:
        script = upstream.script = Waiting(*MESSAGE_STREAM)
        async with (
            anthropic.AsyncAnthropic(
                base_url=proxy.url, api_key="k", max_retries=0, default_headers=SOON
            ) as client,
            client.messages.stream(model="m", max_tokens=5, messages=MESSAGES) as stream,
        ):
            script.open.set()
            assert await stream.get_final_text() == "hello"

    @pytest.mark.slow
    async def test_an_error_is_raised(self, start: Any, upstream: Upstream) -> None:
        gate = upstream.script = Gate()
        # Long enough for the stream to be open by then, or the client would hear a plain 429.
        async with start(upstream.url, limits=ONE | {"max_wait": "2s"}) as proxy:
            first = asyncio.create_task(proxy.chat("first"))
            await upstream.exchange()
            async with self.gpt(proxy) as client:
                create = client.chat.completions.create
                stream = await create(model="m", messages=MESSAGES, stream=True)
                with pytest.raises(openai.APIError, match="promised wait"):
                    [c async for c in stream]
            gate.open.set()
            await first

    def gpt(self, proxy: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, default_headers=SOON
        )


class TestPatience:
    """A held step is refused before its client would hang up."""

    async def test_a_refusal_in_time(self, start: Any, upstream: Upstream) -> None:
        gate = upstream.script = Gate()
        async with start(upstream.url, limits=ONE) as proxy:
            first = asyncio.create_task(proxy.chat("first"))
            await upstream.exchange()
            response = await proxy.chat(headers={"x-stainless-read-timeout": "0.1"})
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
            assert "give up" in response.json()["error"]["message"]
            assert len(proxy.turns.events(StepCancelled)) == 1
            gate.open.set()
            assert (await first).status_code == 200

    async def test_what_an_engine_works_on_is_not_refused(
        self, proxy: Any, upstream: Upstream
    ) -> None:
        gate = upstream.script = Gate()
        headers = {"x-stainless-read-timeout": "0.01"}
        request = asyncio.create_task(proxy.chat(headers=headers))
        await upstream.exchange()
        timer = asyncio.Event()
        asyncio.get_running_loop().call_later(0.03, timer.set)
        await timer.wait()
        gate.open.set()
        assert (await request).status_code == 200

    async def test_a_kept_alive_one_waits_on(self, start: Any, upstream: Upstream) -> None:
        gate = upstream.script = Gate()
        async with start(upstream.url, limits=ONE) as proxy:
            first = asyncio.create_task(proxy.chat("first"))
            await upstream.exchange()
            early = Early(proxy, **{HEADER: "auto", "x-stainless-read-timeout": "0.01"})
            await early.until_begun()
            gate.open.set()
            assert (await early.end()).endswith(DONE)
            await first


def after(
    said: str = "",
    agent: str = "",
    dialect: Dialect = Dialect.CHAT,
    keep: Any = None,
    is_stream: bool = True,
) -> Nanos | None:
    config = HttpConfig() if keep is None else HttpConfig(keep_alive=keep)
    headers = {"user-agent": agent} | ({HEADER: said} if said else {})
    return keep_alive_after(
        ParsedRequest(dialect=dialect, body=b"", is_stream=is_stream), headers, config
    )


FOUR: dict[ClientName, str] = {"qwen": "4s", "codex": "auto"}


class TestWhen:
    QWEN, CODEX = "QwenCode/1", "codex_exec/1"

    def test_off(self) -> None:
        assert after() is None
        assert after(agent=self.QWEN, keep={"codex": "4s"}) is None
        assert after("off", agent=self.QWEN, keep="4s") is None
        assert after("60", is_stream=False) is None

    def test_by_client(self) -> None:
        assert after(agent=self.QWEN, keep=FOUR) == seconds(4)
        assert after(agent=self.CODEX, keep=FOUR) is None  # it waits without end
        assert after(agent=self.QWEN, keep="auto") == seconds(90)
        assert after(keep="240s") == seconds(240)
        assert after(agent=self.QWEN, keep="240s") == seconds(90)

    def test_by_request(self) -> None:
        assert after("60") == seconds(60)
        assert after("60", keep="4s") == seconds(60)
        assert after("auto") is None
        assert after("auto", agent=self.QWEN) == seconds(90)

    def test_responses_only_where_it_is_borne(self) -> None:
        assert after(dialect=Dialect.RESPONSES, keep="4s") is None
        assert after(agent=self.CODEX, dialect=Dialect.RESPONSES, keep="4s") == seconds(4)
        assert after("4", dialect=Dialect.RESPONSES) == seconds(4)
