"""Request smuggling: whatever a client sends on a connection, engines see what we saw.

The victim request at `/v1/models/smuggled` is hidden in bodies, chunks and headers in the ways that
are known to part servers; no engine may ever be asked for it, and no answer may be for it.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

HIDDEN = b"GET /v1/models/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
BODY = b'{"model":"m","input":"a"}'


def length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


#: Refused as a whole: which end of the message is meant cannot be known.
REFUSED = {
    "CL.TE": HEAD + length(b"0\r\n\r\n" + HIDDEN) + b"Transfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\n" + HIDDEN,
    "TE.CL": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN),
    "TE.TE": HEAD
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"
    + length(HIDDEN)
    + b"\r\n"
    + HIDDEN,
    "two lengths": HEAD + b"Content-Length: 0\r\n" + length(HIDDEN) + b"\r\n" + HIDDEN,
    "two lengths in one": HEAD + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a length with a sign": HEAD + b"Content-Length: +%d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a length with a low line": HEAD + b"Content-Length: 4_7\r\n\r\n" + HIDDEN,
    "a hexadecimal length": HEAD + b"Content-Length: 0x2f\r\n\r\n" + HIDDEN,
    "a length of other digits": HEAD + "Content-Length: ٤٧\r\n\r\n".encode() + HIDDEN,
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a folded header": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked is not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a null": HEAD + b"Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a bare carriage return": HEAD + b"X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a chunk's size with a sign": HEAD + b"Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n" + HIDDEN,
    "a chunk's size with 0x": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + HIDDEN,
    "a chunk's size is missing": HEAD + b"Transfer-Encoding: chunked\r\n\r\n\r\n\r\n" + HIDDEN,
    "a huge chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n" + HIDDEN,
    "chunked in HTTP/1.0": b"POST /v1/embeddings HTTP/1.0\r\nTransfer-Encoding: chunked\r\n"
    + length(HIDDEN)
    + b"\r\n"
    + HIDDEN,
}


#: Heads after which a body comes, whatever some servers make of them.
WITH_A_BODY = {
    "an upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "an upgrade to HTTP/2": HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
    "a read": HEAD.replace(b"POST", b"GET"),
    "a tunnel": HEAD.replace(b"POST", b"CONNECT"),
    "a tunnel by name": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n",
}


@pytest.mark.parametrize("way", WITH_A_BODY)
@pytest.mark.parametrize("framed", ["a length", "chunks"])
async def test_a_body_is_no_request(proxy: Any, upstream: Any, way: str, framed: str) -> None:
    """Who forwards such a head takes what follows for its body; so do we, or we close."""

    async def answers(exchange: Any) -> None:
        await exchange.json({})

    upstream.script = answers
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    rest = (
        length(HIDDEN) + b"\r\n" + HIDDEN
        if framed == "a length"
        else chunked % (len(HIDDEN), HIDDEN)
    )
    end = b"GET /v1/models/end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    said = await proxy.say(WITH_A_BODY[way] + rest + end)
    assert not [e.target for e in upstream.exchanges if "smuggled" in e.target]
    assert len(re.findall(rb"HTTP/1\.\d \d", said)) == (2 if way == "a read" else 1)
    upstream.script = type(upstream)().script
    assert (await proxy.chat()).status_code == 200


@pytest.mark.parametrize("way", REFUSED)
async def test_nothing_is_hidden(proxy: Any, upstream: Any, way: str) -> None:
    said = await proxy.say(REFUSED[way])
    assert b"smuggled" not in b"".join(e.target.encode() for e in upstream.exchanges)
    assert len(re.findall(rb"HTTP/1\.\d \d", said)) == 1, "the hidden request was answered"
    assert said.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400")), said[:80]
    assert (await proxy.chat()).status_code == 200


async def test_what_follows_a_body_is_the_next_request(proxy: Any, upstream: Any) -> None:
    """A pipelined request is one of its own, with its own headers and its own check."""
    close = b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    said = await proxy.say(HEAD + length(BODY) + b"\r\n" + BODY + close)
    assert said.count(b"HTTP/1.1 200") == 2
    assert [e.target for e in upstream.exchanges] == ["/v1/embeddings", "/v1/models/m"]


async def test_each_request_of_a_connection_needs_its_key(keyed: Any, keys: Any) -> None:
    first = HEAD + b"Authorization: Bearer %b\r\n" % keys.red.token.encode()
    second = HEAD + b"Connection: close\r\n" + length(BODY) + b"\r\n" + BODY
    said = await keyed.say(first + length(BODY) + b"\r\n" + BODY + second)
    assert said.count(b"HTTP/1.1 200") == 1
    assert said.count(b"HTTP/1.1 401") == 1


HOP_BY_HOP = {
    "connection": "close, x-drop-me, authorization",
    "keep-alive": "timeout=5",
    "proxy-authorization": "Basic c2VjcmV0",
    "proxy-connection": "keep-alive",
    "te": "trailers",
    "trailer": "x-after",
    "upgrade": "websocket",
    "x-drop-me": "1",
    "cookie": "session=secret",
}


async def test_headers_of_a_hop_end_here(proxy: Any, upstream: Any) -> None:
    await proxy.chat(headers=HOP_BY_HOP | {"x-keep": "1"})
    seen = upstream.exchanges[0].headers
    assert seen["x-keep"] == "1"
    assert not seen.keys() & (HOP_BY_HOP.keys() - {"connection"})
    assert "x-drop-me" not in seen.get("connection", "")


async def test_no_client_can_name_what_is_ours(proxy: Any, upstream: Any) -> None:
    """`Connection` ends headers that the client sent, not those that we add for an engine."""
    named = "x-request-id, Accept-Encoding, content-type, x-mine"
    await proxy.chat(headers={"connection": named, "x-mine": "1", "x-request-id": "forged"})
    pairs = [(name.lower(), value) for name, value in upstream.exchanges[0].pairs]
    seen = dict(pairs)
    assert len(seen["x-request-id"]) >= 6
    assert [value for name, value in pairs if name == "accept-encoding"] == ["identity"]
    assert not seen.keys() & {"x-mine", "connection", "content-type"}


async def test_an_upgrade_is_not_made(proxy: Any, upstream: Any) -> None:
    for protocol in (b"h2c", b"websocket"):
        request = b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\n"
        said = await proxy.say(request + b"Upgrade: %b\r\n\r\n" % protocol)
        assert not said.startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize("name", ["x-request-id", "x-agentsched-program", "traceparent"])
async def test_what_is_echoed_cannot_make_a_header(proxy: Any, name: str) -> None:
    for value in ("a%0d%0aX-Evil: 1", "a\x7fb", "a" * 9_000, "ü", "\x85X-Evil: 1"):
        answer = await proxy.chat(headers={name: value.encode("latin-1")})
        assert "x-evil" not in answer.headers
        for _, shown in answer.headers.raw:
            assert not set(shown) & {0, 10, 13, 127}


@pytest.mark.parametrize(
    "value", [b"a\rX-Evil: 1", b"a\nX-Evil: 1", b"\x00", b"a\x08b", b"x\r\n\r\nHTTP/1.1 200 OK"]
)
async def test_what_an_engine_says_cannot_either(proxy: Any, upstream: Any, value: bytes) -> None:
    async def answers(exchange: Any) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Said: %b\r\n\r\n{}"
        await exchange.send(head % value)

    upstream.script = answers
    said = await proxy.say(HEAD + b"Connection: close\r\n" + length(BODY) + b"\r\n" + BODY)
    head = said.partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    assert b"\r" not in head.replace(b"\r\n", b"")
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert b"\x00" not in head
    # A line of its own it may have made at the engine, whose answer it is; not one within a value.
    assert names.count(b"content-length") <= 1
    async with asyncio.timeout(60):
        upstream.script = type(upstream)().script
        assert (await proxy.chat()).status_code == 200
