"""What is done for a client that would give up while its step waits.

A status is the better answer as long as the client has patience: it can be another engine's, or a
refusal that says when to come back. So a stream is opened early only where that was asked for, by
the operator or the request itself, and only once it has waited long. Without that, a held step
gets its refusal a little before its client would hang up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from aiohttp import web

from agentsched.config import HttpConfig
from agentsched.model import SECOND, Nanos, in_seconds
from agentsched.proxy.clients import Client, client_of, read_seconds
from agentsched.proxy.errors import keep_alive
from agentsched.proxy.host import Interrupted, Stop, Ticket
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.sending import send

#: With it a request asks for early headers itself, after so many seconds; `off` forbids them.
HEADER: Final = "x-agentsched-keep-alive"

#: Between two no-ops at most: what stands between us and a client has limits too.
_INTERVAL_MAX: Final = Nanos(30 * SECOND)
#: At least: each costs the event loop a turn, and a client may ask for as many as it likes.
_INTERVAL_MIN: Final = Nanos(1 * SECOND)


def keep_alive_after(
    request: ParsedRequest, headers: Mapping[str, str], config: HttpConfig
) -> Nanos | None:
    """How long after its arrival a request's stream is opened early; None: never.

    `headers` have lower-case names.
    """
    said = headers.get(HEADER, "")
    if not request.is_stream or not (said or config.keep_alive):
        return None
    client = client_of(headers)
    if said:
        by_request = read_seconds(said)
        is_meant = by_request is not None or said.strip().lower() == "auto"
        return _sooner(by_request, client) if is_meant else None
    if request.dialect is Dialect.RESPONSES and not client.takes_early_responses:
        return None
    chosen = config.keep_alive.get(client.name)
    if chosen is None:
        return None
    return _sooner(None if chosen == "auto" else chosen, client)


def _sooner(span: Nanos | None, client: Client) -> Nanos | None:
    """The span, or a quarter before the client's limit where that is sooner."""
    known = None if client.silence is None else Nanos(client.silence * 3 // 4)
    spans = [one for one in (span, known) if one is not None]
    return min(spans) if spans else None


@contextmanager
def bounded(ticket: Ticket, headers: Mapping[str, str], *, waited: Nanos) -> Iterator[None]:
    """Stop a held step's wait a tenth before its client would give up.

    `waited` is how long the client has waited by now. Once the step is dispatched nothing happens.
    """
    silence = client_of(headers).silence if ticket.is_held else None
    if silence is None:
        yield
        return

    def stop() -> None:
        if ticket.is_held:
            ticket.stop(Interrupted(Stop.PATIENCE, "the client's patience is at its end"))

    left = max(0.0, in_seconds(Nanos(silence * 9 // 10 - waited)))
    timer = asyncio.get_running_loop().call_later(left, stop)
    try:
        yield
    finally:
        timer.cancel()


class EarlyStream:
    """An event stream that is opened after a while and kept alive with no-ops until it is taken."""

    def __init__(
        self,
        request: web.Request,
        parsed: ParsedRequest,
        *,
        headers: list[tuple[str, str]],
        config: HttpConfig,
        delay: Nanos,
    ) -> None:
        self._request = request
        self._beat = keep_alive(parsed.dialect, model=parsed.model)
        self._headers = headers
        self._config = config
        self._interval_s = in_seconds(max(_INTERVAL_MIN, min(delay, _INTERVAL_MAX)))
        self._taken = asyncio.Event()
        self._response: web.StreamResponse | None = None
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(in_seconds(delay), self._begin)

    async def take(self) -> web.StreamResponse | None:
        """Stop, and hand over the stream; None if it was not opened. May be called again.

        Raises:
            ConnectionResetError: the client went away, or read nothing for the write timeout.
        """
        self._timer.cancel()
        self._taken.set()
        if self._task is not None:
            # Not cancelled: an event that is half written could not be followed by anything.
            await asyncio.wait({self._task})
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
        return self._response

    def close(self) -> None:
        """The request is over; nothing more is written."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep(), name="keep alive")

    async def _keep(self) -> None:
        try:
            response = self._response = web.StreamResponse(status=200, headers=self._headers)
            await response.prepare(self._request)
            while not self._taken.is_set():
                await send(self._request, response, self._beat, self._config)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._taken.wait()
        except Exception as error:
            self._failure = error  # for whoever takes the stream; a lost client is noticed anyway
