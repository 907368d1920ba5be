"""One connection to a broker that does not do what brokers should: a scripted one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from live import eventually

from agentsched.bus import connection
from agentsched.bus.connection import Broker, Connection, Letter

_CONNECT, _PUBLISH, _SUBSCRIBE, _PING = 1, 3, 8, 12


@contextlib.asynccontextmanager
async def scripted(answer: bytes, *, drops: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Takes every connection, says so much to a subscription, and may hang up then.

    What is published is in the list.
    """
    published: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, body = await _packet(reader)
                if kind == _CONNECT:
                    writer.write(b"\x20\x03\x00\x00\x00")
                elif kind == _SUBSCRIBE:
                    writer.write(bytes([0x90, 3 + len(answer)]) + body[:2] + b"\x00" + answer)
                    if drops:
                        await writer.drain()
                        break
                elif kind == _PUBLISH:
                    published.append(body)
                elif kind == _PING:
                    writer.write(b"\xd0\x00")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], published


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    [head] = await reader.readexactly(1)
    length = shift = 0
    while True:
        [part] = await reader.readexactly(1)
        length |= (part & 127) << shift
        shift += 7
        if part < 128:
            return head >> 4, await reader.readexactly(length)


@contextlib.asynccontextmanager
async def running(port: int, on_up: Callable[[], list[Letter]] = list) -> AsyncIterator[Connection]:
    made = Connection(
        Broker(host="127.0.0.1", port=port),
        name="x",
        subscriptions={"agentsched/#": 1},
        hear=lambda topic, payload: None,
        on_up=on_up,
        on_down=lambda: None,
    )
    task = asyncio.create_task(made.run())
    try:
        yield made
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BACK_OFF_S", (0.001, 0.002))


async def test_one_that_drops_each_connection_is_knocked_at_ever_less() -> None:
    async with scripted(b"\x00", drops=True) as (port, _), running(port) as made:
        await eventually(lambda: made.counts["away"] >= 4)
        assert made._failures >= 4


async def test_one_that_is_away_gets_one_line_that_names_it(caplog: Any) -> None:
    async with running(9) as made:  # discard: nobody listens there
        await eventually(lambda: made.counts["away"] >= 4)
    [said] = [r.getMessage() for r in caplog.records if "is away" in r.getMessage()]
    assert said.startswith("the bus is away: 127.0.0.1:9: ")
    assert "refused" in said


async def test_one_that_refuses_the_subscription_is_not_there() -> None:
    ups: list[str] = []

    def up() -> list[Letter]:
        ups.append("up")
        return []

    async with scripted(b"\x87") as (port, _), running(port, up) as made:
        await eventually(lambda: made.counts["away"] >= 2)
        assert made._failures >= 2
    assert not ups


async def test_a_letter_that_no_broker_takes_holds_nothing_up() -> None:
    async with scripted(b"\x00") as (port, published), running(port) as made:
        await made.is_up.wait()
        made.publish(Letter(topic="b", payload=b"good"))
        made.publish(Letter(topic="a" * 70_000, payload=b"bad"))
        await eventually(lambda: bool(published))
        assert published[0].endswith(b"good")
        await eventually(lambda: made.counts["dropped"] == 1)
        assert made.is_up.is_set()
