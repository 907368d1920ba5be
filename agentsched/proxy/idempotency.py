"""Requests that come twice: the second joins the first, and the engine works once.

A request says which one it is by `Idempotency-Key`, or by an `x-request-id` of its own together
with the same body. Its work then runs in a task that no client owns: all who ask for it, the first
included, follow its recording. When all have left, it goes on for a while, since a client that
timed out is about to ask again; a good answer can be had again for a window. Names are a tenant's
own, and where it has API keys, of each of these: work ends with the key that it was asked for with.
What is kept is bounded in bytes and in number.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from agentsched.config import HttpConfig
from agentsched.config_trust import IdempotencyConfig
from agentsched.model import TenantId, WireError, in_seconds
from agentsched.proxy.bodies import BODIES
from agentsched.proxy.receive import Received
from agentsched.proxy.recording import Recording, recorded_request
from agentsched.proxy.sending import send

log = logging.getLogger(__name__)

HEADER: Final = "idempotency-key"
_REQUEST_ID: Final = "x-request-id"
_KEY_CHARS_MAX: Final = 255
_ENTRIES_MAX: Final = 4_096
#: An answer of more takes no further followers.
_ANSWER_BYTES_MAX: Final = 2 << 20

#: Does the work for a request; the response, and whether it is a good answer to keep.
Work = Callable[[web.Request], Awaitable[tuple[web.StreamResponse, bool]]]
Key = tuple[TenantId, str, str, str]


@dataclass(slots=True, eq=False)
class _Entry:
    key: Key
    digest: bytes
    recording: Recording
    task: asyncio.Task[None] | None = None
    #: Ends work that nobody waits for, or forgets an answer that is old.
    timer: asyncio.TimerHandle | None = None
    clients: int = 0
    #: Bytes of its answer that count as kept.
    kept: int = 0


class SharedAnswers:
    """All requests with a key, live and lately answered. Belongs to one event loop."""

    def __init__(self, config: IdempotencyConfig) -> None:
        self._config = config
        #: The one asked for last at the end.
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._kept_bytes = 0
        #: Bytes of all answers that are here, those that are still coming included.
        self._held_bytes = 0
        #: Work under way, joinable or not.
        self._tasks: set[asyncio.Task[None]] = set()
        self.begun_total = 0
        self.joined_total = 0
        self.repeated_total = 0
        self.conflicts_total = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of answers that can be had again."""
        return self._kept_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, received: Received, tenant: TenantId, api_key: str = "") -> Key | None:
        """Which request this is; None where it does not say, or nobody wants to know. `api_key`
        is the id of the key that it came with, where keys are asked for.
        """
        if not self._config.is_on:
            return None
        given = received.headers.get(HEADER)
        if given:
            if len(given) > _KEY_CHARS_MAX:
                text = f"the idempotency key has more than {_KEY_CHARS_MAX} characters"
                raise WireError(text, code="bad_idempotency_key")
            return tenant, api_key, received.target, f"key {given}"
        named = received.headers.get(_REQUEST_ID)
        if not named or named != received.request_id:
            return None
        # Others use one id for several requests: the same body makes it the same one.
        digest = hashlib.sha256(received.body).hexdigest()
        return tenant, api_key, received.target, f"id {named} {digest}"

    async def serve(
        self, key: Key, request: web.Request, received: Received, work: Work, http: HttpConfig
    ) -> web.StreamResponse:
        """The answer to a request: of work that runs, or was done lately, or begins now.

        Raises:
            WireError: the key was used with another body (422).
        """
        digest = hashlib.sha256(received.body).digest()
        entry = self._entries.get(key)
        if entry is not None and entry.digest != digest:
            self.conflicts_total += 1
            text = "this idempotency key was used for another request"
            raise WireError(text, status=422, code="idempotency_key_reused")
        is_new = entry is None or not entry.recording.is_joinable
        if entry is None or is_new:
            self.begun_total += 1
            entry = self._begin(key, digest, request, work)
        elif entry.recording.is_over:
            self.repeated_total += 1
        else:
            self.joined_total += 1
        return await self._follow(entry, request, received, http, is_new=is_new)

    async def aclose(self) -> None:
        """Stop all work."""
        for entry in self._entries.values():
            if entry.timer is not None:
                entry.timer.cancel()
        self._entries.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, key: Key, digest: bytes, request: web.Request, work: Work) -> _Entry:
        bound = min(_ANSWER_BYTES_MAX, self._config.bytes_max)
        entry = _Entry(key, digest, Recording(bytes_max=bound, hold=self._hold))
        self._drop(self._entries.get(key))
        self._entries[key] = entry
        asked, bodies = recorded_request(request, entry.recording), request.app[BODIES]
        task = entry.task = asyncio.get_running_loop().create_task(
            self._work(entry, asked, work), name=f"shared {key[3][:32]}"
        )
        # Its body is held for as long as the work goes on, whether or not its client stays.
        bodies.hand_over(request, asked)
        task.add_done_callback(lambda _: bodies.release(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        while len(self._entries) > _ENTRIES_MAX:
            self._drop(next(iter(self._entries.values())))
        return entry

    async def _work(self, entry: _Entry, request: web.Request, work: Work) -> None:
        recording = entry.recording
        is_good = False
        try:
            response, is_good = await work(request)
            if not recording.status:
                body = response.body if isinstance(response, web.Response) else b""
                data = bytes(body) if isinstance(body, bytes | bytearray) else b""
                recording.whole(response.status, list(response.headers.items()), data)
            recording.end()
        except asyncio.CancelledError:
            recording.end(ConnectionResetError("nobody waited for the answer any more"))
            raise
        except Exception as error:
            recording.end(error)
            if not entry.clients:
                log.info("a request that nobody waits for failed: %s", error)
        finally:
            self._settle(entry, is_good=is_good)

    def _hold(self, size: int) -> bool:
        """Count bytes of answers; the oldest that are over make room. False: there is none."""
        self._held_bytes += size
        if self._held_bytes > self._config.bytes_max and self._kept_bytes:
            for old in list(self._entries.values()):
                if self._held_bytes <= self._config.bytes_max:
                    break
                if old.recording.is_over:
                    self._drop(old)
        return self._held_bytes <= self._config.bytes_max

    def _settle(self, entry: _Entry, *, is_good: bool) -> None:
        """The work is over: keep a good answer for a while, and others not at all."""
        if self._entries.get(entry.key) is not entry:
            self._hold(-entry.recording.held)  # it was let go while it came
            return
        if not is_good or not entry.recording.is_joinable:
            self._drop(entry)
            return
        self._arm(entry, in_seconds(self._config.window), self._drop)
        entry.kept = entry.recording.size
        self._kept_bytes += entry.kept
        self._entries.move_to_end(entry.key)

    async def _follow(
        self,
        entry: _Entry,
        request: web.Request,
        received: Received,
        http: HttpConfig,
        *,
        is_new: bool,
    ) -> web.StreamResponse:
        recording = entry.recording
        me = recording.follow()
        entry.clients += 1
        if entry.timer is not None and not recording.is_over:
            entry.timer.cancel()
            entry.timer = None
        try:
            await recording.opened()
            headers = _headers(recording, received, is_new=is_new)
            if not recording.is_stream:
                body = b"".join([part async for part in recording.parts(me)])
                return web.Response(status=recording.status, body=body, headers=headers)
            response = web.StreamResponse(status=recording.status, headers=headers)
            await response.prepare(request)
            async for part in recording.parts(me):
                await send(request, response, part, http)
            if recording.failure is not None:
                raise ConnectionResetError("the answer ended too early") from None
            return response  # its end is sent by `finish`, bounded in time
        finally:
            recording.leave(me)
            entry.clients -= 1
            if not entry.clients and not recording.is_over:
                self._arm(entry, in_seconds(self._config.patience), self._give_up)

    def _give_up(self, entry: _Entry) -> None:
        """All clients left, and none came back."""
        self._drop(entry)
        if entry.task is not None:
            entry.task.cancel()

    def _drop(self, entry: _Entry | None) -> None:
        """Let nobody join it any more."""
        if entry is None or self._entries.get(entry.key) is not entry:
            return
        del self._entries[entry.key]
        self._kept_bytes -= entry.kept
        if not entry.recording.is_over:
            return
        self._held_bytes -= entry.recording.held
        if entry.timer is not None:
            entry.timer.cancel()

    def _arm(self, entry: _Entry, seconds: float, then: Callable[[_Entry], None]) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        entry.timer = asyncio.get_running_loop().call_later(seconds, then, entry)


def _headers(recording: Recording, received: Received, *, is_new: bool) -> list[tuple[str, str]]:
    """Those of the answer, with the asking request's own id."""
    kept = [
        (name, value)
        for name, value in recording.headers
        if name.lower() not in (_REQUEST_ID, "content-length")
    ]
    ours = [(_REQUEST_ID, received.request_id)]
    if not is_new:
        ours.append(("x-agentsched-joined", "1"))
    return [*kept, *ours]
