"""A response that is written for nobody in particular: recorded, and followed by whoever wants it.

What is followed is the bytes of the body as they come, after the status and headers. A follower
that comes late begins at the beginning. A recording beyond its bound takes no new followers, waits
until those that it has are near its end, and forgets what all of them have read. How long it waits
is not bounded here: each follower is given so long for each part, and leaves when it takes longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

#: Of one connection, or made anew for each answer.
_NOT_RECORDED: Final = frozenset({"transfer-encoding", "connection", "date", "server"})
#: The part of the bound by which the slowest may be behind: others need not wait for each part.
_NEAR: Final = 128


class Recording:
    """One answer. `ended` is called exactly once, by whoever makes the answer.

    `hold` is told of each change of the bytes that are kept here, and says whether there is room
    for them; without room the recording is as one beyond its bound.
    """

    def __init__(self, *, bytes_max: int, hold: Callable[[int], bool] = lambda _: True) -> None:
        self._bytes_max = bytes_max
        self._hold = hold
        #: Bytes of the parts that are kept.
        self.held = 0
        self._is_full = False
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        #: Whether the body comes in parts; False once a whole answer is there.
        self.is_stream = False
        self.is_over = False
        #: Why there is no answer.
        self.failure: BaseException | None = None
        self.size = 0
        self._parts: list[bytes] = []
        #: Parts that were forgotten.
        self._forgotten = 0
        #: How many parts each follower has read, and how many bytes these have.
        self._read: dict[int, int] = {}
        self._bytes_read: dict[int, int] = {}
        self._followers_total = 0
        self._changed: asyncio.Future[None] | None = None

    @property
    def is_joinable(self) -> bool:
        """Whether one who comes now can have it from its beginning."""
        return not self._forgotten and not self._is_full

    @property
    def followers(self) -> int:
        """Who reads it now."""
        return len(self._read)

    def begin(self, status: int, headers: list[tuple[str, str]], *, is_stream: bool) -> None:
        """Status and headers are known."""
        kept = [(name, value) for name, value in headers if name.lower() not in _NOT_RECORDED]
        self.status, self.headers, self.is_stream = status, kept, is_stream
        self._tell()

    async def add(self, data: bytes) -> None:
        """A part of the body; waits for slow followers where the bound is reached."""
        self._keep(data)
        self._tell()
        while self._is_full and self._is_behind() and not self.is_over:
            await self._wait()
            self._forget()
        if self._is_full:
            self._forget()

    def whole(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """All of an answer that is not streamed."""
        self._keep(body)
        self.begin(status, headers, is_stream=False)

    def end(self, failure: BaseException | None = None) -> None:
        """Nothing more comes."""
        if not self.is_over:
            self.is_over, self.failure = True, failure
            self._tell()

    async def opened(self) -> None:
        """Wait for status and headers.

        Raises:
            BaseException: what kept the answer from being made.
        """
        while not self.status and not self.is_over:
            await self._wait()
        if not self.status:
            raise self.failure or ConnectionResetError("the answer was given up")

    def follow(self) -> int:
        """Begin to follow from the beginning; a name for `parts` and `leave`."""
        assert self.is_joinable
        self._followers_total += 1
        self._read[self._followers_total] = self._bytes_read[self._followers_total] = 0
        return self._followers_total

    def leave(self, follower: int) -> None:
        """Follow no longer."""
        del self._read[follower], self._bytes_read[follower]
        self._tell()

    async def parts(self, follower: int) -> AsyncIterator[bytes]:
        """The body, from where this follower is."""
        while True:
            while (place := self._read[follower]) < self._forgotten + len(self._parts):
                part = self._parts[place - self._forgotten]
                yield part
                self._read[follower] = place + 1
                self._bytes_read[follower] += len(part)
                if self._is_full:
                    self._tell()
            if self.is_over:
                return
            await self._wait()

    def _keep(self, data: bytes) -> None:
        self._parts.append(data)
        self.size += len(data)
        self.held += len(data)
        if not self._hold(len(data)) or self.size > self._bytes_max:
            self._is_full = True

    def _is_behind(self) -> bool:
        near = self.size - self._bytes_max // _NEAR
        return any(size < near for size in self._bytes_read.values())

    def _forget(self) -> None:
        """Drop what every follower has read; with none left, everything."""
        kept = min(self._read.values(), default=self._forgotten + len(self._parts))
        if kept == self._forgotten:
            return
        gone = sum(map(len, self._parts[: kept - self._forgotten]))
        del self._parts[: kept - self._forgotten]
        self._forgotten = kept
        self.held -= gone
        self._hold(-gone)

    def _tell(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    async def _wait(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        # Several wait for the same; one that is cancelled must not take it from the others.
        await asyncio.shield(self._changed)


class _Writer(AbstractStreamWriter):
    """Where the library writes a recorded response to."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        await self._recording.add(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        if chunk:
            await self._recording.add(bytes(chunk))

    async def drain(self) -> None:
        """What is written is there."""

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        """Never asked for."""

    def enable_chunking(self) -> None:
        """Parts are parts."""

    async def write_headers(self, status_line: str, headers: CIMultiDict[str]) -> None:
        status = int(status_line.split(" ", 2)[1])
        self._recording.begin(status, list(headers.items()), is_stream=True)


class _NoConnection:
    """In place of the connection of a client: there may be none, or several."""

    transport = None
    ssl_context = None
    peername = None
    sockname = None


def recorded_request(request: web.Request, recording: Recording) -> web.Request:
    """The same request, whose response is recorded in place of being sent."""
    inside: Any = request
    nowhere: Any = _NoConnection()
    task: Any = asyncio.current_task()
    return web.Request(
        inside._message,
        inside._payload,
        nowhere,
        _Writer(recording),
        task,
        asyncio.get_running_loop(),
        # Who sent it is known already, and must not be forgotten.
        state=dict(inside._state),
    )
