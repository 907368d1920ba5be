"""An engine that answers probes well and everything else as its script says, in any bytes at all.

It writes down every request that reaches it, read by the letter: a proxy in front of it can be held
to having sent one sound request for each that it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

_LINE: Final = re.compile(rb"([A-Z]+) (/[\x21-\x7e]*) HTTP/1\.1")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t\x20-\x7e\x80-\xff]*)")
_HEAD_BYTES_MAX: Final = 1 << 20
#: The header by which a request names its script.
SCRIPT_HEADER: Final = "x-fuzz"

_MODELS: Final = b'{"object":"list","data":[{"id":"sim","object":"model","max_model_len":4096}]}'
_CHAT: Final = (
    b'{"id":"c1","object":"chat.completion","created":1,"model":"sim","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"well then"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
)


class End(StrEnum):
    """How a scripted answer ends."""

    CLOSE = "close"
    RESET = "reset"
    KEEP = "keep"  # the connection stays open for the next request
    HANG = "hang"  # the connection stays open, and nothing more comes


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The bytes of one answer, one write for each piece, and what comes after them."""

    pieces: tuple[bytes, ...]
    end: End = End.CLOSE


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """The header's values, joined."""
        return ",".join(value for key, value in self.headers if key == name)


@dataclass(slots=True)
class NastyEngine:
    """What the engine will say, and what was said to it. Probes are not written down."""

    url: str = ""
    #: Answers by the value of `SCRIPT_HEADER`; all other requests get a short chat answer.
    scripts: dict[str, Script] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    #: Bytes that were no sound request: something was smuggled.
    unsound: list[bytes] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError):
                while await self._serve_one(reader, writer):
                    pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            seen = await self._read(reader)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self.unsound.append(error.partial)
            return False
        except (ValueError, asyncio.LimitOverrunError) as error:
            self.unsound.append(str(error).encode())
            return False
        if not seen.header("x-request-id"):
            writer.write(_plain(_MODELS if seen.target == "/v1/models" else b"", seen))
            await writer.drain()
            return True
        self.seen.append(seen)
        script = self.scripts.get(seen.header(SCRIPT_HEADER)) or _default(seen)
        for piece in script.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # a turn of the loop, so that pieces arrive as pieces
        match script.end:
            case End.KEEP:
                return True
            case End.HANG:
                await reader.read()  # until the other side has enough of it
            case End.CLOSE:
                writer.close()
                await writer.wait_closed()
            case End.RESET:
                writer.transport.abort()
        return False

    async def _read(self, reader: asyncio.StreamReader) -> Seen:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        match = _LINE.fullmatch(first)
        if match is None:
            raise ValueError(f"request line {first!r}")
        headers = []
        for line in lines:
            pair = _HEADER.fullmatch(line)
            if pair is None:
                raise ValueError(f"header line {line!r}")
            headers.append((pair[1].decode().lower(), pair[2].decode("latin-1")))
        lengths = [value for name, value in headers if name == "content-length"]
        if len(lengths) > 1 or any(name == "transfer-encoding" for name, _ in headers):
            raise ValueError(f"framing {headers!r}")
        body = await reader.readexactly(int(lengths[0])) if lengths else b""
        return Seen(
            method=match[1].decode(), target=match[2].decode(), headers=tuple(headers), body=body
        )

    def hang_up(self) -> None:
        """Cut all connections."""
        for writer in list(self._writers):
            writer.transport.abort()


def _plain(body: bytes, seen: Seen, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + (b"" if seen.method == "HEAD" else body)


def _default(seen: Seen) -> Script:
    return Script(pieces=(_plain(_CHAT, seen),), end=End.KEEP)


@contextlib.asynccontextmanager
async def running_nasty() -> AsyncIterator[NastyEngine]:
    """A nasty engine on a free port of this machine."""
    engine = NastyEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0, limit=_HEAD_BYTES_MAX)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield engine
    finally:
        server.close()
        engine.hang_up()
        await server.wait_closed()
