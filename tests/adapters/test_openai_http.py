"""The HTTP client against a server that writes its own bytes."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentsched.model import ConfigError, EngineError, EngineTimeout, EngineUnreachable
from agentsched.ports import EngineRequest
from agentsched_adapters.openai_http import (
    HttpAnswer,
    HttpLimits,
    OpenAiHttp,
    end_to_end,
    normal_url,
)

Read = Callable[[asyncio.StreamReader], Awaitable[tuple[bytes, bytes]]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def post(body: bytes = b"{}", *headers: tuple[str, str]) -> EngineRequest:
    return EngineRequest(method="POST", target="/v1/chat/completions", headers=headers, body=body)


@asynccontextmanager
async def client(url: str, **limits: Any) -> AsyncIterator[OpenAiHttp]:
    http = OpenAiHttp(url, limits=HttpLimits(**limits))
    try:
        yield http
    finally:
        await http.aclose()


async def exchange(http: OpenAiHttp, request: EngineRequest) -> tuple[HttpAnswer, bytes]:
    answer = await http.send(request)
    try:
        return answer, await answer.read()
    finally:
        await answer.aclose()


async def test_request_bytes_go_out_as_they_are(server: Any, read: Read) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read(reader))
        writer.write(OK)

    server.handler = handler
    body = b'{"messages" : [ ],  "x": "\xc3\xa9"}'
    async with client(server.url) as http:
        request = EngineRequest(
            method="POST",
            target="/v1/a%2Fb?q=%20x&y=1+2",
            headers=(
                ("X-Two", "1"),
                ("x-two", "2"),
                ("Connection", "keep-alive, X-Hop"),
                ("X-Hop", "gone"),
                ("Host", "elsewhere"),
                ("Content-Length", "7"),
                ("Transfer-Encoding", "chunked"),
                ("TE", "trailers"),
                ("Authorization", "Bearer k"),
            ),
            body=body,
        )
        assert (await exchange(http, request))[1] == b"ok"
    head, got = seen[0]
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/a%2Fb?q=%20x&y=1+2 HTTP/1.1"
    assert got == body
    host = server.url.removeprefix("http://").encode()
    assert sorted(line for line in lines[1:] if line) == sorted(
        [
            b"Host: " + host,
            b"X-Two: 1",
            b"x-two: 2",
            b"Authorization: Bearer k",
            b"Content-Length: " + str(len(body)).encode(),
        ]
    )


async def test_answer_bytes_and_headers_come_back_as_they_are(server: Any, read: Read) -> None:
    packed = gzip.compress(b"text " * 100)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(
            b"HTTP/1.1 418 Teapot\r\nContent-Encoding: gzip\r\nSet-Cookie: a=1\r\n"
            b"set-cookie: b=2\r\nX-Name: \xc3\xa9\r\nKeep-Alive: timeout=5\r\n"
            b"Connection: keep-alive, x-mine\r\nX-Mine: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for part in (packed[:7], packed[7:]):
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    server.handler = handler
    async with client(server.url) as http:
        answer, body = await exchange(http, post())
    assert answer.status == 418
    assert body == packed
    assert list(answer.headers) == [
        ("Content-Encoding", "gzip"),
        ("Set-Cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("X-Name", "é"),
    ]


async def test_cookies_and_redirects_are_the_clients_business(server: Any, read: Read) -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            heads.append((await read(reader))[0])
            writer.write(
                b"HTTP/1.1 302 Found\r\nLocation: /x\r\nSet-Cookie: a=1\r\n"
                b"Content-Length: 0\r\n\r\n"
            )

    server.handler = handler
    async with client(server.url) as http:
        for _ in range(2):
            answer, _ = await exchange(http, post())
            assert answer.status == 302
    assert server.connections == 1
    assert b"cookie" not in b"".join(heads).lower()


async def test_chunks_come_as_they_arrive(server: Any, read: Read) -> None:
    next_part = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for index in range(3):
            writer.write(b"4\r\nx%d\n\n\r\n" % index)
            await next_part.wait()
            next_part.clear()
        writer.write(b"0\r\n\r\n")

    server.handler = handler
    got = []
    async with client(server.url) as http:
        answer = await http.send(post())
        async for chunk in answer.chunks():
            got.append(chunk)
            next_part.set()
        await answer.aclose()
    assert got == [b"x0\n\n", b"x1\n\n", b"x2\n\n"]


async def test_closing_an_unfinished_answer_hangs_up(server: Any, read: Read) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        if await reader.read() == b"":
            server.gone.set()

    server.handler = handler
    async with client(server.url) as http:
        answer = await http.send(post())
        assert await anext(answer.chunks()) == b"x"
        await answer.aclose()
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_a_cancelled_send_hangs_up(server: Any, read: Read) -> None:
    taken = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        taken.set()
        if await reader.read() == b"":
            server.gone.set()

    server.handler = handler
    async with client(server.url) as http:
        sending = asyncio.create_task(http.send(post()))
        await taken.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.wait_for(server.gone.wait(), 60)


async def test_nobody_listens(server: Any) -> None:
    async with client("http://127.0.0.1:9") as http:
        with pytest.raises(EngineUnreachable, match=r"127\.0\.0\.1:9: "):
            await http.send(post())


async def test_a_kept_alive_connection_that_the_engine_closed(server: Any, read: Read) -> None:
    """The engine closes after our next request was on its way: nothing was served."""
    requests = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await read(reader)
        requests += 1
        if requests == 2:
            return
        writer.write(OK)
        if requests == 1:
            await read(reader)
            requests += 1

    server.handler = handler
    async with client(server.url) as http:
        assert (await exchange(http, post()))[1] == b"ok"
        with pytest.raises(EngineUnreachable, match="closed the connection"):
            await http.send(post())
        assert (await exchange(http, post()))[1] == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
async def test_a_body_that_is_cut(server: Any, read: Read, start: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(start)

    server.handler = handler
    async with client(server.url) as http:
        answer = await http.send(post())
        with pytest.raises(EngineUnreachable):
            await answer.read()
        await answer.aclose()


async def test_silence_before_the_status_line(server: Any, read: Read) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        await reader.read()

    server.handler = handler
    async with client(server.url, first_byte_s=0.02) as http:
        with pytest.raises(EngineTimeout):
            await http.send(post())


async def test_silence_inside_a_body(server: Any, read: Read) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read()

    server.handler = handler
    async with client(server.url, idle_s=0.02) as http:
        answer = await http.send(post())
        chunks = answer.chunks()
        assert await anext(chunks) == b"half"
        with pytest.raises(EngineTimeout):
            await anext(chunks)
        await answer.aclose()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        # The words of asyncio's own loop for what uvloop calls "Connection refused".
        (OSError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (OSError(113, "Connect call failed ('10.0.0.1', 1)"), "No route to host"),
        # A name with several addresses.
        (OSError("Multiple exceptions: [Errno 111] a, [Errno 101] b"), "Multiple exceptions: "),
        # Numbers that are not the system's.
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), "self-signed certificate"),
    ],
)
async def test_no_connection_says_why(error: OSError, said: str, monkeypatch: Any) -> None:
    async def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fails)
    async with client("http://127.0.0.1:1") as http:
        with pytest.raises(EngineUnreachable, match=re.escape(f"http://127.0.0.1:1: {said}")):
            await http.send(post())


async def test_a_full_pool_is_a_bounded_wait(server: Any, read: Read) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read()

    server.handler = handler
    async with client(server.url, connections_max=1) as http:
        answer = await http.send(post())
        assert http._pool is not None
        http._pool._connect_s = 0.02  # the first connection had as long as it took
        with pytest.raises(EngineUnreachable, match="no connection in time"):
            await http.send(post())
        await answer.aclose()


async def test_what_is_not_http(server: Any, read: Read) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"220 mail.example ESMTP\r\n\r\n")

    server.handler = handler
    async with client(server.url) as http:
        with pytest.raises(EngineError):
            await http.send(post())


async def test_closed_means_closed(server: Any) -> None:
    async with client(server.url) as http:
        await http.aclose()
        with pytest.raises(EngineUnreachable, match="closed"):
            await http.send(post())


async def test_the_engines_own_key_replaces_the_clients(server: Any, read: Read) -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read(reader))[0])
        writer.write(OK)

    server.handler = handler
    http = OpenAiHttp(server.url, api_key="inner")
    await exchange(http, post(b"{}", ("authorization", "Bearer outer")))
    await http.aclose()
    assert heads[0].lower().count(b"authorization:") == 1
    assert b"Bearer inner" in heads[0]


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("http://gpu-1:8000", "http://gpu-1:8000"),
        ("http://gpu-1:8000/", "http://gpu-1:8000"),
        ("http://gpu-1:8000/v1/", "http://gpu-1:8000"),
        (" https://host/openai/v1", "https://host/openai"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_normal_url(given: str, normal: str) -> None:
    assert normal_url(given) == normal


@pytest.mark.parametrize(
    "given",
    ["", "gpu-1:8000", "ftp://x", "http://", "http://x:99999", "http://u:p@x", "http://x?a=1"],
)
def test_what_is_no_engine_url(given: str) -> None:
    with pytest.raises(ConfigError, match="not an engine's URL"):
        normal_url(given)


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="idle_s"):
        HttpLimits(idle_s=0)


def test_end_to_end_keeps_order_and_case() -> None:
    headers = (("B", "1"), ("connection", "Close, b"), ("A", "2"), ("Upgrade", "h2c"))
    assert end_to_end(headers) == (("A", "2"),)
