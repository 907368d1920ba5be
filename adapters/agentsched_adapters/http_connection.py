"""One HTTP/1.1 connection to an engine, and what goes over it: one exchange at a time.

A general client spends several times as long on each request as the parsing takes. This one has no
cookies, redirects, decoding or proxies, and what arrives in one packet costs one wake-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from agentsched.model import EngineError, EngineTimeout, EngineUnreachable

#: What an answer may have between two bytes of its body, and before and after it: status lines,
#: headers, sizes of chunks, trailers.
_BARE_BYTES_MAX: Final = 256 << 10
#: So much of a body may wait for its reader before the engine is made to wait.
_BACKLOG_BYTES_MAX: Final = 256 << 10
#: Longer requests are written in portions, with turns for others.
_AT_ONCE_BYTES_MAX: Final = 1 << 20
_PORTION_BYTES: Final = 256 << 10

_NOTHING: Final = memoryview(b"")

CLOSED_EARLY: Final = "it closed the connection before answering"
CUT_SHORT: Final = "the connection broke before the answer ended"


class Exchange:
    """One request and its answer. It outlives its connection's part in it."""

    __slots__ = (
        "_backlog",
        "_chunks",
        "_connection",
        "_error",
        "_loop",
        "_timer",
        "_waiter",
        "_where",
        "headers",
        "is_complete",
        "is_framed",
        "is_head",
        "status",
        "waiting_since",
    )

    def __init__(
        self,
        connection: Connection,
        *,
        loop: asyncio.AbstractEventLoop,
        where: str,
        is_head: bool,
    ) -> None:
        self._connection: Connection | None = connection
        self._loop = loop
        self._where = where
        #: It asks for headers alone: whatever length they tell, no body follows.
        self.is_head = is_head
        #: 0 until status and headers are here.
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        #: The headers say where the body ends; otherwise the end of the connection does.
        self.is_framed = False
        self.is_complete = False
        #: When the wait for a chunk began that is under way, by the loop's clock.
        self.waiting_since: float | None = None
        self._chunks: list[bytes] = []
        self._backlog = 0
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # For the side that asks.

    async def head(self, *, timeout_s: float) -> None:
        """Wait for status and headers.

        Raises:
            EngineError: as `OpenAiHttp.send`.
        """
        if not self.status and self._error is None:
            timer = self._loop.call_later(timeout_s, self._time_out)
            try:
                await self._wait()
            finally:
                timer.cancel()
        if self._error is not None and not self.status:
            raise self._error

    async def chunk(self, *, idle_s: float) -> bytes:
        """What has arrived of the body; nothing at its end.

        Raises:
            EngineUnreachable: the connection broke before.
            EngineTimeout: nothing came for `idle_s` seconds.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.is_complete:
                return b""
            if self._timer is None:
                self._timer = self._loop.call_later(idle_s, self._look, idle_s)
            self.waiting_since = self._loop.time()
            await self._wait()
            self.waiting_since = None
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._backlog = 0
        if self._connection is not None:
            self._connection.resume()
        return data

    def close(self) -> None:
        """Have done with it; a body that is not at its end takes the connection with it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # For the connection.

    def begin(self, status: int) -> None:
        """Status and headers are here."""
        self.status = status
        self._wake()

    def add(self, data: bytes) -> bool:
        """A piece of the body is here; whether the engine should wait before the next."""
        self._chunks.append(data)
        self._backlog += len(data)
        self._wake()
        return self._backlog > _BACKLOG_BYTES_MAX

    def end(self) -> None:
        """The answer is complete: the connection has no more to do with it."""
        self.is_complete = True
        self._connection = None
        self._wake()

    def fail(self, error: EngineError) -> None:
        """It will not be completed."""
        if not self.is_complete and self._error is None:
            self._error = error
            self._wake()

    def lose(self, reason: str) -> None:
        """The connection is gone."""
        self._connection = None
        if self.status and not self.is_framed:
            self.end()  # there was no other way to say so
        else:
            what = reason or (CUT_SHORT if self.status else CLOSED_EARLY)
            self.fail(EngineUnreachable(f"{self._where}: {what}"))

    def spoil(self, reason: str) -> None:
        """What arrived is not HTTP."""
        if self.status:
            self.fail(EngineUnreachable(f"{self._where}: {CUT_SHORT} ({reason})"))
        else:
            self.fail(EngineError(f"{self._where}: {reason}"))

    # Inside.

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _time_out(self) -> None:
        self.fail(EngineTimeout(f"{self._where}: silent for too long"))

    def _look(self, idle_s: float) -> None:
        """One timer bounds all waits for chunks: one for each would cost more than the chunk."""
        left = idle_s
        if self.waiting_since is not None:
            left -= self._loop.time() - self.waiting_since
            if left <= 0:
                self._time_out()
                return
        self._timer = self._loop.call_later(left, self._look, idle_s)


class Connection(asyncio.Protocol):
    """A connection. `on_free` is told when an exchange is over and another may begin, `on_lost`
    when it is gone.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        on_free: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._on_free = on_free
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        #: Bytes that came since the request was sent, or since the last of a body.
        self._bare_bytes = 0
        self._unsent = _NOTHING
        self._is_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._must_close = False
        #: No request may go out on it any more.
        self.is_closed = False
        #: When its latest exchange ended, by the loop's clock.
        self.free_since = 0.0
        #: How many exchanges it began.
        self.begun = 0

    def begin(self, head: bytes, body: bytes, *, where: str, is_head: bool) -> Exchange:
        """Send a request; of a long one, what `write_out` does not write is not sent."""
        assert self._transport is not None
        assert self._exchange is None
        exchange = self._exchange = Exchange(self, loop=self._loop, where=where, is_head=is_head)
        self.begun += 1
        self._bare_bytes = 0
        if len(body) <= _AT_ONCE_BYTES_MAX:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
        return exchange

    @property
    def is_writing(self) -> bool:
        """Whether a part of the request is still to be written."""
        return len(self._unsent) > 0

    async def write_out(self) -> None:
        """Write the rest of a long request, as fast as the engine takes it."""
        assert self._transport is not None
        exchange = self._exchange
        # One that is answered before it was all said ends with the connection.
        while self._unsent and exchange is not None and not exchange.status and not self.is_closed:
            portion, self._unsent = self._unsent[:_PORTION_BYTES], self._unsent[_PORTION_BYTES:]
            self._transport.write(portion)
            if self._writable is not None:
                await self._writable
            else:
                await asyncio.sleep(0)

    def close(self) -> None:
        """Close now; what was not sent yet is not sent."""
        if self.is_closed:
            return
        self.is_closed = True
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size():
            transport.abort()
        else:
            transport.close()

    def resume(self) -> None:
        """Read on."""
        if self._is_paused and self._transport is not None and not self.is_closed:
            self._is_paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.close()  # nobody asked
            return
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # What followed a complete answer on the same connection is nobody's.
            exchange.spoil(f"not an answer that HTTP allows: {error}")
            self.close()
            return
        if self._exchange is exchange and self._bare_bytes > _BARE_BYTES_MAX:
            exchange.spoil("the headers of its answer are too large")
            self.close()

    def eof_received(self) -> None:
        self.is_closed = True  # the transport closes itself now

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        exchange, self._exchange = self._exchange, None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if exchange is not None:
            exchange.lose("" if exc is None else str(exc) or type(exc).__name__)
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # httptools

    def on_message_begin(self) -> None:
        if self._exchange is None:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.status:
            return  # a trailer
        key = name.lower()
        if key == b"content-length":
            exchange.is_framed = True
        elif key == b"transfer-encoding":
            exchange.is_framed = value.lower().rstrip().endswith(b"chunked")
        # As the server side decodes them: any byte survives the round trip.
        exchange.headers.append(
            (name.decode("ascii"), value.rstrip().decode("utf-8", "surrogateescape"))
        )

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        status = self._parser.get_status_code()
        if status < 200 and status != 101:
            # An interim answer, of which there may be any number.
            exchange.headers.clear()
            exchange.is_framed = False
            return
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)  # whoever writes need not go on
        self._must_close = not self._parser.should_keep_alive()
        if status in (204, 304):
            exchange.is_framed = True
        exchange.begin(status)
        if exchange.is_head:
            # The parser waits for a body that does not come.
            self._must_close = True
            self._end(exchange)

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        exchange = self._exchange
        if exchange is not None and exchange.add(body) and not self._is_paused:
            assert self._transport is not None
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.status:
            self._end(exchange)

    # Inside.

    def _end(self, exchange: Exchange) -> None:
        self._exchange = None
        exchange.end()
        if self._must_close or self._unsent:
            self.close()
            return
        self.resume()
        self.free_since = self._loop.time()
        self._on_free(self)
