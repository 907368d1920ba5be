"""A raw server for tests of the HTTP client: what it reads and writes is bytes, not HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class RawServer:
    """One listening socket; every connection goes to `handler`."""

    handler: Handler | None = None
    url: str = ""
    connections: int = 0
    #: Set when a client went away while `serve_until_gone` was serving it.
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        assert self.handler is not None
        try:
            await self.handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One request: its head as sent, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head, await reader.readexactly(length)


@pytest.fixture
def read() -> Callable[[asyncio.StreamReader], Awaitable[tuple[bytes, bytes]]]:
    return read_request


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    """A server whose `handler` the test sets before its first request."""
    raw = RawServer()
    listening = await asyncio.start_server(raw.accept, "127.0.0.1", 0)
    raw.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield raw
    listening.close()
    await listening.wait_closed()
