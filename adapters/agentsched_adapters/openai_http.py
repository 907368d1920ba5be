"""The shared streaming HTTP client: bytes to an engine and back, unchanged, all waits bounded.

Nothing is added to a request but what belongs to the connection, nothing is decoded or
decompressed on the way back, and every failure of the library below becomes one of ours in
`_translated`, the only place that knows its errors.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from agentsched.model import ConfigError, EngineError, EngineTimeout, EngineUnreachable
from agentsched.ports import EngineRequest

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
# The connection has its own of these: its address, the body's length, and no waiting for a go.
_REQUEST_ONLY: Final = frozenset({"host", "content-length", "expect"})
_AT_ONCE_BYTES_MAX: Final = 1 << 20
# All that the library raises on account of the other side; OSError holds TimeoutError.
_FAILURES: Final = (aiohttp.ClientError, OSError)
# What the library would add on its own account.
_AUTOMATIC: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


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


class _Silence:
    """Bounds every wait for a chunk by one timer: one for each would cost more than the chunk."""

    __slots__ = ("_content", "_idle_s", "_loop", "_timer", "since")

    def __init__(self, content: aiohttp.StreamReader, idle_s: float) -> None:
        self._content = content
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        #: When the wait began that is under way, by the loop's clock; None: nobody waits.
        self.since: float | None = None
        self._timer = self._loop.call_later(idle_s, self._look)

    def begin(self) -> None:
        """A wait begins."""
        self.since = self._loop.time()

    def close(self) -> None:
        """Stop looking."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._idle_s
        if self.since is not None:
            left -= self._loop.time() - self.since
            if left <= 0:
                self._content.set_exception(TimeoutError())
                return
        self._timer = self._loop.call_later(left, self._look)


class HttpAnswer:
    """One engine's answer over HTTP; see `agentsched.ports.EngineAnswer`."""

    __slots__ = ("_headers", "_idle_s", "_response", "_silence", "_where")

    def __init__(self, response: aiohttp.ClientResponse, *, idle_s: float, where: str) -> None:
        self._response = response
        self._idle_s = idle_s
        self._where = where
        self._silence: _Silence | None = None
        self._headers = end_to_end(
            [(_text(name), _text(value)) for name, value in response.raw_headers]
        )

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        return self._headers

    async def chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        if self._silence is None and not content.is_eof():
            self._silence = _Silence(content, self._idle_s)
        silence = self._silence
        while not content.at_eof():
            try:
                if silence is not None:
                    silence.begin()
                chunk = await content.readany()
                if silence is not None:
                    silence.since = None
            except _FAILURES as error:
                raise _translated(error, where=self._where) from error
            if chunk:
                yield chunk

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def aclose(self) -> None:
        """Close; a body that is not at its end takes the connection with it."""
        if self._silence is not None:
            self._silence.close()
        self._response.close()


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
        self._client: aiohttp.ClientSession | None = None
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
        client = self._opened()
        try:
            async with asyncio.timeout(first_byte_s or self.limits.first_byte_s):
                response = await client.request(
                    request.method,
                    _url(self.url + request.target),
                    headers=self._outgoing(request.headers),
                    data=_data(request),
                    allow_redirects=False,
                )
        except _FAILURES as error:
            raise _translated(error, where=self.url) from error
        if not 200 <= response.status <= 599:
            response.close()
            raise EngineError(f"{self.url}: no answer has the status {response.status}")
        return HttpAnswer(response, idle_s=self.limits.idle_s, where=self.url)

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
                    return answer.status, await answer.read()
                finally:
                    await answer.aclose()
        except TimeoutError:
            raise EngineTimeout(f"{self.url}{target}: no answer within {timeout_s:g} s") from None

    async def aclose(self) -> None:
        """Close all connections; answers still open are aborted. May be called more than once."""
        self._is_closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise EngineUnreachable(f"{self.url}: this adapter is closed")
        if self._client is None:
            limits = self.limits
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=limits.connections_max,
                    limit_per_host=0,
                    keepalive_timeout=limits.keepalive_s,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_AUTOMATIC,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=limits.connect_s,
                    sock_connect=limits.connect_s,
                    sock_read=None,
                ),
                trust_env=False,
            )
        return self._client

    def _outgoing(self, headers: Sequence[tuple[str, str]]) -> CIMultiDict[str]:
        kept: CIMultiDict[str] = CIMultiDict()
        spelling: dict[str, str] = {}
        for name, value in end_to_end(headers):
            lower = name.lower()
            if lower not in _REQUEST_ONLY:
                # The library takes a repeated name in another spelling for a replacement.
                kept.add(spelling.setdefault(lower, name), value)
        if self._api_key is not None:
            kept["Authorization"] = f"Bearer {self._api_key}"
        return kept


@lru_cache(maxsize=256)
def _url(text: str) -> URL:
    # Nearly every request goes to one of a few addresses.
    return URL(text, encoded=True)


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


def _translated(error: Exception, *, where: str) -> EngineError:
    """The one place where the library's errors become ours."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return EngineUnreachable(f"{where}: no connection in time")
        case TimeoutError():
            return EngineTimeout(f"{where}: silent for too long")
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
            return EngineUnreachable(f"{where}: {_reason(error)}")
        case _:
            return EngineError(f"{where}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorError():
            return error.strerror or "no connection"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection before answering"
        case aiohttp.ClientPayloadError():
            return "the connection broke before the answer ended"
        case _:
            return str(error) or type(error).__name__


def _data(request: EngineRequest) -> bytes | io.BytesIO | None:
    if len(request.body) > _AT_ONCE_BYTES_MAX:
        # Written in portions, with turns for others; as bytes the library would warn of it.
        return io.BytesIO(request.body)
    has_body = request.body or request.method.upper() in ("POST", "PUT", "PATCH")
    return request.body if has_body else None


def _text(raw: bytes) -> str:
    # As the server side of the same library encodes it: any byte survives the round trip.
    return raw.decode("utf-8", "surrogateescape")
