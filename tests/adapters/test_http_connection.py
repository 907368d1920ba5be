"""What the HTTP client makes of answers, odd ones too, and which connections it uses again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentsched.model import EngineError, EngineTimeout, EngineUnreachable
from agentsched.ports import EngineRequest
from agentsched_adapters import whole
from agentsched_adapters.openai_http import HttpLimits, OpenAiHttp

Read = Callable[[asyncio.StreamReader], Awaitable[tuple[bytes, bytes]]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(method: str = "POST", body: bytes = b"{}", target: str = "/v1/x") -> EngineRequest:
    return EngineRequest(method=method, target=target, headers=(), body=body)


@asynccontextmanager
async def client(url: str, **limits: Any) -> AsyncIterator[OpenAiHttp]:
    http = OpenAiHttp(url, limits=HttpLimits(**limits))
    try:
        yield http
    finally:
        await http.aclose()


async def body_of(http: OpenAiHttp, asked: EngineRequest) -> bytes:
    answer = await http.send(asked)
    try:
        return await answer.read()
    finally:
        await answer.aclose()


def answering(server: Any, read: Read, *answers: bytes) -> None:
    """Every connection gives these answers, one a request, and closes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read(reader)
            writer.write(answer)
            await writer.drain()

    server.handler = handler


async def test_a_body_may_end_with_the_connection(server: Any, read: Read) -> None:
    answering(server, read, b"HTTP/1.0 200 OK\r\n\r\nto the end")
    async with client(server.url) as http:
        assert await body_of(http, request()) == b"to the end"
        assert await body_of(http, request()) == b"to the end"
    assert server.connections == 2


async def test_interim_answers_are_passed_over(server: Any, read: Read) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    answering(server, read, b"HTTP/1.1 100 Continue\r\n\r\n" + early + OK)
    async with client(server.url) as http:
        answer = await http.send(request())
        assert (answer.status, list(answer.headers)) == (200, [("Content-Length", "2")])
        assert await answer.read() == b"ok"
        await answer.aclose()


async def test_a_head_request_has_no_body(server: Any, read: Read) -> None:
    answering(server, read, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
    async with client(server.url) as http:
        assert await body_of(http, request("HEAD", b"")) == b""


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_a_body(server: Any, read: Read, status: bytes) -> None:
    answering(server, read, b"HTTP/1.1 " + status + b"\r\n\r\n", OK)
    async with client(server.url) as http:
        assert await body_of(http, request()) == b""
        assert await body_of(http, request()) == b"ok"
    assert server.connections == 1


async def test_a_connection_that_says_close_is_not_used_again(server: Any, read: Read) -> None:
    answering(server, read, OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), OK)
    async with client(server.url) as http:
        assert [await body_of(http, request()) for _ in range(2)] == [b"ok", b"ok"]
    assert server.connections == 2


async def test_an_answer_too_many_ends_the_connection(server: Any, read: Read) -> None:
    answering(server, read, OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", OK)
    async with client(server.url) as http:
        assert [await body_of(http, request()) for _ in range(2)] == [b"ok", b"ok"]
    assert server.connections == 2


async def test_a_stale_connection_is_replaced_where_that_does_no_harm(
    server: Any, read: Read
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(OK)
        if server.connections == 1:
            await read(reader)  # and says nothing to the second

    server.handler = handler
    async with client(server.url) as http:
        assert await body_of(http, request("GET", b"")) == b"ok"
        assert await body_of(http, request("GET", b"")) == b"ok"
    assert server.connections == 2


async def test_a_broken_chunk(server: Any, read: Read) -> None:
    answering(server, read, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokXX9\r\n")
    async with client(server.url) as http:
        with pytest.raises(EngineUnreachable, match="broke before the answer ended"):
            await body_of(http, request())


async def test_headers_without_end(server: Any, read: Read) -> None:
    answering(server, read, b"HTTP/1.1 200 OK\r\n" + b"X-Line: aaaaaaaaaaaaaaaa\r\n" * 20_000)
    async with client(server.url) as http:
        with pytest.raises(EngineError, match="too large"):
            await body_of(http, request())


@pytest.mark.parametrize(
    "endless", [b"0\r\nX-After: y\r\n", b"0\r\nX-After: ", b"1;note=", b"1\r\na\r\n0\r\n"]
)
async def test_what_follows_the_headers_has_an_end(server: Any, read: Read, endless: bytes) -> None:
    """Trailers and the notes on a chunk: nobody reads them, so silence would not end them."""
    gone = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + endless)
        more = b"X: y\r\n" * 4_096 if endless.endswith(b"\n") else b"y" * 32_768
        try:
            while True:
                writer.write(more)
                await writer.drain()
        except ConnectionError:
            gone.set()

    server.handler = handler
    async with client(server.url) as http:
        answer = await http.send(request())
        with pytest.raises(EngineUnreachable, match="too large"):
            await answer.read()
        await answer.aclose()
        async with asyncio.timeout(60):
            await gone.wait()


async def test_many_small_chunks_are_not_too_much(server: Any, read: Read) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answering(server, read, head + b"1;a=b\r\nx\r\n" * 60_000 + b"0\r\n\r\n")
    async with client(server.url) as http:
        assert await body_of(http, request()) == b"x" * 60_000


async def test_an_answer_that_is_read_whole_has_an_end(
    server: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that was answered without end would fill the memory before its time is up."""
    monkeypatch.setattr(whole, "BYTES_MAX", 1 << 20)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"y" * 65_536)
                await writer.drain()

    server.handler = handler
    async with client(server.url) as http:
        with pytest.raises(EngineError, match="larger than"):
            await http.fetch("GET", "/metrics", timeout_s=60.0)


async def test_a_long_request_arrives_whole(server: Any, read: Read) -> None:
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            seen.append((await read(reader))[1])
            writer.write(OK)

    server.handler = handler
    body = bytes(range(256)) * 20_000
    async with client(server.url) as http:
        assert await body_of(http, request(body=body)) == b"ok"
        assert await body_of(http, request(body=body)) == b"ok"
    assert seen == [body, body]
    assert server.connections == 1


async def test_a_long_request_that_is_refused_early(server: Any) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await server.gone.wait()

    server.handler = handler
    async with client(server.url) as http:
        answer = await http.send(request(body=b"x" * (32 << 20)))
        assert answer.status == 413
        assert await answer.read() == b"no"
        await answer.aclose()
        server.gone.set()


async def test_an_engine_that_takes_nothing(server: Any) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.gone.wait()

    server.handler = handler
    async with client(server.url, first_byte_s=0.05) as http:
        with pytest.raises(EngineTimeout):
            await http.send(request(body=b"x" * (32 << 20)))
        server.gone.set()


async def test_a_reader_that_is_slow_makes_the_engine_wait(server: Any, read: Read) -> None:
    sent = 0
    stalled = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
        for _ in range(1024):
            writer.write(b"x" * 65_536)
            sent += 65_536
            try:
                await asyncio.wait_for(writer.drain(), 0.1)
            except TimeoutError:
                stalled.set()
                await writer.drain()

    server.handler = handler
    async with client(server.url) as http:
        answer = await http.send(request())
        await asyncio.wait_for(stalled.wait(), 60)
        assert sent < 64 << 20
        assert len(await answer.read()) == 64 << 20
        await answer.aclose()


async def test_no_line_can_be_smuggled_in() -> None:
    async with client("http://127.0.0.1:9") as http:
        for target, value in (("/v1/x\r\nX: 1", "a"), ("/v1/x", "a\nb"), ("/v1/x", "a\0")):
            asked = EngineRequest(method="GET", target=target, headers=(("X", value),), body=b"")
            with pytest.raises(ValueError, match="line break"):
                await http.send(asked)
