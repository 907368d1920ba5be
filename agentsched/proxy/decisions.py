"""The live stream of decisions: the journal's turns that led to commands, as server-sent events."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from agentsched.kernel import JournalEntry, encode
from agentsched.kernel.journal import subjects
from agentsched.proxy.access.principal import principal_of
from agentsched.proxy.access.views import OwnPart
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.sending import send

_BACKLOG_MAX: Final = 1_024
_KEEP_ALIVE_S: Final = 15.0


class _Watcher:
    """One client's queue. A client that reads too slowly loses the newest turns, and is told."""

    def __init__(self, subject: str | None, own: OwnPart | None = None) -> None:
        self.queue: asyncio.Queue[JournalEntry] = asyncio.Queue(_BACKLOG_MAX)
        self.dropped = 0
        self._subject = subject
        self._own = own

    def write(self, entry: JournalEntry) -> None:
        shown = self._own.of(entry) if self._own is not None else entry
        if shown is None or not shown.commands:
            return
        entry = shown
        if self._subject is not None and self._subject not in subjects(entry):
            return
        try:
            self.queue.put_nowait(entry)
        except asyncio.QueueFull:
            self.dropped += 1

    def shown(self, entry: JournalEntry | None) -> bytes:
        """What is sent for a turn, or in place of one."""
        lost, self.dropped = self.dropped, 0
        gap = b'event: dropped\ndata: {"turns": %d}\n\n' % lost if lost else b""
        if entry is None:
            return gap + b": keep-alive\n\n"
        return gap + b"event: turn\ndata: " + encode(entry) + b"\n\n"


async def watch_decisions(gateway: Gateway, request: web.Request) -> web.StreamResponse:
    """`GET /agentsched/v1/decisions?program=P`: until the client hangs up, the proxy drains, or who
    opened it may not look any more.
    """
    own = OwnPart(principal_of(request), gateway.host.scheduler)
    watcher = _Watcher(request.query.get("program"), own)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    gateway.host.watch(watcher)
    gateway.meters.count_watchers(1)
    try:
        await send(request, response, b": watching\n\n", gateway.config.http)
        while not gateway.is_draining:
            turn = await _next(gateway, watcher)
            if not gateway.still_admits(request):
                break
            await send(request, response, watcher.shown(turn), gateway.config.http)
    finally:
        gateway.host.unwatch(watcher)
        gateway.meters.count_watchers(-1)
    return response


async def _next(gateway: Gateway, watcher: _Watcher) -> JournalEntry | None:
    """The next turn; None when there was none for a while, or the proxy drains."""
    turn = asyncio.ensure_future(watcher.queue.get())
    end = asyncio.ensure_future(gateway.draining.wait())
    try:
        await asyncio.wait((turn, end), timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
        return turn.result() if turn.done() else None
    finally:
        turn.cancel()
        end.cancel()
