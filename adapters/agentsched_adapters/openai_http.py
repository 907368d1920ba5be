"""The shared streaming HTTP client: bytes to an engine and back, unchanged, all waits bounded.

Nothing is added to a request but what belongs to the connection, and nothing is decoded or
decompressed on the way back, but for what we ask ourselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from yarl import URL

from agentsched.model import ConfigError, EngineError, EngineTimeout, EngineUnreachable
from agentsched.ports import EngineRequest
from agentsched_adapters.http_connection import Connection, Exchange
from agentsched_adapters.http_pool import HttpPool
from agentsched_adapters.unpacking import coding_of, unpacked
from agentsched_adapters.whole import read_whole

#: Headers of one connection, not of the message (RFC 9110, 7.6.1), in lower case.
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
#: The connection has its own of these: its address, the body's length, and no waiting for a go.
_NOT_SENT: Final = frozenset({"host", "content-length", "expect"})
_NOT_SENT_WITH_KEY: Final = _NOT_SENT | {"authorization"}
#: Methods that say how long their body is also where it is empty.
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
#: Methods that may be repeated (RFC 9110, 9.2.2).
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Ceilings of one engine's connections.

    `first_byte_s` bounds the wait for the status line: an answer that is not streamed brings it
    only when it is complete, so it must exceed the longest answer. `idle_s` bounds the silence
    inside a body. `connections_max` open at once; beyond it a request waits up to
    `connect_s` for one to become free.
    """

    connect_s: float = 5.0
    first_byte_s: float = 1_800.0
    idle_s: float = 600.0
    connections_max: int = 4_096
    keepalive_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, not {getattr(self, name)}")


def end_to_end(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The headers without hop-by-hop ones, those that `Connection` names included."""
    pairs = tuple(headers)
    lower = [name.lower() for name, _ in pairs]
    dropped = HOP_BY_HOP
    if "connection" in lower:
        for name, (_, value) in zip(lower, pairs, strict=True):
            if name == "connection":
                dropped = dropped | {word.strip().lower() for word in value.split(",")}
    return tuple([p for name, p in zip(lower, pairs, strict=True) if name not in dropped])


class HttpAnswer:
    """One engine's answer over HTTP; see `agentsched.ports.EngineAnswer`."""

    __slots__ = ("_exchange", "_headers", "_idle_s")

    def __init__(self, exchange: Exchange, *, idle_s: float) -> None:
        self._exchange = exchange
        self._idle_s = idle_s
        self._headers = end_to_end(exchange.headers)

    @property
    def status(self) -> int:
        return self._exchange.status

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        return self._headers

    async def chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self._exchange.chunk(idle_s=self._idle_s):
            yield chunk

    async def read(self) -> bytes:
        return await read_whole(self.chunks())

    async def aclose(self) -> None:
        """Close; a body that is not at its end takes the connection with it."""
        self._exchange.close()


class OpenAiHttp:
    """HTTP connections to one engine.

    Made anywhere; it opens nothing before its first request, and belongs to the event loop that
    made that one. `base_url` may end in `/v1`, as clients' settings do.

    Raises:
        ConfigError: the URL is not `http(s)://host[:port][/path]`.
    """

    def __init__(
        self, base_url: str, *, limits: HttpLimits | None = None, api_key: str | None = None
    ) -> None:
        self.url: Final = normal_url(base_url)
        self.limits: Final = limits or HttpLimits()
        self._api_key = api_key
        self._pool: HttpPool | None = None
        url = URL(self.url)
        #: What every request line begins with, and the header that goes with it.
        self._path = url.raw_path.rstrip("/")
        self._host = f"Host: {url.raw_authority}"
        self._is_closed = False

    async def send(
        self, request: EngineRequest, *, first_byte_s: float | None = None
    ) -> HttpAnswer:
        """Send and wait for status and headers. The answer must be closed.

        Raises:
            EngineUnreachable: no connection, or it ended before the status line, as a kept-alive
                connection does that the engine closed at the same moment: safe to try again.
            EngineTimeout: no status line within the limit.
            EngineError: something answered that does not speak HTTP.
        """
        pool = self._opened()
        limit = first_byte_s or self.limits.first_byte_s
        head = self._head(request)
        while True:
            connection = pool.free() or await pool.open()
            is_reused = connection.begun > 0
            exchange = connection.begin(
                head, request.body, where=self.url, is_head=request.method == "HEAD"
            )
            try:
                if connection.is_writing:
                    await self._write_out(connection, limit)
                await exchange.head(timeout_s=limit)
            except EngineUnreachable:
                exchange.close()
                # It closed a kept-alive connection just then. Asking again must do no harm.
                if is_reused and request.method in _IDEMPOTENT:
                    continue
                raise
            except BaseException:
                exchange.close()
                raise
            if not 200 <= exchange.status <= 599:
                exchange.close()
                raise EngineError(f"{self.url}: no answer has the status {exchange.status}")
            return HttpAnswer(exchange, idle_s=request.idle_s or self.limits.idle_s)

    async def fetch(
        self, method: str, target: str, *, body: bytes = b"", timeout_s: float
    ) -> tuple[int, bytes]:
        """One small exchange of our own: status and whole body. Raises as `send` does."""
        headers = (("content-type", "application/json"),) if body else ()
        request = EngineRequest(method=method, target=target, headers=headers, body=body)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self.send(request)
                try:
                    return answer.status, await unpacked(answer, coding_of(answer)).read()
                finally:
                    await answer.aclose()
        except TimeoutError:
            raise EngineTimeout(f"{self.url}{target}: no answer within {timeout_s:g} s") from None

    async def aclose(self) -> None:
        """Close all connections; answers still open are aborted. May be called more than once."""
        self._is_closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    def _opened(self) -> HttpPool:
        if self._is_closed:
            raise EngineUnreachable(f"{self.url}: this adapter is closed")
        if self._pool is None:
            url, limits = URL(self.url), self.limits
            assert url.host is not None
            assert url.port is not None
            self._pool = HttpPool(
                url.host,
                url.port,
                is_tls=url.scheme == "https",
                where=self.url,
                connections_max=limits.connections_max,
                connect_s=limits.connect_s,
                keepalive_s=limits.keepalive_s,
            )
        return self._pool

    async def _write_out(self, connection: Connection, limit: float) -> None:
        try:
            async with asyncio.timeout(limit):
                await connection.write_out()
        except TimeoutError:
            raise EngineTimeout(f"{self.url}: it takes no more of the request") from None

    def _head(self, request: EngineRequest) -> bytes:
        """Request line and headers.

        Raises:
            ValueError: something in them would end them, or a line of them.
        """
        target = request.target.partition("#")[0]
        lines = [f"{request.method} {self._path}{target} HTTP/1.1", self._host]
        dropped = _NOT_SENT if self._api_key is None else _NOT_SENT_WITH_KEY
        for name, value in end_to_end(request.headers):
            if name.lower() not in dropped:
                lines.append(f"{name}: {value}")
        if self._api_key is not None:
            lines.append(f"Authorization: Bearer {self._api_key}")
        if request.body or request.method in _WITH_BODY:
            lines.append(f"Content-Length: {len(request.body)}")
        text = "\r\n".join(lines)
        if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
            raise ValueError("a line break within the request line or a header")
        # As the server side decodes them: any byte survives the round trip.
        return text.encode("utf-8", "surrogateescape") + b"\r\n\r\n"


def normal_url(base_url: str) -> str:
    """`base_url` without a final slash or `/v1`.

    Raises:
        ConfigError: it is not `http(s)://host[:port][/path]`.
    """
    try:
        url = URL(base_url.strip())
        is_good = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        is_good = False
    if not is_good or url.query_string or url.fragment or url.user:
        raise ConfigError(f"not an engine's URL: {base_url!r} (write http://host:port)")
    return str(url).rstrip("/").removesuffix("/v1").rstrip("/")
