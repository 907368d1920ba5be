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
from enum import StrEnum
from typing import Any, assert_never

from agentsched.clock import Clock
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    Cancel,
    CancelReason,
    Command,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    HintAnswered,
    HintOutcome,
    Instant,
    Pin,
    PinId,
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


class Stop(StrEnum):
    """Why we stop what a step is doing."""

    ENGINE_LOST = "engine_lost"  # before its answer began: another engine may be tried
    CANCELLED = "cancelled"  # the scheduler asked for it
    YIELDED = "yielded"  # background work makes way before its answer began; it waits again
    PATIENCE = "patience"  # its client would not wait any longer
    DRAINING = "draining"  # this proxy ends, and the step took longer than it may
    REVOKED = "revoked"  # the API key that it was asked for with was taken away


class Interrupted(Exception):
    """A step was stopped by us."""

    def __init__(self, stop: Stop, reason: str) -> None:
        super().__init__(reason)
        self.stop = stop


class Ticket:
    """A step's claim: what the scheduler said about it, and the attempt that carries it out."""

    def __init__(self, step: StepId, loop: asyncio.AbstractEventLoop, *, key: str = "") -> None:
        self.step = step
        #: The id of the API key that it was asked for with, where one was.
        self.key = key
        self._loop = loop
        self._verdict: asyncio.Future[Dispatch | Reject] = loop.create_future()
        self._worker: asyncio.Task[Any] | None = None
        #: Whether an answer has begun to reach the client, so that no other can take its place.
        self.is_firm = False
        #: A stop that was asked for and has not been raised yet.
        self._interruption: Interrupted | None = None

    @property
    def is_held(self) -> bool:
        """Whether the scheduler's word is still to come."""
        return not self._verdict.done()

    async def verdict(self) -> Dispatch | Reject:
        """Wait for the scheduler's word. Bounded by the scheduler's own wait bound.

        Raises:
            Interrupted: the wait was stopped.
        """
        verdict = await self._verdict
        if isinstance(verdict, Dispatch):
            # The next word, should this attempt fail in a way that allows another.
            self._verdict = self._loop.create_future()
        return verdict

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Run the block in a way that the host can stop.

        Raises:
            Interrupted: it was stopped. A cancellation from elsewhere passes as it is.
        """
        early = self._take()
        if early is not None:
            raise early  # it came between the scheduler's word and this moment
        worker = asyncio.current_task()
        assert worker is not None
        before = worker.cancelling()
        self._worker = worker
        try:
            yield
        except asyncio.CancelledError:
            # As in asyncio.timeout: only a cancellation that was ours alone is ours to take back.
            ours = self._take()
            if ours is not None and worker.uncancel() <= before:
                raise ours from None
            raise
        except BaseException:
            # Something else went wrong while it was being stopped: that comes first.
            if self._take() is not None:
                worker.uncancel()
            raise
        finally:
            self._worker = None

    def _take(self) -> Interrupted | None:
        interruption, self._interruption = self._interruption, None
        return interruption

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

    def stop(self, interruption: Interrupted) -> None:
        """As `interrupt`, and a wait for the scheduler's word ends as well."""
        if self._worker is None and not self._verdict.done():
            self._verdict.set_exception(interruption)
        else:
            self.interrupt(interruption)


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
        self.hints = hints
        self._sinks = list(sinks)
        #: How often each question to a policy had failed when that was last looked at, and which of
        #: them the log has.
        self._failures = dict(scheduler.policy_errors)
        self._told_failures: set[str] = set()
        #: Tickets of all live steps.
        self._tickets: dict[StepId, Ticket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Those of them that carry out a warm-up, until it is done or stopped.
        self._warming: dict[PinId, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: Instant | None = None
        self._is_closed = False

    @property
    def live_steps(self) -> int:
        """Steps that were submitted and have not ended."""
        return len(self._tickets)

    def is_live(self, step: StepId) -> bool:
        """Whether a step was submitted and has not ended."""
        return step in self._tickets

    def now(self) -> Instant:
        """The present instant."""
        return self._clock.now()

    def submit(self, arrived: StepArrived, *, key: str = "") -> Ticket:
        """Enter a step, asked for with the API key of this id. Its owner must bring it to an end:
        finished, failed or cancelled.
        """
        ticket = Ticket(arrived.step, self.loop, key=key)
        self._tickets[arrived.step] = ticket
        try:
            self.feed(arrived)
        except BaseException:
            self._tickets.pop(arrived.step, None)
            raise
        return ticket

    def stop_all(self, reason: str) -> None:
        """Stop every live step; each gets an error in its client's shape."""
        for ticket in list(self._tickets.values()):
            ticket.stop(Interrupted(Stop.DRAINING, reason))

    def stop_of(self, keys: frozenset[str]) -> int:
        """Stop what was asked for with these API keys, which were taken away; how many it was."""
        tickets = [ticket for ticket in self._tickets.values() if ticket.key in keys]
        for ticket in tickets:
            ticket.stop(Interrupted(Stop.REVOKED, "its API key was revoked"))
        return len(tickets)

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
        if self.scheduler.policy_errors:
            self._tell_failures()
        self._arm()

    def watch(self, sink: EventSink) -> None:
        """Add a sink, for as long as a client watches."""
        self._sinks.append(sink)

    def unwatch(self, sink: EventSink) -> None:
        """Take a sink out again."""
        self._sinks.remove(sink)

    async def aclose(self) -> None:
        """Stop the timer and the hints under way. Steps are their owners' to end."""
        self._is_closed = True
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

    def _tell_failures(self) -> None:
        """What policies fail at is counted; the log has the first time of each, and why."""
        new = []
        for question, count in self.scheduler.policy_errors.items():
            if count == self._failures.get(question):
                continue
            self._failures[question] = count
            policy = self.scheduler.policies.names.get(question.partition(".")[0], "built in")
            new.append(f"{question} ({policy})")
        new = [failure for failure in new if failure not in self._told_failures]
        if new:
            self._told_failures.update(new)
            latest = self.scheduler.latest_policy_error
            log.error("a policy failed, plain rules stand in: %s", ", ".join(new), exc_info=latest)

    def _perform(self, command: Command) -> None:
        match command:
            case Dispatch():
                self._tickets[command.step].tell(command)
            case Reject():
                self._tickets.pop(command.step).tell(command)
            case Cancel(reason=CancelReason.YIELDED):
                ticket = self._tickets.get(command.step)
                if ticket is not None and not ticket.is_firm:
                    ticket.interrupt(Interrupted(Stop.YIELDED, "other work came"))
            case Cancel():
                if command.step in self._tickets:
                    stop = Interrupted(Stop.CANCELLED, command.reason.value)
                    self._tickets[command.step].stop(stop)
            case Unpin() if command.pin in self._warming:
                # Cancelled, it closes its request, which stops the work in the engine.
                self._warming.pop(command.pin).cancel()
            case Pin() | Unpin() | Prefetch():
                if self._is_closed:
                    return
                task = self.loop.create_task(self._hint(command), name=f"hint {command.pin}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                if isinstance(command, Prefetch):
                    self._warming[command.pin] = task
            case _:
                assert_never(command)

    async def _hint(self, hint: Pin | Unpin | Prefetch) -> None:
        sink = self.hints.get(hint.engine)
        outcome = HintOutcome.UNSUPPORTED
        if sink is not None:
            try:
                outcome = await sink.hint(hint)
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("a hint failed: %s", hint)
                outcome = HintOutcome.FAILED
        self._warming.pop(hint.pin, None)
        if not isinstance(hint, Unpin):
            self.feed(HintAnswered(pin=hint.pin, outcome=outcome))

    def _interrupt_unstarted(self, engine: EngineId) -> None:
        """Steps that the lost engine has not begun to answer can still go elsewhere."""
        for step in list(self.scheduler.engines[engine].running.values()):
            ticket = self._tickets.get(step.step)
            is_unstarted = step.state is StepState.DISPATCHED
            if is_unstarted and ticket is not None and not ticket.is_firm:
                ticket.interrupt(Interrupted(Stop.ENGINE_LOST, f"{engine} was lost"))

    def _arm(self) -> None:
        deadline = self.scheduler.next_deadline()
        if deadline == self._armed_for or self._is_closed:
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
