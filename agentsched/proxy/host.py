"""LiveHost: feeds the scheduler from asyncio, performs its commands, keeps its one timer.

Everything that touches the scheduler runs on the event loop's thread, without an await between
reading and writing. What takes time (hints) runs in tasks that this host owns and that end in
events; what a route waits for is a `Ticket`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, assert_never

from agentsched.clock import Clock
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    Cancel,
    Command,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    HintAnswered,
    HintOutcome,
    Instant,
    Pin,
    Prefetch,
    Reject,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    StepState,
    TimerFired,
    Unpin,
    between,
    in_seconds,
)
from agentsched.ports import EventSink, HintSink

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """An attempt was stopped by us. `is_retryable`: its engine was lost, another may be tried."""

    def __init__(self, reason: str, *, is_retryable: bool) -> None:
        super().__init__(reason)
        self.is_retryable = is_retryable


class Ticket:
    """A step's claim: what the scheduler said about it, and the attempt that carries it out."""

    def __init__(self, step: StepId, loop: asyncio.AbstractEventLoop) -> None:
        self.step = step
        self._loop = loop
        self._verdict: asyncio.Future[Dispatch | Reject] = loop.create_future()
        self._worker: asyncio.Task[Any] | None = None
        self._interruption: Interrupted | None = None

    async def verdict(self) -> Dispatch | Reject:
        """Wait for the scheduler's word. Bounded by the scheduler's own wait bound."""
        verdict = await self._verdict
        if isinstance(verdict, Dispatch):
            # The next word, should this attempt fail in a way that allows another.
            self._verdict = self._loop.create_future()
            self._interruption = None
        return verdict

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Run the block in a way that the host can stop.

        Raises:
            Interrupted: it was stopped. A cancellation from elsewhere passes as it is.
        """
        if self._interruption is not None:
            raise self._interruption
        worker = self._worker = asyncio.current_task()
        assert worker is not None
        try:
            yield
        except asyncio.CancelledError:
            self._raise_interruption(worker)
            raise
        finally:
            self._worker = None

    def _raise_interruption(self, worker: asyncio.Task[Any]) -> None:
        # As in asyncio.timeout: only a cancellation that was ours alone is ours to take back.
        if self._interruption is not None and worker.uncancel() == 0:
            raise self._interruption from None

    def tell(self, verdict: Dispatch | Reject) -> None:
        """Deliver the scheduler's word."""
        if not self._verdict.done():
            self._verdict.set_result(verdict)

    def interrupt(self, interruption: Interrupted) -> None:
        """Stop the attempt that is under way, or the next one before it begins."""
        if self._interruption is None:
            self._interruption = interruption
            if self._worker is not None:
                self._worker.cancel()


class LiveHost:
    """The scheduler's host on a running event loop.

    `feed` may be called from the loop's thread only. Sinks must not block; one that raises is
    logged and kept, for an observer must not stop what it observes.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        clock: Clock,
        hints: Mapping[EngineId, HintSink],
        sinks: Iterable[EventSink] = (),
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.scheduler = scheduler
        self._clock = clock
        self._hints = hints
        self._sinks = list(sinks)
        #: Tickets of all live steps.
        self._tickets: dict[StepId, Ticket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: Instant | None = None

    @property
    def live_steps(self) -> int:
        """Steps that were submitted and have not ended."""
        return len(self._tickets)

    def now(self) -> Instant:
        """The present instant."""
        return self._clock.now()

    def submit(self, arrived: StepArrived) -> Ticket:
        """Enter a step. Its owner must bring it to an end: finished, failed or cancelled."""
        ticket = Ticket(arrived.step, self.loop)
        self._tickets[arrived.step] = ticket
        self.feed(arrived)
        return ticket

    def feed(self, event: Event, *, now: Instant | None = None) -> None:
        """One turn of the scheduler, and the start of whatever it asks for."""
        now = self._clock.now() if now is None else now
        commands = self.scheduler.handle(event, now=now)
        if isinstance(event, StepFinished | StepCancelled) or (
            isinstance(event, StepFailed) and not event.is_retryable
        ):
            self._tickets.pop(event.step, None)
        entry = self.scheduler.latest
        assert entry is not None
        self._show(entry)
        for command in commands:
            self._perform(command)
        if isinstance(event, EngineLost):
            self._interrupt_unstarted(event.engine)
        self._arm()

    def watch(self, sink: EventSink) -> None:
        """Add a sink, for as long as a client watches."""
        self._sinks.append(sink)

    def unwatch(self, sink: EventSink) -> None:
        """Take a sink out again."""
        self._sinks.remove(sink)

    async def aclose(self) -> None:
        """Stop the timer and the hints under way. Steps are their owners' to end."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _show(self, entry: JournalEntry) -> None:
        for sink in self._sinks:
            try:
                sink.write(entry)
            except Exception:
                log.exception("a journal sink failed: %s", type(sink).__name__)

    def _perform(self, command: Command) -> None:
        match command:
            case Dispatch():
                self._tickets[command.step].tell(command)
            case Reject():
                self._tickets.pop(command.step).tell(command)
            case Cancel():
                if command.step in self._tickets:
                    stop = Interrupted(command.reason.value, is_retryable=False)
                    self._tickets[command.step].interrupt(stop)
            case Pin() | Unpin() | Prefetch():
                task = self.loop.create_task(self._hint(command), name=f"hint {command.pin}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _:
                assert_never(command)

    async def _hint(self, hint: Pin | Unpin | Prefetch) -> None:
        sink = self._hints.get(hint.engine)
        outcome = HintOutcome.UNSUPPORTED
        if sink is not None:
            try:
                outcome = await sink.hint(hint)
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("a hint failed: %s", hint)
                outcome = HintOutcome.FAILED
        if not isinstance(hint, Unpin):
            self.feed(HintAnswered(pin=hint.pin, outcome=outcome))

    def _interrupt_unstarted(self, engine: EngineId) -> None:
        """Steps that the lost engine has not begun to answer can still go elsewhere."""
        for step in list(self.scheduler.engines[engine].running.values()):
            ticket = self._tickets.get(step.step)
            if ticket is not None and step.state is StepState.DISPATCHED:
                ticket.interrupt(Interrupted(f"{engine} was lost", is_retryable=True))

    def _arm(self) -> None:
        deadline = self.scheduler.next_deadline()
        if deadline == self._armed_for:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_for = deadline
        if deadline is not None:
            delay = max(0.0, in_seconds(between(self._clock.now(), deadline)))
            self._timer = self.loop.call_later(delay, self._fire, deadline)

    def _fire(self, armed_for: Instant) -> None:
        self._timer = None
        self._armed_for = None
        # A timer may fire a hair early; the scheduler must not see an instant before its own.
        self.feed(TimerFired(), now=max(armed_for, self._clock.now()))
