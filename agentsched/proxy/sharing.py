"""What replicas tell each other of their programs, so that any of them can serve the next request.

The bus tells a turn within milliseconds of its end; the store, which has it as well, repairs what
the bus lost: at the start, while the broker is away, and every few seconds. A request that goes on
from something unknown waits a moment for the turn that may be on its way, and no longer. Only keyed
hashes, ids and counts are told, never a prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.kernel.holdings import conversation_of
from agentsched.model import (
    AgentschedError,
    ContinuedElsewhere,
    ConversationId,
    EngineId,
    Instant,
    TenantId,
)
from agentsched.proxy.host import LiveHost
from agentsched.proxy.identity.keeping import encode_turn
from agentsched.proxy.identity.records import Turn
from agentsched.proxy.identity.sharing import SharedIndex
from agentsched.proxy.request import ParsedRequest

if TYPE_CHECKING:
    from agentsched.bus.service import Bus
    from agentsched.store.following import Follower

log = logging.getLogger(__name__)

#: Raised when a batch means something else than one of the version before; others are dropped.
TURNS_VERSION: Final = 1
_BATCH_MAX: Final = 64
_BATCH_BYTES_MAX: Final = 1 << 20
_PENDING_MAX: Final = 4_096
_HOMES_MAX: Final = 50_000
#: So many requests at once may wait for what may be on its way.
_WAITERS_MAX: Final = 64
#: The store is looked at so often while the bus is there, and while it is not.
_REPAIR_EVERY_S: Final = 5.0
_FOLLOW_EVERY_S: Final = 0.5
#: So many looks at the shorter distance after the bus came.
_HURRIED_LOOKS: Final = 4


class _Told(msgspec.Struct, frozen=True, array_like=True):
    """One turn. `age_ns` is how long ago it was; `engine` has `tokens` of its conversation."""

    age_ns: int
    data: bytes
    engine: str = ""
    tokens: int = 0


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    version: int
    #: Of the secret: hashes that were made with another one say nothing.
    mark: bytes
    turns: tuple[_Told, ...]


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(_Batch).decode


@dataclass(frozen=True, slots=True)
class Home:
    """Where another replica left a conversation, and how many tokens of it."""

    engine: EngineId
    tokens: int


class TurnSharing(Collector):
    """One replica's part. `settle_s`: how long a request waits for what it goes on from."""

    def __init__(
        self, *, index: SharedIndex, host: LiveHost, follower: Follower | None, settle_s: float
    ) -> None:
        self._index = index
        self._host = host
        self._follower = follower
        self._settle_s = settle_s
        self._bus: Bus | None = None
        #: Turns that are to be told, by handle: of one that changes again the last state counts.
        self._pending: OrderedDict[int, Turn] = OrderedDict()
        self._is_due = False
        #: Conversations that another replica served last.
        self._homes: OrderedDict[ConversationId, Home | None] = OrderedDict()
        self._news = asyncio.Event()
        self._waiters = 0
        self.counts: Counter[str] = Counter()
        index.tell_with(self.tell)

    # -- telling -----------------------------------------------------------------------------------

    def join(self, bus: Bus) -> None:
        """Tell and hear over this bus from now on."""
        self._bus = bus

    def tell(self, turn: Turn) -> None:
        """A turn is new or has changed: it is told when this turn of the event loop is over."""
        if self._bus is None or not self._bus.others:
            return  # nobody listens; whoever comes later has it from the store
        self._pending[turn.handle] = turn
        self._pending.move_to_end(turn.handle)
        if len(self._pending) > _PENDING_MAX:
            self._pending.popitem(last=False)
            self.counts["dropped"] += 1
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._is_due = False
        bus = self._bus
        while self._pending and bus is not None:
            batch: list[_Told] = []
            size = 0
            while self._pending and len(batch) < _BATCH_MAX and size < _BATCH_BYTES_MAX // 2:
                _, turn = self._pending.popitem(last=False)
                told = self._told(turn)
                if len(told.data) > _BATCH_BYTES_MAX // 2:
                    self.counts["dropped"] += 1
                    continue
                size += len(told.data)
                batch.append(told)
            self.counts["told"] += len(batch)
            bus.tell_turns(_ENCODE(_Batch(TURNS_VERSION, self._index.secret_mark, tuple(batch))))

    def _told(self, turn: Turn) -> _Told:
        _, at, data = encode_turn(turn)
        conversation = turn.conversation.id
        record = conversation_of(self._host.scheduler, conversation)
        engine, tokens = "", 0
        if record is not None and record.is_resident and record.engine is not None:
            engine, tokens = str(record.engine), record.context_tokens
        return _Told(max(0, self._host.now() - at), data, engine, tokens)

    # -- hearing -----------------------------------------------------------------------------------

    def hear(self, replica: str, payload: bytes) -> None:
        """Take in what another replica told."""
        try:
            batch = _DECODE(payload) if len(payload) <= _BATCH_BYTES_MAX else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            batch = None
        if batch is None or batch.version != TURNS_VERSION:
            self.counts["malformed"] += 1
            return
        if batch.mark != self._index.secret_mark:
            self.counts["foreign"] += 1
            return
        now = self._host.now()
        for told in batch.turns:
            home = Home(EngineId(told.engine), told.tokens) if told.engine else None
            at = Instant(now - max(0, told.age_ns))
            self._learn(told.data, home, at=at, now=now, replica=replica)
        self.counts["heard"] += len(batch.turns)
        self._wake()

    def gone(self, replica: str) -> None:
        """Another replica died: what it served may be asked for again here."""
        self._index.gone(replica, now=self._host.now())

    def _learn(
        self, data: bytes, home: Home | None, *, at: Instant, now: Instant, replica: str
    ) -> None:
        turn = self._index.learn(data, at=at, now=now, replica=replica)
        if turn is None:
            self.counts["malformed"] += 1
            return
        conversation = turn.conversation
        record = conversation_of(self._host.scheduler, conversation.id)
        if record is not None and record.active_steps:
            return  # it runs here, so what is told is old
        if record is not None and record.last_at >= at:
            return
        self._homes[conversation.id] = home or self._homes.get(conversation.id)
        self._homes.move_to_end(conversation.id)
        if len(self._homes) > _HOMES_MAX:
            self._homes.popitem(last=False)
        if record is not None and (record.is_resident or record.paused_at is not None):
            program = conversation.program.id
            self._host.feed(ContinuedElsewhere(program=program, conversation=conversation.id))

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # -- asking ------------------------------------------------------------------------------------

    def look(self, conversation: ConversationId) -> Home | None:
        """Where another replica left this conversation."""
        return self._homes.get(conversation)

    def home(self, conversation: ConversationId) -> Home | None:
        """As `look`, for the last time: the conversation is ours from now on."""
        return self._homes.pop(conversation, None)

    async def settle(
        self, request: ParsedRequest, headers: Mapping[str, str], *, tenant: TenantId
    ) -> None:
        """Wait until what the request goes on from is known: a moment at most, seldom at all."""
        if self._bus is None or not self._bus.others or not self._settle_s:
            return
        if self._waiters >= _WAITERS_MAX or not self._is_orphan(request, headers, tenant):
            return
        self.counts["orphans_met"] += 1
        self._waiters += 1
        try:
            async with asyncio.timeout(self._settle_s):
                while True:
                    await self._news.wait()
                    if not self._is_orphan(request, headers, tenant):
                        self.counts["orphans_settled"] += 1
                        return
        except TimeoutError:
            return
        finally:
            self._waiters -= 1

    def _is_orphan(
        self, request: ParsedRequest, headers: Mapping[str, str], tenant: TenantId
    ) -> bool:
        return self._index.is_orphan(request, headers, tenant=tenant, now=self._host.now())

    # -- repairing ---------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Learn what the store has of other replicas that was not learnt yet.

        Raises:
            AgentschedError: it cannot be read.
        """
        if self._follower is None:
            return
        while True:
            news = await self._follower.news()
            now, wall = self._host.now(), time.time_ns()
            for number, (at_ns, data) in enumerate(news):
                at = Instant(min(now, now - (wall - at_ns)))
                self._learn(data, None, at=at, now=now, replica="")
                if number % _BATCH_MAX == _BATCH_MAX - 1:
                    await asyncio.sleep(0)  # clients come first
            self.counts["followed"] += len(news)
            if news:
                self._wake()
            if not self._follower.is_behind:
                return

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """What others did before us is known when this begins; what they do later, soon after."""
        if self._follower is None:
            yield
            return
        with contextlib.suppress(AgentschedError):  # the store's own words about it are enough
            await self.catch_up()
        task = asyncio.create_task(self._follow(), name="follow other replicas")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._follower.aclose()

    @property
    def _is_told(self) -> bool:
        return self._bus is not None and self._bus.connection.is_up.is_set()

    async def _follow(self) -> None:
        hurry = _HURRIED_LOOKS
        while True:
            # Where nobody else ever wrote, this is probably the only replica.
            is_told = self._is_told or not self.counts["followed"]
            await asyncio.sleep(_REPAIR_EVERY_S if is_told and not hurry else _FOLLOW_EVERY_S)
            # What was told before we could hear it is in the store a little later.
            hurry = max(0, hurry - 1) if self._is_told else _HURRIED_LOOKS
            try:
                await self.catch_up()
            except AgentschedError:
                self.counts["unreadable"] += 1
            except Exception:
                log.exception("a defect while following other replicas")

    # -- metrics -----------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """As Prometheus metrics."""
        turns = CounterMetricFamily(
            "agentsched_shared_turns",
            "Turns told to and learnt from other replicas, by what became of them.",
            labels=["outcome"],
        )
        for outcome in ("told", "heard", "followed", "dropped", "foreign", "malformed"):
            turns.add_metric([outcome], self.counts[outcome])
        yield turns
        orphans = CounterMetricFamily(
            "agentsched_orphan_requests",
            "Requests that went on from something unknown here, and those known after a moment.",
            labels=["outcome"],
        )
        for outcome in ("met", "settled"):
            orphans.add_metric([outcome], self.counts[f"orphans_{outcome}"])
        yield orphans
