"""The deadline for a connection's first request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiohttp import HttpVersion11
from proxy_upstream import Upstream

from agentsched.model import SECOND, Instant, Nanos
from agentsched.proxy.server import ConnectionGuard

MESSAGE = SimpleNamespace(version=HttpVersion11)


class Connection:
    def __init__(self) -> None:
        self.is_closed = False

    def force_close(self) -> None:
        self.is_closed = True


class Server:
    def __init__(self) -> None:
        self.connections: list[Any] = []

    def request_factory(self, *args: Any) -> str:
        return "a request"


def at(seconds: float) -> Instant:
    return Instant(round(seconds * SECOND))


def make(proxy: Any, server: Server) -> ConnectionGuard:
    guard = ConnectionGuard(server, proxy.gateway)  # type: ignore[arg-type]
    guard._timeout = Nanos(10 * SECOND)
    return guard


async def test_only_those_without_a_request_are_closed(proxy: Any) -> None:
    server = Server()
    guard = make(proxy, server)
    good, slow = Connection(), Connection()
    server.connections = [good, slow]
    guard.look(at(0))
    assert server.request_factory(MESSAGE, None, good, None, None) == "a request"
    late = Connection()
    server.connections.append(late)
    guard.look(at(9.9))
    assert not slow.is_closed
    guard.look(at(10))
    assert slow.is_closed
    assert not good.is_closed
    assert not late.is_closed
    assert guard.closed_total == 1


async def test_what_is_gone_is_forgotten(proxy: Any) -> None:
    server = Server()
    guard = make(proxy, server)
    server.connections = [Connection() for _ in range(100)]
    for connection in server.connections[:50]:
        server.request_factory(MESSAGE, None, connection, None, None)
    guard.look(at(0))
    server.connections = []
    guard.look(at(1))
    assert not guard._good
    assert not guard._noticed


async def test_slow_headers_on_a_real_socket(start: Any, upstream: Upstream) -> None:
    async with start(upstream.url, http={"header_timeout": "1s"}) as proxy:
        _, kept = await proxy.raw(b"")
        reader, writer = await proxy.raw(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()
        kept.close()
        # A client that has sent a request may take its time before the next one.
        for _ in range(2):
            assert (await proxy.chat()).status_code == 200


async def test_idle_connections_are_closed(start: Any, upstream: Upstream) -> None:
    async with start(upstream.url, http={"keepalive_timeout": "50ms"}) as proxy:
        reader, writer = await proxy.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(60):
            assert b"200 OK" in await reader.read()
        writer.close()
