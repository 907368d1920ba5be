"""The engines: probes them, watches their health, tells the scheduler what it sees."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from agentsched.config import UpstreamConfig
from agentsched.config_trust import BreakerConfig
from agentsched.model import (
    EngineDrained,
    EngineError,
    EngineId,
    EngineLost,
    EngineReported,
    EngineTimeout,
    EngineUnanswered,
    EngineUnreachable,
    Instant,
    Nanos,
    between,
    in_seconds,
)
from agentsched.ports import Engine
from agentsched.proxy.health import Health
from agentsched.proxy.host import LiveHost

log = logging.getLogger(__name__)

#: How often an engine that goes is looked at for running steps.
_LOOK_EVERY_S: Final = 0.02
#: An engine of unknown make is asked again what it is at each of so many looks, and any that left
#: something open what it can do.
_LOOKS_PER_DETECTION: Final = 30

#: Finds out what answers at an engine's address, and makes the adapter for it.
Connect = Callable[[], Awaitable[Engine]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What keeps KV below an engine's own cache: LMCache, by its controller."""

    url: str
    instance: str


@dataclass(slots=True)
class Member:
    """One engine of the configuration, and what the last looks at it gave."""

    id: EngineId
    url: str
    connect: Connect
    #: Whether requests to it carry the operator's key in place of the client's.
    has_key: bool = False
    #: What answers at the address is found out anew when it comes back, and now and then.
    is_detected: bool = False
    looks: int = 0
    tier: Tier | None = None
    #: Models that it takes beside those that it lists; `*` for any.
    models: tuple[str, ...] = ()
    #: None until something answered at the address for the first time.
    engine: Engine | None = None
    is_up: bool = False
    failures: int = 0
    last_error: str = "not probed yet"
    #: Whether it was said that it is lost, or not up, since it last was up.
    is_said_down: bool = False
    #: Whether it was said that it compresses its answers unasked.
    is_said_packed: bool = False
    #: When a byte of an answer last came from it.
    heard_at: Instant | None = None
    #: Whether it was said that it answers nothing (`agentsched.kernel.silence`).
    is_said_silent: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    was_looked_at: asyncio.Event = field(default_factory=asyncio.Event)
    #: Who waits for a look that has not begun yet.
    asked: list[asyncio.Future[None]] = field(default_factory=list)


class Fleet:
    """All engines and one watcher for each.

    An engine is lost after `failures_until_lost` failed looks in a row; a connection that cannot be
    made counts at once, and makes the watcher look without waiting for its turn.
    """

    def __init__(
        self,
        *,
        members: Sequence[Member],
        host: LiveHost,
        config: UpstreamConfig,
        breaker: BreakerConfig | None = None,
    ) -> None:
        self._members = {member.id: member for member in members}
        self._host = host
        self._config = config
        self._watchers: dict[EngineId, asyncio.Task[None]] = {}
        #: What engines are about to be replaced by, while that is looked for.
        self._coming: dict[EngineId, Member] = {}
        #: Engines that are about to go, and what is to come in their place when they have gone.
        self._leaving: dict[EngineId, Member | None] = {}
        #: Adapters that were replaced, and still have answers under way.
        self._closing: set[asyncio.Task[None]] = set()
        #: What requests say of the engines, beside the probes.
        self.health = Health(host, breaker or BreakerConfig())
        #: What must go with an adapter that is closed.
        self._closers: list[Callable[[Engine], Awaitable[None]]] = []
        #: Requests beside the scheduler that are under way, by adapter.
        self._plain: Counter[Engine] = Counter()

    @property
    def members(self) -> Mapping[EngineId, Member]:
        """All engines, in the order of the configuration."""
        return self._members

    @property
    def has_tiers(self) -> bool:
        """Whether some engine has a tier below its own cache."""
        return any(member.tier is not None for member in self._members.values())

    def engine(self, engine: EngineId) -> Engine:
        """The adapter of an engine that has reported."""
        adapter = self._members[engine].engine
        assert adapter is not None
        return adapter

    def has(self, engine: Engine) -> bool:
        """Whether an adapter is in use still."""
        member = self._members.get(engine.id)
        return member is not None and member.engine is engine

    def up(self) -> list[Engine]:
        """Engines that answer and take new work, in the order of the configuration."""
        records = self._host.scheduler.engines
        return [
            member.engine
            for member in self._members.values()
            if member.engine is not None and member.id in records and records[member.id].is_up
        ]

    def alive(self, engine: EngineId) -> Engine | None:
        """The adapter of one that answers, whether or not it takes new work."""
        member = self._members.get(engine)
        record = self._host.scheduler.engines.get(engine)
        is_alive = record is not None and record.is_alive
        return member.engine if member is not None and is_alive else None

    def serving(self, model: str) -> int:
        """How many of those that are up have a model."""
        records = self._host.scheduler.engines
        return sum(records[engine.id].serves(model) for engine in self.up())

    def knows(self, model: str) -> bool:
        """Whether an engine has this model, or none is up that could say otherwise."""
        records = self._host.scheduler.engines.values()
        return any(r.serves(model) for r in records) or not any(r.is_up for r in records)

    def look_again(self) -> list[asyncio.Future[None]]:
        """Look at all engines that are up without waiting for their turn.

        Each is done when such a look, which begins after this call, is over.
        """
        members = [member for member in self._members.values() if member.is_up]
        asked = [asyncio.get_running_loop().create_future() for _ in members]
        for member, future in zip(members, asked, strict=True):
            member.asked.append(future)
            member.wake.set()
        return asked

    @contextlib.contextmanager
    def using(self, engine: Engine) -> Iterator[None]:
        """While inside, a request that is no step is under way there: its adapter stays open."""
        self._plain[engine] += 1
        try:
            yield
        finally:
            self._plain[engine] -= 1
            if not self._plain[engine]:
                del self._plain[engine]

    def when_closed(self, closer: Callable[[Engine], Awaitable[None]]) -> None:
        """Call this with each adapter that was closed: replaced, removed, or at the end."""
        self._closers.append(closer)

    def follow(self, config: UpstreamConfig) -> None:
        """Look at engines as this says, from now on."""
        if config != self._config:
            self._config = config
            for member in self._members.values():
                member.wake.set()  # else it would sleep as it was told before

    def start(self) -> None:
        """Begin to watch."""
        for member in self._members.values():
            self._begin(member)

    @property
    def staying(self) -> list[EngineId]:
        """Engines that are not about to go."""
        return [engine for engine in self._members if engine not in self._leaving]

    def is_leaving(self, engine: EngineId) -> bool:
        """Whether it is about to go."""
        return engine in self._leaving

    def add(self, member: Member) -> None:
        """Begin to watch one more engine; one that is about to go comes back when it has gone."""
        if member.id in self._leaving:
            self._leaving[member.id] = member
            return
        assert member.id not in self._members
        # What failed with one of this name that was removed is no failure of this one.
        self.health.forget(member.id)
        self._members[member.id] = member
        record = self._host.scheduler.engines.get(member.id)
        if record is not None and record.is_draining:
            # It was here before, and was drained to go.
            self._host.feed(EngineDrained(engine=member.id, is_draining=False))
        self._begin(member)

    def leave(self, engine: EngineId) -> bool:
        """An engine is to be removed, and to stay away; False: it is about to go already."""
        is_new = engine not in self._leaving
        self._leaving[engine] = None
        # It goes as it is: what it was about to become is not wanted any more.
        self._coming.pop(engine, None)
        return is_new

    async def remove(self, engine: EngineId, *, patience: Nanos) -> None:
        """Give one that leaves nothing new, and forget it when its steps or `patience` are over."""
        member = self._members[engine]
        assert engine in self._leaving
        # Also where it is ejected: the end of that must not bring it back.
        self.health.drained(engine, is_draining=True, is_lasting=False)
        await self._until_idle(engine, member.engine, patience=patience)
        await self._end(member)
        if self._members.get(engine) is member:
            del self._members[engine]
        self.health.forget(engine)
        self._host.feed(EngineLost(engine=engine, reason="removed"))
        log.info("engine %s is removed", engine)
        back = self._leaving.pop(engine)
        if back is not None:
            self.add(back)

    async def replace(self, member: Member, *, patience: Nanos) -> None:
        """The same engine at another address or with another key: running steps end as they are.

        Until the new address says what it is, requests go to the old one. One that is about to go
        comes back as this, when it has gone.
        """
        if member.id in self._leaving:
            self._leaving[member.id] = member
            return
        self._coming[member.id] = member
        try:
            async with asyncio.timeout(in_seconds(self._config.probe_timeout)):
                member.engine = await member.connect()
        except (EngineError, TimeoutError) as error:
            member.last_error = str(error)
        is_latest = self._coming.get(member.id) is member
        if is_latest:
            del self._coming[member.id]
        if not is_latest or member.id not in self._members:
            if member.engine is not None:  # it was changed again, or removed, meanwhile
                await self._close(member.engine)
            return
        old = self._members[member.id]
        take_over = getattr(member.engine, "take_over", None)
        if take_over is not None and old.engine is not None:
            take_over(old.engine)
        watcher = self._watchers.pop(member.id, None)
        if watcher is not None:
            watcher.cancel()
        self._members[member.id] = member
        if member.engine is None:
            self._host.feed(EngineLost(engine=member.id, reason=member.last_error))
        self._begin(member)
        if old.engine is not None:
            await self._close_later(member.id, old.engine, patience=patience)

    async def _until_idle(
        self, engine: EngineId, adapter: Engine | None, *, patience: Nanos
    ) -> None:
        clock = asyncio.get_running_loop()
        until = clock.time() + in_seconds(patience)
        engines = self._host.scheduler.engines
        while True:
            steps = engines[engine].running_steps if engine in engines else 0
            others = self._plain[adapter] if adapter is not None else 0
            if not steps and not others:
                return
            if clock.time() >= until:
                log.warning("engine %s still runs %d steps", engine, steps + others)
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _end(self, member: Member) -> None:
        watcher = self._watchers.pop(member.id, None)
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        if member.engine is not None:
            await self._close(member.engine)

    def _begin(self, member: Member) -> None:
        watcher = asyncio.create_task(self._watch(member), name=f"watch {member.id}")
        self._watchers[member.id] = watcher

    async def looked_at_all(self) -> None:
        """Wait until every engine was looked at once, for the probe timeout at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(in_seconds(self._config.probe_timeout)):
                for member in self._members.values():
                    await member.was_looked_at.wait()

    def give_up_absent(self) -> None:
        """Tell the scheduler of engines that it knows from before and that do not answer."""
        known = self._host.scheduler.engines
        for member in self._members.values():
            if not member.is_up and member.id in known and known[member.id].is_alive:
                self._host.feed(EngineLost(engine=member.id, reason=member.last_error))

    def suspect(self, engine: EngineId, reason: str, *, asked: Engine | None = None) -> None:
        """A request failed by this engine's fault: look at it now, and count it.

        `asked` is the adapter that the request went by, where that is known.
        """
        if asked is not None and not self.has(asked):
            # It was replaced, and closed over its last answers: its successor has failed nothing.
            log.info("a request failed where engine %s was before: %s", engine, reason)
            return
        log.info("engine %s is suspected: %s", engine, reason)
        member = self._members.get(engine)
        if member is not None:  # else it was removed with this request inside
            self.health.failed(engine, reason)
            member.wake.set()

    def heard(self, engine: EngineId) -> None:
        """A byte of an answer came from it."""
        member = self._members.get(engine)
        if member is not None:
            member.heard_at = self._host.now()

    async def aclose(self) -> None:
        """Stop watching and close all connections."""
        watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher.cancel()
        closing = list(self._closing)
        for task in closing:
            task.cancel()
        await asyncio.gather(*watchers, *closing, return_exceptions=True)
        for member in self._members.values():
            if member.engine is not None:
                await self._close(member.engine)

    async def _watch(self, member: Member) -> None:
        while True:
            asked, member.asked = member.asked, []
            try:
                await self._look(member)
            except Exception as error:
                # A watcher that died would leave its engine as it was last seen, for ever.
                log.exception("a defect while looking at engine %s", member.id)
                self._failed(member, error)
            finally:
                for future in asked:
                    future.set_result(None)
            member.was_looked_at.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(member.wake.wait(), in_seconds(self._config.probe_interval))
            member.wake.clear()

    async def _look(self, member: Member) -> None:
        began_at = self._host.now()
        try:
            async with asyncio.timeout(in_seconds(self._config.probe_timeout)):
                engine = await self._adapter(member)
                load = await engine.load()
            if member.is_up:
                capabilities = engine.capabilities
            else:
                # A new or returned engine may be another version with another model. Finding that
                # out takes tiny requests, which wait their turn in an engine that is busy.
                async with asyncio.timeout(in_seconds(self._config.trial_timeout)):
                    capabilities = await engine.probe()
        except (EngineError, TimeoutError) as error:
            self._failed(member, error)
            if member.is_up and isinstance(error, TimeoutError | EngineTimeout):
                self._unanswered(member, since=began_at)
            return
        if member.models and capabilities.models:
            listed = dict.fromkeys((*capabilities.models, *member.models))
            # One without a list is taken to have any model.
            capabilities = replace(capabilities, models=() if "*" in listed else tuple(listed))
        if member.tier is not None:
            # Pinned not in the engine, but below it.
            capabilities = replace(capabilities, pins=True, tier=True)
        if not member.is_up:
            log.info("engine %s is up: %s", member.id, capabilities)
        member.is_up, member.failures, member.last_error = True, 0, ""
        member.is_said_down = False
        self._host.feed(
            EngineReported(
                engine=member.id, capabilities=capabilities, load=load, heard_at=member.heard_at
            )
        )
        self._say_whether_silent(member)
        self.health.probed(member.id)
        is_due = member.looks % _LOOKS_PER_DETECTION == 0
        # What waits its turn in an engine would keep this from looking.
        if is_due and not load.waiting and getattr(engine, "is_unsure", False):
            await self._ask_again(member, engine)

    async def _ask_again(self, member: Member, engine: Engine) -> None:
        """Probe one that is up: it was too busy to answer all of that; the next look tells."""
        try:
            async with asyncio.timeout(in_seconds(self._config.trial_timeout)):
                await engine.probe()
        except (EngineError, TimeoutError) as error:
            log.info("engine %s is asked later what it can do: %s", member.id, error)

    def _unanswered(self, member: Member, *, since: Instant) -> None:
        self._host.feed(
            EngineUnanswered(
                engine=member.id, since=since, reason=member.last_error, heard_at=member.heard_at
            )
        )
        self._say_whether_silent(member)

    def _say_whether_silent(self, member: Member) -> None:
        record = self._host.scheduler.engines[member.id]
        if record.silent_since is None:
            if member.is_said_silent:
                log.info("engine %s is heard again", member.id)
        elif not member.is_said_silent:
            span = in_seconds(between(record.silent_since, self._host.now()))
            text = (
                "engine %s answers nothing for %.1f s with %d steps inside: others get what is new"
            )
            log.warning(text, member.id, span, record.running_steps)
        member.is_said_silent = record.silent_since is not None

    async def _adapter(self, member: Member) -> Engine:
        """The adapter for what answers at a member's address; another one where that changed."""
        old = member.engine
        member.looks += 1
        is_due = not member.is_up or member.looks % _LOOKS_PER_DETECTION == 0
        if old is not None and not (member.is_detected and is_due):
            return old
        new = await member.connect()
        if old is None:
            member.engine = new
            return new
        if type(new) is type(old):
            await new.aclose()
            return old
        log.warning("engine %s is another one now: %s", member.id, type(new).__name__)
        # Its capabilities are to be found out as if it had just come.
        member.engine, member.is_up = new, False
        closing = self._close_later(member.id, old, patience=self._config.idle_timeout)
        task = asyncio.create_task(closing, name=f"close {member.id}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return new

    async def _close_later(self, engine: EngineId, old: Engine, *, patience: Nanos) -> None:
        """Close an adapter when the answers that it brings are over, or have taken too long."""
        try:
            await self._until_idle(engine, old, patience=patience)
        finally:
            await self._close(old)

    async def _close(self, adapter: Engine) -> None:
        await adapter.aclose()
        for closer in self._closers:
            await closer(adapter)

    def _failed(self, member: Member, error: Exception) -> None:
        member.failures += 1
        member.last_error = str(error) or type(error).__name__
        is_gone = isinstance(error, EngineUnreachable)
        if not is_gone and member.failures < self._config.failures_until_lost:
            return
        member.is_up = False
        if self._members.get(member.id) is not member:
            return  # it was replaced meanwhile
        record = self._host.scheduler.engines.get(member.id)
        # Not what this member was, but what is believed: work may still go there for what another
        # one said, the address before a change or an earlier start.
        is_known_up = record is not None and record.is_alive
        if is_known_up:
            log.warning("engine %s is lost: %s", member.id, member.last_error)
            self._host.feed(EngineLost(engine=member.id, reason=member.last_error))
        elif not member.is_said_down:
            # Nobody loses what never came, and a wrong address or key is to be heard of, too.
            log.warning("engine %s is not up: %s", member.id, member.last_error)
        member.is_said_down = True
