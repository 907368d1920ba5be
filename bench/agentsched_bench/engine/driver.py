"""The engine model in real time: one task that lets steps happen when the clock says so.

Model time is the loop's clock times `speed`. A step that ends late does not delay the next one's
start in model time, so short steps keep their pace although timers are coarse; only when the
process has fallen far behind is the lost time written off.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Final

from agentsched.model.errors import AgentschedError
from agentsched.model.time import SECOND, Instant, Nanos
from agentsched_bench.engine.metrics import Measures
from agentsched_bench.engine.model import EngineModel
from agentsched_bench.engine.requests import EngineConfig, Gauges, Generation, Refusal, StepOutcome

#: How far model time may lag behind the clock, in real seconds, before the lag is written off.
_LAG_MAX_S: Final = 0.1


class GenerationRefused(AgentschedError):
    """The engine did not take a generation."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


class EngineDied(AgentschedError):
    """The engine crashed while the generation was in it."""


class Progress:
    """How far one generation has come; one waiter at a time."""

    __slots__ = ("_changed", "arrived_at", "cached_tokens", "dead", "done", "emitted", "last_at")

    def __init__(self, *, now: float) -> None:
        self.arrived_at = now
        self.last_at = now
        self.emitted = 0
        self.cached_tokens = 0
        self.done = False
        self.dead = False
        self._changed = asyncio.Event()

    async def beyond(self, emitted: int) -> int:
        """Wait until more than `emitted` tokens are out; how many there are now.

        Raises:
            EngineDied: the engine crashed first.
        """
        while self.emitted <= emitted:
            if self.dead:
                raise EngineDied("the engine is dead")
            self._changed.clear()
            await self._changed.wait()
        return self.emitted

    def tell(self) -> None:
        """Wake the waiter."""
        self._changed.set()


class Driver:
    """Owns an `EngineModel` and the task that steps it. Use as an async context manager."""

    def __init__(self, config: EngineConfig, *, speed: float = 1.0) -> None:
        assert speed > 0
        self.config = config
        self.speed = speed
        self.measures = Measures()
        self.model = EngineModel(config)
        self._progress: dict[str, Progress] = {}
        self._wake = asyncio.Event()
        #: Set when a generation comes or goes.
        self._changed = asyncio.Event()
        self._runs = asyncio.Event()
        self._runs.set()
        #: Grows when the engine crashes: a step in flight then belongs to nobody.
        self._life = 0
        self._past_busy_ns = 0
        self._past_preemptions = 0
        #: When the last step ended, in model time.
        self._ended_at = Instant(0)
        #: Whether the last thing that happened was a step, and not a wait for work.
        self._was_busy = False
        self._origin = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Driver:
        self._origin = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._run(), name="engine steps")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def submit(self, generation: Generation) -> Progress:
        """Queue a generation.

        Raises:
            GenerationRefused: it is too long, the queue is full, or its id is in use.
        """
        refusal = self.model.add(generation, now=self.now())
        if refusal is not None:
            self.measures.rejected += refusal is Refusal.QUEUE_FULL
            raise GenerationRefused(refusal)
        progress = Progress(now=asyncio.get_running_loop().time())
        self._progress[generation.id] = progress
        self._wake.set()
        self._changed.set()
        return progress

    def abort(self, key: str) -> bool:
        """Drop a generation and free its blocks now; False when it was done already."""
        self._progress.pop(key, None)
        aborted = self.model.abort(key)
        if aborted:
            self.measures.finished("abort")
            self._wake.set()
            self._changed.set()
        return aborted

    async def has(self, count: int) -> None:
        """Wait until exactly `count` generations wait or run."""
        while len(self.model) != count:
            self._changed.clear()
            await self._changed.wait()

    async def call_overhead(self) -> None:
        """What a call costs outside the engine."""
        seconds = self.config.cost.per_call_ns / SECOND / self.speed
        if seconds:
            await asyncio.sleep(seconds)

    def now(self) -> Instant:
        """The present instant in model time."""
        elapsed = asyncio.get_running_loop().time() - self._origin
        return Instant(int(elapsed * self.speed * SECOND))

    def gauges(self) -> Gauges:
        """The engine in numbers."""
        return self.model.gauges(now=self.now())

    def gauges_of_all_lives(self) -> Gauges:
        """As `gauges`; what past lives computed and preempted counts as well."""
        own = self.gauges()
        return replace(
            own,
            busy_ns=self._past_busy_ns + own.busy_ns,
            preemptions=self._past_preemptions + own.preemptions,
        )

    def hang(self) -> None:
        """Stop stepping, and keep everything as it is."""
        self._runs.clear()

    def resume(self) -> None:
        """Step again."""
        self._runs.set()
        self._wake.set()

    def crash(self) -> None:
        """Lose everything: what was running, what was waiting, what was cached."""
        self._life += 1
        past = self.gauges_of_all_lives()
        self._past_busy_ns, self._past_preemptions = past.busy_ns, past.preemptions
        self.model = EngineModel(self.config)
        progress = list(self._progress.values())
        self._progress.clear()
        for one in progress:
            one.dead = True
            one.tell()
        self._wake.set()
        self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._runs.wait()
            life = self._life
            started_at = self._start()
            span = self.model.begin(now=started_at)
            if span is None:
                await self._idle()
                continue
            self._ended_at = Instant(started_at + span)
            await self._until(self._ended_at)
            await self._runs.wait()
            if life == self._life:
                self._publish(self.model.finish())

    def _start(self) -> Instant:
        """When the next step starts: where the last one ended, unless that is long past."""
        now = self.now()
        lag = Nanos(now - self._ended_at)
        if lag > _LAG_MAX_S * self.speed * SECOND or not self._was_busy:
            return now
        return self._ended_at

    async def _idle(self) -> None:
        self._was_busy = False
        self._wake.clear()
        ready = self.model.next_ready(now=self.now())
        if ready is None:
            await self._wake.wait()
            return
        seconds = max(0.0, (ready - self.now()) / SECOND / self.speed)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _until(self, end: Instant) -> None:
        self._was_busy = True
        await asyncio.sleep(max(0.0, (end - self.now()) / SECOND / self.speed))

    def _publish(self, outcome: StepOutcome) -> None:
        now = asyncio.get_running_loop().time()
        ended = {done.id: done for done in outcome.finished}
        if ended:
            self._changed.set()
        for key in outcome.emitted:
            progress = self._progress.get(key)
            if progress is None:
                continue
            first = progress.emitted == 0
            self.measures.token(now - (progress.arrived_at if first else progress.last_at), first)
            progress.last_at = now
            progress.emitted += 1
            done = ended.get(key)
            if done is not None:
                progress.cached_tokens = done.cached_tokens
                progress.done = True
                del self._progress[key]
                self.measures.ended(now - progress.arrived_at, done)
            elif first:
                progress.cached_tokens = self.model.cached_tokens(key) or 0
            progress.tell()
