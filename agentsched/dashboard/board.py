"""The dashboard's routes: pages for everybody, live data for whoever may use the control plane."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from agentsched.dashboard.feed import Feed, Watcher
from agentsched.dashboard.pages import Pages
from agentsched.dashboard.rows import MemberView, seconds_of
from agentsched.dashboard.seats import Seats
from agentsched.dashboard.shapes import Replicas
from agentsched.dashboard.timeline import timeline
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.kernel.holdings import holdings, pin_of
from agentsched.model import EngineId, Instant, ProgramId
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.snapshot import snapshot

log = logging.getLogger(__name__)

_BEAT_S: Final = 0.5
#: One sample of the history in so many beats: 450 of them are a quarter of an hour.
_BEATS_PER_SAMPLE: Final = 4
_KEEP_ALIVE_S: Final = 15.0
_WATCHERS_MAX: Final = 64
_TYPES: Final = {
    403: "permission_error",
    404: "not_found_error",
    503: "service_unavailable_error",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Send = Callable[[web.Request, web.StreamResponse, bytes], Awaitable[None]]


class Sink(Protocol):
    """A reader of the journal."""

    def write(self, entry: JournalEntry) -> None: ...


class Host(Protocol):
    """What the dashboard needs of the host."""

    scheduler: Scheduler

    def now(self) -> Instant: ...
    def watch(self, sink: Sink) -> None: ...
    def unwatch(self, sink: Sink) -> None: ...


class Dashboard:
    """Handlers, and the feed behind them.

    Nobody gets here who may not look; `viewer` says as which tenant, None for all of them, and
    `may_go_on` whether who opened a stream may look still. `send` writes a part of a stream and
    gives up on a client that does not read; `draining` is set when the proxy is about to end.
    """

    def __init__(
        self,
        host: Host,
        *,
        members: Callable[[], Iterable[MemberView]],
        draining: asyncio.Event,
        viewer: Callable[[web.Request], str | None],
        may_go_on: Callable[[web.Request], bool],
        send: Send,
        replicas: Callable[[], Replicas | None] = lambda: None,
    ) -> None:
        self._host = host
        self._draining = draining
        self._viewer = viewer
        self._may_go_on = may_go_on
        self._send = send
        self._seats = Seats()
        self.feed = Feed(
            host.scheduler,
            members=members,
            is_draining=draining.is_set,
            replicas=replicas,
        )

    def routes(self) -> list[web.RouteDef]:
        """The table of routes. To be added before those of programs, whose ids may have slashes."""
        base = "/agentsched/v1"
        handlers: dict[str, Handler] = {
            "/overview": self._overview,
            "/feed": self._watch,
            "/programs/{program:.+}/timeline": self._timeline,
            "/engines/{engine}/kv": self._kv,
        }
        return [
            *Pages().routes(),
            *(web.get(base + path, handler) for path, handler in handlers.items()),
        ]

    async def running(self, app: web.Application) -> AsyncIterator[None]:
        """Follow the journal while the application runs (a `cleanup_ctx`)."""
        self._host.watch(self.feed)
        beats = asyncio.create_task(self._beat(), name="dashboard feed")
        yield
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)
        self._host.unwatch(self.feed)

    async def _beat(self) -> None:
        count = 0
        while True:
            try:
                now = self._host.now()
                if count % _BEATS_PER_SAMPLE == 0:
                    self.feed.sample(now=now)
                self.feed.beat(now=now)
            except Exception:
                log.exception("a defect in the dashboard's feed")
            count += 1
            await asyncio.sleep(_BEAT_S)

    async def _overview(self, request: web.Request) -> web.Response:
        """`GET overview`: everything that the dashboard shows first, once."""
        return _json(self.feed.full(now=self._host.now(), tenant=self._viewer(request)))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """`GET feed`: frames as server-sent events.

        Until the client goes, the proxy drains, which the last one says, or who opened it may not
        look any more.
        """
        tenant = self._viewer(request)
        if not self._seats.has_room(tenant, most=_WATCHERS_MAX):
            return _error(503, "too_many_watchers", "As many dashboards watch as may.")
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                "X-Content-Type-Options": "nosniff",
            }
        )
        watcher = self.feed.watch(tenant)
        self._seats.take(tenant)
        try:
            await response.prepare(request)
            is_over = self._draining.is_set()
            while not is_over:
                frame = await self._next(watcher)
                if not self._may_go_on(request):
                    break
                shown = b": keep-alive\n\n" if frame is None else _event(frame)
                is_over = self._draining.is_set()
                if is_over and not watcher.is_behind:
                    # Nothing comes after this that could say so.
                    last = self.feed.last(now=self._host.now(), tenant=watcher.tenant)
                    shown += _event(msgspec.json.encode(last))
                await self._send(request, response, shown)
        finally:
            self.feed.unwatch(watcher)
            self._seats.leave(tenant)
        return response

    async def _next(self, watcher: Watcher) -> bytes | None:
        """The next frame; None when there was none for a while, or the proxy drains."""
        frame = asyncio.ensure_future(watcher.frames.get())
        end = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait(
                (frame, end), timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
            )
            return frame.result() if frame.done() else None
        finally:
            frame.cancel()
            end.cancel()

    async def _timeline(self, request: web.Request) -> web.Response:
        """`GET programs/ID/timeline`: lanes of a program that is live or was closed lately."""
        scheduler = self._host.scheduler
        key = ProgramId(request.match_info["program"])
        graph = scheduler.graphs.graph(key) if isinstance(scheduler.graphs, GraphBuilder) else None
        tenant = self._viewer(request)
        if graph is None or tenant not in (None, graph.tenant):
            return _error(404, "unknown_program", "No graph of a program of this id is kept.")
        shown = snapshot(graph, now=self._host.now())
        story = scheduler.story(key)
        record = scheduler.programs.get(key)
        pins = (pin_of(scheduler, c) for c in record.conversations) if record else ()
        held = {pin.pin for pin in pins if pin is not None}
        return _json(timeline(shown, story, opened_at=graph.opened_at, held=held))

    async def _kv(self, request: web.Request) -> web.Response:
        """`GET engines/NAME/kv`: who holds how much of its cache, shared prefixes once.

        It tells of all tenants, so it is for those who may see all.
        """
        if self._viewer(request) is not None:
            return _error(403, "forbidden", "The map of a cache is for operators.")
        key = EngineId(request.match_info["engine"])
        if key not in self._host.scheduler.engines:
            return _error(404, "unknown_engine", "No engine of this name has reported.")
        shown = msgspec.to_builtins(holdings(self._host.scheduler, key))
        for row in shown["rows"]:
            for name in ("paused_at", "pinned_until"):
                row[name] = None if row[name] is None else seconds_of(Instant(row[name]))
        return _json({"now": seconds_of(self._host.now())} | shown)


def _event(frame: bytes) -> bytes:
    return b"event: frame\ndata: " + frame + b"\n\n"


def _json(value: Any, *, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def _error(status: int, code: str, message: str) -> web.Response:
    error = {"message": message, "type": _TYPES[status], "param": None, "code": code}
    return _json({"error": error}, status=status)
