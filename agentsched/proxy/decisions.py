"""The live stream of decisions: the journal's turns that led to commands, as server-sent events."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web

from agentsched.kernel import JournalEntry, Scheduler, encode
from agentsched.kernel.holdings import pin_of
from agentsched.model import ProgramId
from agentsched.proxy.access.principal import principal_of
from agentsched.proxy.access.views import OwnPart
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.receive import request_id
from agentsched.proxy.refusal import Refusal
from agentsched.proxy.request import Dialect
from agentsched.proxy.sending import send

#: Each is called at every turn of the scheduler, which all requests wait for.
_WATCHERS_MAX: Final = 64
_TOO_MANY: Final = Refusal(
    status=503, code="too_many_watchers", message="As many watch decisions as may."
)
_BACKLOG_MAX: Final = 1_024
_KEEP_ALIVE_S: Final = 15.0
#: Steps and pins of one program that are remembered; the oldest is forgotten.
_NAMES_MAX: Final = 4_096


class _About:
    """Which turns are about one program, or one step. They come in their order.

    Only its first turn names a step with its program: what was held is sent, or turned away, in a
    turn of somebody else's or of the timer, and a pin ends there as well.
    """

    def __init__(self, subject: str, known: Iterable[str] = ()) -> None:
        """`known` are its steps and pins of before."""
        self._subject = subject
        self._names = OrderedDict.fromkeys(known)

    def is_about(self, entry: JournalEntry) -> bool:
        """Whether a turn is about it; what later ones will name in its place is remembered."""
        is_about = False
        for part in (entry.event, *entry.commands):
            program = getattr(part, "program", None)
            names = [getattr(part, field, None) for field in ("step", "pin")]
            is_about |= program == self._subject or self._subject in names
            is_about |= any(name in self._names for name in names)
            if program == self._subject:
                self._remember(name for name in names if name is not None)
        return is_about

    def _remember(self, names: Iterable[str]) -> None:
        for name in names:
            self._names[name] = None
            if len(self._names) > _NAMES_MAX:
                self._names.popitem(last=False)


class _Watcher:
    """One client's queue. A client that reads too slowly loses the newest turns, and is told."""

    def __init__(self, about: _About | None, own: OwnPart | None = None) -> None:
        self.queue: asyncio.Queue[JournalEntry] = asyncio.Queue(_BACKLOG_MAX)
        self.dropped = 0
        self._about = about
        self._own = own

    def write(self, entry: JournalEntry) -> None:
        shown = self._own.of(entry) if self._own is not None else entry
        if shown is None:
            return
        # Asked of each: a step that is held arrives in a turn without commands.
        is_wanted = self._about is None or self._about.is_about(shown)
        if not (is_wanted and shown.commands):
            return
        try:
            self.queue.put_nowait(shown)
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
    opened it may not look any more. 503 where as many watch as may.
    """
    principal = principal_of(request)
    tenant = None if principal.is_admin else principal.tenant or ""
    seats = gateway.decision_seats
    if not seats.has_room(tenant, most=_WATCHERS_MAX):
        return _TOO_MANY.response(Dialect.OTHER, {"x-request-id": request_id(request)})
    scheduler = gateway.host.scheduler
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    # Nothing comes between here and the watch: what is live is known, what comes is heard.
    own = OwnPart(principal, scheduler)
    subject = request.query.get("program")
    about = None if subject is None else _About(subject, _live_names(scheduler, subject))
    watcher = _Watcher(about, own)
    gateway.host.watch(watcher)
    seats.take(tenant)
    gateway.meters.count_watchers(1)
    try:
        await response.prepare(request)
        await send(request, response, b": watching\n\n", gateway.config.http)
        while not gateway.is_draining:
            turn = await _next(gateway, watcher)
            if not gateway.still_admits(request):
                break
            await send(request, response, watcher.shown(turn), gateway.config.http)
    finally:
        gateway.host.unwatch(watcher)
        seats.leave(tenant)
        gateway.meters.count_watchers(-1)
    return response


def _live_names(scheduler: Scheduler, program: str) -> Iterator[str]:
    """Steps and pins that a program has now."""
    yield from (step.step for step in scheduler.steps.values() if step.program == program)
    record = scheduler.programs.get(ProgramId(program))
    for conversation in record.conversations if record is not None else ():
        pin = pin_of(scheduler, conversation)
        if pin is not None:
            yield pin.pin


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
