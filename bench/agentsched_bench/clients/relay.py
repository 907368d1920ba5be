"""A relay between a client and the proxy: notes whose each request was, and what the proxy said.

It may take away everything that names a program, so that the proxy must find out by itself while
the notes still hold the truth. Bodies pass untouched unless ids are taken from them. A client that
goes away takes its request to the proxy with it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

from agentsched_bench.clients.stripping import is_harmless, without_ids

_CONNECTION: Final = frozenset(
    {"host", "connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding"}
)
_BODY_BYTES_MAX: Final = 64 << 20
_CREDENTIALS: Final = ("authorization", "x-api-key")


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request as the client sent it, and what came back.

    `headers` and `said` have names in small letters; `said` are the proxy's `x-agentsched-*`
    headers without that beginning. `status` is 0 while there is none, and stays so where the
    client went away first. `is_whole` says that all of the answer was passed on.
    """

    number: int
    label: str
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    status: int = 0
    said: dict[str, str] = field(default_factory=dict)
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    is_whole: bool = False

    @property
    def program(self) -> str:
        """Whose request the proxy took it for."""
        return self.said.get("program", "")

    @property
    def conversation(self) -> str:
        """Which conversation of the program the proxy put it into."""
        return self.said.get("conversation", "")

    @property
    def decision(self) -> dict[str, str]:
        """The parts of `x-agentsched-decision`."""
        parts = (part.partition("=") for part in self.said.get("decision", "").split())
        return {name: value for name, _, value in parts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What goes wrong with one request.

    `fault` is for the embedded engine, in its own notation; after `cut_after_bytes` of the answer
    the client's connection breaks.
    """

    fault: str = ""
    cut_after_bytes: int | None = None


class Relay:
    """Notes and rules of one relay. Requests get the `label` that is set when they come."""

    def __init__(
        self,
        upstream: str,
        session: ClientSession,
        *,
        strips_ids: bool,
        keeps: Collection[str] = (),
    ) -> None:
        self.exchanges: list[Exchange] = []
        self.label = ""
        self.url = ""
        self._upstream = upstream
        self._session = session
        self._strips_ids = strips_ids
        #: Headers that stay although ids are taken away.
        self._keeps = frozenset((*_CREDENTIALS, *keeps))
        #: What goes wrong with the coming requests for a model, by model; None: nothing.
        self._troubles: dict[str, deque[Trouble | None]] = {}

    def spoil(self, *troubles: Trouble | None, model: str) -> None:
        """Decide what goes wrong with each of the next requests for `model`."""
        self._troubles.setdefault(model, deque()).extend(troubles)

    def generated(self, label: str | None = None) -> Iterator[Exchange]:
        """The requests that the proxy scheduled, in order of arrival."""
        for exchange in self.exchanges:
            if exchange.program and label in (None, exchange.label):
                yield exchange

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass one request on."""
        raw = await request.read()
        exchange = Exchange(
            number=len(self.exchanges),
            label=self.label,
            method=request.method,
            path=request.rel_url.raw_path,
            headers={k.lower(): v for k, v in request.headers.items()},
            body=_object(raw),
        )
        self.exchanges.append(exchange)
        trouble = self._trouble(exchange)
        async with self._session.request(
            request.method,
            self._upstream + request.raw_path,
            data=self._outgoing_body(exchange, raw),
            headers=[*self._outgoing_headers(request), *_fault_headers(trouble)],
        ) as answer:
            exchange.status = answer.status
            exchange.answer_headers = {k.lower(): v for k, v in answer.headers.items()}
            for name, value in exchange.answer_headers.items():
                if name.startswith("x-agentsched-"):
                    exchange.said[name.removeprefix("x-agentsched-")] = value
            return await self._pass_back(request, exchange, answer, trouble.cut_after_bytes)

    async def _pass_back(
        self, request: web.Request, exchange: Exchange, answer: ClientResponse, cut: int | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _CONNECTION:
                response.headers.add(name, value)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            exchange.answer += chunk
            if cut is not None and len(exchange.answer) >= cut:
                _break_off(request)
                return response
            await response.write(chunk)
        exchange.is_whole = True
        await response.write_eof()
        return response

    def _trouble(self, exchange: Exchange) -> Trouble:
        waiting = self._troubles.get(str(exchange.body.get("model")))
        return (waiting.popleft() if waiting else None) or _NO_TROUBLE

    def _outgoing_headers(self, request: web.Request) -> list[tuple[str, str]]:
        return [
            (name, value)
            for name, value in request.headers.items()
            if (key := name.lower()) not in _CONNECTION
            and (not self._strips_ids or is_harmless(key) or key in self._keeps)
        ]

    def _outgoing_body(self, exchange: Exchange, raw: bytes) -> bytes:
        if not self._strips_ids or not exchange.body:
            return raw
        return msgspec.json.encode(without_ids(exchange.body))


_NO_TROUBLE: Final = Trouble()


def _fault_headers(trouble: Trouble) -> list[tuple[str, str]]:
    return [("x-sim-fault", trouble.fault)] if trouble.fault else []


@contextlib.asynccontextmanager
async def running_relay(
    upstream: str, *, strips_ids: bool, keeps: Collection[str] = ()
) -> AsyncIterator[Relay]:
    """A relay in front of `upstream`, on a free port of loopback."""
    session = ClientSession(
        timeout=ClientTimeout(total=None),
        connector=TCPConnector(limit=0),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
    )
    async with session:
        relay = Relay(upstream, session, strips_ids=strips_ids, keeps=keeps)
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", relay.handle)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            relay.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield relay
        finally:
            await runner.cleanup()


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _break_off(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()
