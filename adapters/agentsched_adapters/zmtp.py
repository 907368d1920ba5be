"""As much of ZeroMQ's wire protocol (ZMTP 3.0) as hearing what somebody publishes takes.

A subscriber says hello without a secret (mechanism NULL), says that it is one, names a topic, and
then only reads: frames of a flag byte, a length and a body, several of which make a message. That
needs no library beside the event loop, and no thread for each engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from agentsched.model import EngineUnreachable

_SIGNATURE: Final = b"\xff" + bytes(8) + b"\x7f"
#: Version 3.0, mechanism NULL, not the server, 31 bytes of nothing.
_GREETING: Final = _SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
#: A publisher that says more at once is none of ours.
_FRAME_BYTES_MAX: Final = 64 << 20
_FRAMES_MAX: Final = 16
_CONNECT_S: Final = 10.0


async def messages(host: str, port: int, *, topic: bytes = b"") -> AsyncIterator[list[bytes]]:
    """The parts of each message that is published there, as they come, until it hangs up.

    Raises:
        EngineUnreachable: nobody is there, or whoever is speaks another language, or it broke.
    """
    where = f"tcp://{host}:{port}"
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        raise EngineUnreachable(f"{where}: {str(error) or 'no connection in time'}") from error
    try:
        async with asyncio.timeout(_CONNECT_S):
            await _greet(reader, writer, topic)
        while True:
            yield await _message(reader)
    except (OSError, EOFError, TimeoutError, ValueError) as error:
        raise EngineUnreachable(f"{where}: {str(error) or 'no greeting in time'}") from error
    finally:
        writer.close()


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, topic: bytes) -> None:
    writer.write(_GREETING)
    theirs = await reader.readexactly(len(_GREETING))
    if theirs[0] != 0xFF or not theirs[9] & 1 or theirs[10] < 3:
        raise ValueError("what answers there does not speak ZMTP 3")
    if theirs[12:32].rstrip(b"\0") != b"NULL":
        raise ValueError("what answers there wants a secret")
    name = b"\x0bSocket-Type" + (3).to_bytes(4, "big") + b"SUB"
    ready = b"\x05READY" + name
    writer.write(bytes([_COMMAND, len(ready)]) + ready)
    flags, body = await _frame(reader)
    if not flags & _COMMAND or not body.startswith(b"\x05READY"):
        raise ValueError("what answers there is no publisher")
    wanted = b"\x01" + topic
    writer.write(bytes([0, len(wanted)]) + wanted)
    await writer.drain()


async def _message(reader: asyncio.StreamReader) -> list[bytes]:
    parts: list[bytes] = []
    while True:
        flags, body = await _frame(reader)
        if flags & _COMMAND:
            continue
        parts.append(body)
        if not flags & _MORE:
            return parts
        if len(parts) >= _FRAMES_MAX:
            raise ValueError("a message of too many parts")


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    flags, length = await reader.readexactly(2)
    if flags & _LONG:
        length = int.from_bytes(bytes([length]) + await reader.readexactly(7), "big")
    if length > _FRAME_BYTES_MAX:
        raise ValueError(f"a message of {length} bytes")
    return flags, await reader.readexactly(length)
