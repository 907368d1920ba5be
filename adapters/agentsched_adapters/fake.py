"""A verified fake: an engine in this process, with settable speed, order, cache and faults.

It passes the same contract suite as the real adapters, so what a test learns with it holds for
them. It speaks chat and plain completions; `hold` and `release` stop and start its work, so that
tests need no sleeping.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from agentsched.model import (
    Capabilities,
    EngineId,
    EngineLoad,
    EngineTimeout,
    EngineUnreachable,
    HintOutcome,
    Pin,
    PinId,
    Prefetch,
    Unpin,
)
from agentsched.ports import EngineRequest
from agentsched_adapters.fake_pool import FakePool, Grant
from agentsched_adapters.fake_wire import (
    PRIORITY_HEADER,
    FakeReply,
    FakeRequest,
    encode,
    noise,
    priority_of,
    stream_body,
    tokens,
    whole_body,
)

_RECEIVED_MAX: Final = 10_000
_SESSIONS_MAX: Final = 10_000
_JSON: Final = ("content-type", "application/json")
_SSE: Final = ("content-type", "text/event-stream; charset=utf-8")
_PATHS: Final = ("/v1/chat/completions", "/v1/completions")


class Fault(StrEnum):
    """What can be made to go wrong with a request."""

    UNREACHABLE = "unreachable"  # no connection
    SILENT = "silent"  # taken, then no status line within the limit
    ERROR = "error"  # a 500 in the engine's shape
    CUT = "cut"  # the answer's connection breaks half way
    HANG = "hang"  # half of the answer, then nothing until it is closed


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSpeed:
    """Tokens per second of one request; None is as fast as the event loop turns."""

    prefill: float | None = None
    decode: float | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """One generation request on its way through the engine."""

    request: FakeRequest
    fault: Fault | None
    chunks: asyncio.Queue[bytes | BaseException | None] = field(default_factory=asyncio.Queue)
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    grant: Grant | None = None
    is_computed: bool = False


class FakeAnswer:
    """Implements `agentsched.ports.EngineAnswer`."""

    def __init__(
        self,
        status: int,
        headers: Sequence[tuple[str, str]],
        source: AsyncIterator[bytes],
        *,
        task: asyncio.Task[None] | None = None,
    ) -> None:
        self.status: Final = status
        self.headers: Final = tuple(headers)
        self._source = source
        self._task = task

    def chunks(self) -> AsyncIterator[bytes]:
        return self._source

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self._source])

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))


class FakeEngine:
    """Implements `agentsched.ports.Engine` and `HintSink`, in one event loop.

    `capabilities` are what it really does: with `priority` false it ignores that field, with `pins`
    false it answers hints with UNSUPPORTED. A pin holds the KV of the last finished request whose
    `session_id` was the pin's conversation, until it is unpinned.
    """

    def __init__(
        self,
        id: EngineId,
        *,
        models: tuple[str, ...] = ("fake",),
        slots: int = 4,
        blocks: int = 1024,
        block_size: int = 16,
        context_max: int = 8_192,
        speed: FakeSpeed | None = None,
        priority: bool = True,
        pins: bool = False,
        reply: Callable[[Mapping[str, Any]], FakeReply] | None = None,
    ) -> None:
        self._id = id
        self.pool: Final = FakePool(blocks=blocks, block_size=block_size)
        self._can = Capabilities(
            prefix_cache=True,
            priority=priority,
            session_id=True,
            cached_tokens=True,
            pins=pins,
            block_size=block_size,
            kv_tokens=blocks * block_size,
            running_max=slots,
            context_max=min(context_max, blocks * block_size),
            models=models,
        )
        self._probed = Capabilities()
        self.speed = speed or FakeSpeed()
        self.reply = reply
        #: Requests in the order of their arrival, the last ten thousand.
        self.received: deque[EngineRequest] = deque(maxlen=_RECEIVED_MAX)
        self.is_down = False
        self._faults: deque[Fault] = deque()
        self._open = asyncio.Event()
        self._open.set()
        self._numbers = itertools.count()
        #: In order of arrival. Each is in exactly one of the two.
        self._waiting: list[_Work] = []
        self._running: list[_Work] = []
        self._tasks: set[asyncio.Task[None]] = set()
        #: Those who wait in `until`.
        self._watchers: list[tuple[Callable[[EngineLoad], bool], asyncio.Future[None]]] = []
        self._named: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()
        self._pins: dict[PinId, tuple[bytes, ...]] = {}

    # -- control --------------------------------------------------------------------------------

    def hold(self) -> None:
        """Stop all work: requests are taken and queue, nothing is generated."""
        self._open.clear()

    def release(self) -> None:
        """Go on."""
        self._open.set()
        self._fill()

    def fail_next(self, *faults: Fault) -> None:
        """The next generation requests meet these faults, one each."""
        self._faults.extend(faults)

    async def until(self, condition: Callable[[EngineLoad], bool]) -> None:
        """Wait until the gauges are so."""
        if condition(self._gauges()):
            return
        watcher = (condition, asyncio.get_running_loop().create_future())
        self._watchers.append(watcher)
        try:
            await watcher[1]
        finally:
            self._watchers.remove(watcher)

    # -- Engine ---------------------------------------------------------------------------------

    @property
    def id(self) -> EngineId:
        return self._id

    @property
    def url(self) -> str:
        return f"fake://{self._id}"

    @property
    def capabilities(self) -> Capabilities:
        return self._probed

    async def probe(self) -> Capabilities:
        self._check_up()
        self._probed = self._can
        return self._can

    async def load(self) -> EngineLoad:
        self._check_up()
        return self._gauges()

    def admission_fields(
        self,
        *,
        priority: int,
        session: str,
        program: str = "",
        tenant: str = "",
        is_kept: bool = True,
    ) -> Mapping[str, object]:
        fields: dict[str, object] = {}
        if priority and self._can.priority:
            fields["priority"] = priority
        if session:
            fields["session_id"] = session
        return fields

    def admission_headers(self, *, priority: int) -> Sequence[tuple[str, str]]:
        return ((PRIORITY_HEADER, str(priority)),) if priority and self._can.priority else ()

    async def send(self, request: EngineRequest) -> FakeAnswer:
        self._check_up()
        self.received.append(request)
        path = request.target.partition("?")[0]
        if request.method == "GET":
            return self._get(path)
        if request.method != "POST" or path not in _PATHS:
            return _refusal(404, "Not Found")
        work = self._parse(request, is_chat=path == _PATHS[0])
        if isinstance(work, FakeAnswer):
            return work
        if work.fault is Fault.UNREACHABLE:
            raise EngineUnreachable(f"{self.url}: refused, as asked")
        if work.fault is Fault.SILENT:
            raise EngineTimeout(f"{self.url}: silent, as asked")
        if work.fault is Fault.ERROR:
            return _refusal(500, "an error, as asked")
        return await self._start(work)

    async def aclose(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    # -- HintSink -------------------------------------------------------------------------------

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        if not self._can.pins or isinstance(hint, Prefetch):
            return HintOutcome.UNSUPPORTED
        if isinstance(hint, Unpin):
            self.pool.let_go(self._pins.pop(hint.pin, ()))
            self._fill()
            return HintOutcome.ACCEPTED
        wanted = self._named.get(str(hint.conversation), ())
        kept = self.pool.retain(wanted)
        if not kept:
            return HintOutcome.REFUSED
        self._pins[hint.pin] = kept
        return HintOutcome.ACCEPTED if len(kept) == len(wanted) else HintOutcome.CLIPPED

    # -- inside ---------------------------------------------------------------------------------

    def _check_up(self) -> None:
        if self.is_down:
            raise EngineUnreachable(f"{self.url}: down, as asked")

    def _gauges(self) -> EngineLoad:
        return EngineLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_usage=self.pool.held / self.pool.blocks,
            preemptions=0,
        )

    def _get(self, path: str) -> FakeAnswer:
        if path == "/health":
            return FakeAnswer(200, (), _once(b""))
        if path == "/v1/models":
            data = [
                {"id": m, "object": "model", "max_model_len": self._can.context_max}
                for m in self._can.models
            ]
            return FakeAnswer(200, (_JSON,), _once(encode({"object": "list", "data": data})))
        return _refusal(404, "Not Found")

    def _parse(self, asked: EngineRequest, *, is_chat: bool) -> _Work | FakeAnswer:
        try:
            fields = json.loads(asked.body)
            prompt = fields["messages" if is_chat else "prompt"]
            wanted = int(fields.get("max_tokens") or fields.get("max_completion_tokens") or 16)
            model = fields["model"]
            priority = priority_of(asked.headers, fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            return _refusal(400, "the body is not a request")
        if model not in self._can.models:
            return _refusal(404, f"The model `{model}` does not exist.", kind="NotFoundError")
        prompt_tokens = tokens(prompt)
        assert self._can.context_max is not None
        if len(prompt_tokens) + wanted > self._can.context_max:
            limit = self._can.context_max
            return _refusal(400, f"maximum context length is {limit} tokens", param="input_tokens")
        request = FakeRequest(
            fields=fields,
            is_chat=is_chat,
            tokens=prompt_tokens,
            output_tokens=max(1, wanted),
            number=next(self._numbers),
            priority=priority,
        )
        return _Work(request=request, fault=self._faults.popleft() if self._faults else None)

    async def _start(self, work: _Work) -> FakeAnswer:
        self._waiting.append(work)
        task = asyncio.create_task(self._serve(work), name=f"fake request {work.request.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not in a `finally` of the task: one that is cancelled before it began has none.
        task.add_done_callback(lambda done: self._leave(work, done))
        self._fill()
        if work.request.is_stream:
            return FakeAnswer(200, (_SSE,), _drain(work.chunks), task=task)
        try:
            body = b"".join([chunk async for chunk in _drain(work.chunks)])
        except BaseException:
            task.cancel()
            await asyncio.wait((task,))
            raise
        return FakeAnswer(200, (_JSON,), _once(body), task=task)

    def _fill(self) -> None:
        """Let waiting requests run while slots and blocks last, in the engine's order."""
        assert self._can.running_max is not None
        while self._open.is_set() and self._waiting and len(self._running) < self._can.running_max:
            work = min(self._waiting, key=self._rank)
            work.grant = self.pool.take(
                work.request.tokens, output_tokens=work.request.output_tokens
            )
            if work.grant is None:
                break
            self._waiting.remove(work)
            self._running.append(work)
            work.turn.set()
        self._tell()

    def _rank(self, work: _Work) -> tuple[int, int]:
        return work.request.priority if self._can.priority else 0, work.request.number

    async def _serve(self, work: _Work) -> None:
        await work.turn.wait()
        assert work.grant is not None
        missing = len(work.request.tokens) - work.grant.cached_blocks * self.pool.block_size
        await self._spend(missing, rate=self.speed.prefill)
        work.is_computed = True
        await self._generate(work)

    def _leave(self, work: _Work, done: asyncio.Task[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            work.chunks.put_nowait(error)
        if work in self._waiting:
            self._waiting.remove(work)
        if work in self._running:
            self._running.remove(work)
        if work.grant is not None:
            self.pool.give_back(work.grant, is_computed=work.is_computed)
            if session := str(work.request.fields.get("session_id") or ""):
                self._named[session] = work.grant.named
                self._named.move_to_end(session)
                while len(self._named) > _SESSIONS_MAX:
                    self._named.popitem(last=False)
        work.chunks.put_nowait(None)
        self._fill()

    async def _generate(self, work: _Work) -> None:
        reply = self.reply(work.request.fields) if self.reply else noise(work.request)
        pieces = (
            stream_body(work.request, reply, self._usage(work)) if work.request.is_stream else None
        )
        half = work.request.output_tokens // 2
        for index in range(work.request.output_tokens):
            await self._spend(1, rate=self.speed.decode)
            if index == half and work.fault is Fault.CUT:
                work.chunks.put_nowait(EngineUnreachable(f"{self.url}: cut, as asked"))
                return
            if index == half and work.fault is Fault.HANG:
                await asyncio.get_running_loop().create_future()
            if pieces is not None:
                work.chunks.put_nowait(pieces[index])
        if pieces is not None:
            work.chunks.put_nowait(b"".join(pieces[work.request.output_tokens :]))
        else:
            work.chunks.put_nowait(whole_body(work.request, reply, self._usage(work)))

    def _usage(self, work: _Work) -> dict[str, Any]:
        assert work.grant is not None
        cached = work.grant.cached_blocks * self.pool.block_size
        return {
            "prompt_tokens": len(work.request.tokens),
            "completion_tokens": work.request.output_tokens,
            "total_tokens": len(work.request.tokens) + work.request.output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    async def _spend(self, tokens: int, *, rate: float | None) -> None:
        await asyncio.sleep(0 if rate is None else tokens / rate)
        await self._open.wait()

    def _tell(self) -> None:
        gauges = self._gauges()
        for condition, met in self._watchers:
            if not met.done() and condition(gauges):
                met.set_result(None)


def _refusal(
    status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None
) -> FakeAnswer:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return FakeAnswer(status, (_JSON,), _once(encode({"error": error})))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


async def _drain(chunks: asyncio.Queue[bytes | BaseException | None]) -> AsyncIterator[bytes]:
    while (chunk := await chunks.get()) is not None:
        if isinstance(chunk, BaseException):
            raise chunk
        yield chunk
