"""A publisher as libzmq is one on the wire (ZMTP 3): for tests that need what it says, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def stored(
    *blocks: int, to: str | None = "", after: int | None = None, **fields: Any
) -> dict[str, Any]:
    """As vLLM 0.32 writes it, what is not read included."""
    event = {"type": "BlockStored", "block_hashes": list(blocks), "parent_block_hash": after}
    event |= {"token_ids": [7] * 16, "block_size": 16, "lora_id": None, "medium": "GPU"}
    event |= {"lora_name": None, "extra_keys": [None], "group_idx": 0}
    return event | ({"session_id": to} if to else {}) | fields


def removed(*blocks: int, **fields: Any) -> dict[str, Any]:
    event = {"type": "BlockRemoved", "block_hashes": list(blocks), "medium": "GPU", "group_idx": 0}
    return event | fields


def cleared() -> dict[str, Any]:
    return {"type": "AllBlocksCleared"}


def batch(*events: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode([1.0, events, 0])


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    """Long ones have a length of eight bytes."""
    flags = more + 4 * command
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body


class Publisher:
    """One subscriber at a time; messages are numbered from 0, or as told."""

    def __init__(self, greeting: bytes = GREETING) -> None:
        self.greeting = greeting
        self.address = ""
        self.topics: list[bytes] = []
        self.subscribed = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._number = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self.greeting)
            await reader.readexactly(64)
            flags, length = await reader.readexactly(2)
            ready = await reader.readexactly(length)
            assert flags == 4
            assert ready == b"\x05READY\x0bSocket-Type\0\0\0\x03SUB"
            writer.write(frame(b"\x05READY\x0bSocket-Type\0\0\0\x03PUB", command=True))
            flags, length = await reader.readexactly(2)
            wanted = await reader.readexactly(length)
            assert (flags, wanted[:1]) == (0, b"\x01")
            self.topics.append(wanted[1:])
            self._writer = writer
            self.subscribed.set()
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def publish(self, *events: dict[str, Any], number: int | None = None) -> None:
        self.send(b"", self._next(number), batch(*events))

    def send(self, *parts: bytes) -> None:
        """Any message at all; between two a command that a subscriber may pass over."""
        assert self._writer is not None
        for part in parts[:-1]:
            self._writer.write(frame(part, more=True))
        self._writer.write(frame(parts[-1]) + frame(b"\x04PING\0\0", command=True))

    def hang_up(self) -> None:
        assert self._writer is not None
        self.subscribed.clear()
        self._writer.close()

    def _next(self, number: int | None) -> bytes:
        self._number = number if number is not None else self._number
        self._number += 1
        return (self._number - 1).to_bytes(8, "big")


@asynccontextmanager
async def publishing(greeting: bytes = GREETING) -> AsyncIterator[Publisher]:
    publisher = Publisher(greeting)
    server = await asyncio.start_server(publisher.serve, "127.0.0.1", 0)
    publisher.address = "tcp://{}:{}".format(*server.sockets[0].getsockname()[:2])
    async with server:
        yield publisher


async def heard(take: Any) -> Sequence[str]:
    """What is told next, once something is; whoever looks does so between two events."""
    async with asyncio.timeout(20):
        while not (gone := take()):  # noqa: ASYNC110
            await asyncio.sleep(0)
    return [str(name) for name in gone]
