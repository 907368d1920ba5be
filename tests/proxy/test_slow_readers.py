"""Who reads slowly, or no more: while this proxy is about to end, and where an answer ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from live import eventually
from proxy_rig import chat
from proxy_upstream import DONE, Exchange, Upstream, chunk

from agentsched.model import StepFinished, StepStarted
from agentsched.proxy import sending
from agentsched.proxy.serve import drain
from agentsched.proxy.server import Connection

#: More than what lies in the buffers of two connections.
TEXT = b"a" * (24 << 20)
SAID = b'{"choices":[{"index":0,"message":{"content":"%s"},"finish_reason":"stop"}]}' % TEXT
#: More than narrow connections hold, and less than what the library writes before it waits.
PART = "y" * 40_000


async def test_they_are_waited_for(start: Any, upstream: Upstream) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(200, SAID, content_type="application/json")

    upstream.script = script
    async with start(upstream.url, http={"drain_notice": "10ms"}) as proxy:
        body = chat()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        reader, writer = await proxy.raw(head.encode() + body)
        await proxy.turns.until(lambda: bool(proxy.turns.events(StepFinished)))
        draining = asyncio.create_task(drain(proxy.gateway))
        ended, _ = await asyncio.wait({draining}, timeout=0.09)
        async with asyncio.timeout(60):
            assert (await reader.read()).endswith(SAID)
            await draining
        writer.close()
        assert not ended


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections from clients hold some KiB, and ask us to wait when one is not taken."""
    made = Connection.connection_made

    def connection_made(connection: Connection, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        transport.set_write_buffer_limits(high=1_024)
        made(connection, transport)

    monkeypatch.setattr(Connection, "connection_made", connection_made)


@contextlib.asynccontextmanager
async def asking(proxy: Any, path: str, body: bytes, *headers: str) -> AsyncIterator[None]:
    """A client that asks, and reads nothing of the answer."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", proxy.port))
        await loop.sock_sendall(client, "\r\n".join(lines).encode() + body)
        yield


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("how", ["stream", "shared", "cut short", "relayed"])
async def test_the_end_of_a_stream_waits_for_nobody_for_ever(
    start: Any, upstream: Upstream, how: str
) -> None:
    """All was said when the client's turn came to read, so that nothing but the end is left."""

    async def script(exchange: Exchange) -> None:
        ending = () if how == "cut short" else (chunk(finish="stop"), DONE)
        await exchange.stream(chunk(PART), *ending)

    upstream.script = script
    path = "/v1/files" if how == "relayed" else "/v1/chat/completions"
    headers = ("idempotency-key: one",) if how == "shared" else ()
    async with (
        start(upstream.url, http={"write_timeout": "50ms"}) as proxy,
        asking(proxy, path, chat(stream=True), *headers),
    ):
        await upstream.exchange()
        assert proxy.gateway.answering == 1
        await eventually(lambda: not proxy.gateway.answering)
        assert proxy.gateway.bodies.held == 0


@pytest.mark.usefixtures("narrow")
async def test_nor_does_a_part_where_the_client_is_behind_by_little(
    start: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transport that asked us to wait may do so down to its last bytes."""
    monkeypatch.setattr(sending, "_BACKLOG_BYTES_MAX", 1 << 20)

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type="text/event-stream")
        await exchange.chunk(chunk(PART))
        await proxy.turns.until(lambda: bool(proxy.turns.events(StepStarted)))
        await exchange.chunk(chunk(PART))
        await exchange.gone.wait()

    upstream.script = script
    async with (
        start(upstream.url, http={"write_timeout": "50ms"}) as proxy,
        asking(proxy, "/v1/chat/completions", chat(stream=True)),
    ):
        await (await upstream.exchange()).until_gone()
