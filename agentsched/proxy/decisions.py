"""The live stream of decisions: the journal's turns that led to commands, as server-sent events."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from agentsched.kernel import JournalEntry, encode
from agentsched.kernel.journal import subjects
from agentsched.proxy.gateway import Gateway

_BACKLOG_MAX: Final = 1_024
_KEEP_ALIVE_S: Final = 15.0


class _Watcher:
    """One client's queue. A client that reads too slowly loses the newest turns, and is told."""

    def __init__(self, subject: str | None) -> None:
        self.queue: asyncio.Queue[JournalEntry] = asyncio.Queue(_BACKLOG_MAX)
        self.dropped = 0
        self._subject = subject

    def write(self, entry: JournalEntry) -> None:
        if not entry.commands:
            return
        if self._subject is not None and self._subject not in subjects(entry):
            return
        try:
            self.queue.put_nowait(entry)
        except asyncio.QueueFull:
            self.dropped += 1


async def watch_decisions(gateway: Gateway, request: web.Request) -> web.StreamResponse:
    """`GET /agentsched/v1/decisions?program=P`: until the client hangs up or the proxy drains."""
    watcher = _Watcher(request.query.get("program"))
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    gateway.host.watch(watcher)
    gateway.meters.count_watchers(1)
    try:
        await response.write(b": watching\n\n")
        while not gateway.is_draining:
            try:
                async with asyncio.timeout(_KEEP_ALIVE_S):
                    entry = await watcher.queue.get()
            except TimeoutError:
                await response.write(b": keep-alive\n\n")
                continue
            if watcher.dropped:
                lost, watcher.dropped = watcher.dropped, 0
                await response.write(b'event: dropped\ndata: {"turns": %d}\n\n' % lost)
            await response.write(b"event: turn\ndata: " + encode(entry) + b"\n\n")
    finally:
        gateway.host.unwatch(watcher)
        gateway.meters.count_watchers(-1)
    return response
