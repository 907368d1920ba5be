"""Clients that dribble: they are closed in time, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from agentsched.config import Config
from agentsched_bench.fuzz.nasty import NastyEngine
from agentsched_bench.fuzz.rig import Rig, open_files, rigged, until

pytestmark = pytest.mark.slow
CLIENTS = 200
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n"
SOUND = HEAD + b"Content-Length: 2\r\n\r\n{}"
#: What is sent at once, and what is dribbled byte by byte for ever after.
WAYS = {
    "nothing": (b"", b""),
    "request line": (b"", b"GET /" + b"a" * 10_000),
    "headers": (HEAD, b"X-Slow: " + b"a" * 10_000),
    "body": (HEAD + b"Content-Length: 10000\r\n\r\n", b"a" * 10_000),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 2_000),
    "second request": (SOUND, HEAD + b"X-Slow: " + b"a" * 10_000),
    "blank lines": (b"", b"\r\n" * 5_000),
}


@pytest.fixture(scope="module")
def rig(start: Callable[[Any], Any], nasty: NastyEngine) -> Rig:
    config = {
        "port": 0,
        "engines": [{"url": nasty.url, "kind": "openai"}],
        "http": {"header_timeout": "600ms", "body_timeout": "600ms", "keepalive_timeout": "600ms"},
    }
    built: Rig = start(rigged(Config.model_validate(config)))
    return built


async def dribble(rig: Rig, at_once: bytes, slowly: bytes, *, every_s: float) -> None:
    """Send, then a byte now and then, until the proxy ends the connection."""
    reader, writer = await asyncio.open_connection(rig.host, rig.port)
    ended = asyncio.ensure_future(reader.read())
    try:
        writer.write(at_once)
        for byte in slowly:
            writer.write(bytes((byte,)))
            done, _ = await asyncio.wait([ended], timeout=every_s)
            if done:
                break
        with contextlib.suppress(ConnectionError):
            await ended
    finally:
        ended.cancel()
        writer.transport.abort()


@pytest.mark.parametrize("way", WAYS)
def test_cannot_hold_it(rig: Rig, run: Callable[[Any], Any], way: str) -> None:
    async def hold() -> None:
        await rig.converse()
        before = open_files()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(dribble(rig, *WAYS[way], every_s=0.25))
            for _ in range(3):
                await rig.converse()
        # A probe may have opened a connection of its own meanwhile: both its ends count here.
        await until(lambda: open_files() <= before + 4)
        await rig.check()

    run(hold())  # bounded by the time-out above
