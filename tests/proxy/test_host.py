"""LiveHost: one timer, hints that end in events, tickets that can be stopped, failing sinks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from shorthand import Still, arrived, finished, prefix, reported, tool_call, unpin

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry
from agentsched.model import (
    SECOND,
    Cancel,
    CancelReason,
    Dispatch,
    EngineId,
    EngineLost,
    HintAnswered,
    HintOutcome,
    Instant,
    Limits,
    Nanos,
    Pin,
    Reject,
    RejectReason,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    TimerFired,
)
from agentsched.policy import Choice
from agentsched.proxy.host import Interrupted, LiveHost, Stop, Ticket
from agentsched_adapters.fake import FakeEngine
from agentsched_policies.order.program_fcfs import ProgramFcfs

ENGINE = EngineId("e0")
UP = reported(ENGINE, pins=True)
LIMITS = Limits(wait_ns_max=Nanos(10 * SECOND), engine_wait_ns_max=Nanos(2 * SECOND))


class Entries:
    def __init__(self) -> None:
        self.seen: list[JournalEntry] = []

    def write(self, entry: JournalEntry) -> None:
        self.seen.append(entry)


class Timers:
    """Stands in for the loop's timers: what was asked for, to be fired by hand."""

    def __init__(self, host: LiveHost, monkeypatch: pytest.MonkeyPatch) -> None:
        self.armed: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []
        self.cancelled = 0
        self._host = host
        timers = self

        class Loop:
            def __getattr__(self, name: str) -> Any:
                return getattr(asyncio.get_running_loop(), name)

            def call_later(self, delay: float, callback: Any, *args: Any) -> Any:
                timers.armed.append((delay, callback, args))
                return Handle()

        class Handle:
            def cancel(self) -> None:
                timers.cancelled += 1

        monkeypatch.setattr(host, "loop", Loop())

    def fire(self) -> None:
        _, callback, args = self.armed.pop()
        callback(*args)


def asked(step: str, program: str = "p") -> StepArrived:
    return arrived(step, program, prefixes=(prefix("x", 10),))


def paused(step: str) -> StepFinished:
    """A step that ended in a tool call: its program will be back."""
    return finished(step, tool_call("c1"), prompt=10)


async def sent(host: LiveHost, step: str = "s1") -> Ticket:
    """The ticket of a step that is sent to the engine."""
    host.feed(UP)
    ticket = host.submit(asked(step))
    assert isinstance(await ticket.verdict(), Dispatch)
    return ticket


async def begun(ticket: Ticket) -> asyncio.Task[None]:
    """An attempt under way that never ends by itself."""

    async def work() -> None:
        with ticket.attempt():
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    return task


def make(
    clock: Still,
    *,
    hints: Any = None,
    sinks: Any = (),
    limits: Limits = LIMITS,
    choices: dict[str, Choice] | None = None,
) -> LiveHost:
    config = SchedulerConfig(profile="fcfs", limits=limits, choices=choices or {})
    scheduler = build_scheduler(config)
    return LiveHost(scheduler=scheduler, clock=clock, hints=hints or {}, sinks=sinks)


@pytest.fixture
def clock() -> Still:
    return Still(Instant(1_000))


@pytest.fixture
def entries() -> Entries:
    return Entries()


@pytest.fixture
async def host(clock: Still, entries: Entries) -> AsyncIterator[LiveHost]:
    made = make(clock, sinks=[entries])
    yield made
    await made.aclose()
    made.scheduler.check()


class TestTimer:
    async def test_is_not_armed_for_nothing(
        self, host: LiveHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timers = Timers(host, monkeypatch)
        host.feed(UP)
        assert timers.armed == []

    async def test_rejects_what_waits_for_an_engine(
        self, host: LiveHost, clock: Still, entries: Entries, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timers = Timers(host, monkeypatch)
        ticket = host.submit(asked("s1"))
        [(delay, _, _)] = timers.armed
        assert delay == 2.0
        clock.move(2.0)
        timers.fire()
        verdict = await ticket.verdict()
        assert isinstance(verdict, Reject)
        assert verdict.reason is RejectReason.NO_ENGINE
        assert host.live_steps == 0
        assert isinstance(entries.seen[-1].event, TimerFired)

    async def test_never_shows_an_instant_before_its_own(
        self, host: LiveHost, clock: Still, entries: Entries, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timers = Timers(host, monkeypatch)
        ticket = host.submit(asked("s1"))
        armed_for = clock.now() + 2 * SECOND
        # The loop's clock is coarser than ours: it may be a hair early.
        clock.move(1.999)
        timers.fire()
        assert entries.seen[-1].now == armed_for
        assert isinstance(await ticket.verdict(), Reject)

    async def test_is_armed_anew_for_the_next(
        self, host: LiveHost, clock: Still, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timers = Timers(host, monkeypatch)
        host.submit(asked("s1"))
        clock.move(0.5)
        late = host.submit(asked("s2", "q"))
        # The first deadline stands: no timer was armed for the second yet.
        assert [delay for delay, _, _ in timers.armed] == [2.0]
        clock.move(1.5)
        timers.fire()
        [(delay, _, _)] = timers.armed
        assert delay == 0.5
        clock.move(0.5)
        timers.fire()
        assert isinstance(await late.verdict(), Reject)
        assert timers.armed == []

    async def test_is_taken_back(self, host: LiveHost, monkeypatch: pytest.MonkeyPatch) -> None:
        timers = Timers(host, monkeypatch)
        host.submit(asked("s1"))
        host.feed(StepCancelled(step=StepId("s1"), reason="gone"))
        assert timers.cancelled == 1
        assert len(timers.armed) == 1

    async def test_fires_by_itself(self) -> None:
        from agentsched.clock import MonotonicClock

        limits = Limits(engine_wait_ns_max=Nanos(SECOND // 50))
        real = make(MonotonicClock(), limits=limits)  # type: ignore[arg-type]
        ticket = real.submit(asked("s1"))
        async with asyncio.timeout(60):
            assert isinstance(await ticket.verdict(), Reject)
        await real.aclose()

    async def test_is_armed_no_more_after_the_end(
        self, clock: Still, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = make(clock)
        timers = Timers(made, monkeypatch)
        await made.aclose()
        made.submit(asked("s1"))
        assert timers.armed == []


class TestTickets:
    async def test_of_a_step_that_went_well(self, host: LiveHost) -> None:
        host.feed(UP)
        ticket = host.submit(asked("s1"))
        verdict = await ticket.verdict()
        assert isinstance(verdict, Dispatch)
        assert verdict.engine == ENGINE
        with ticket.attempt():
            host.feed(StepStarted(step=StepId("s1")))
        assert host.live_steps == 1
        host.feed(finished("s1"))
        assert host.live_steps == 0

    async def test_a_lost_engine_stops_an_attempt_and_the_next_is_told(
        self, host: LiveHost
    ) -> None:
        ticket = await sent(host)
        asyncio.get_running_loop().call_soon(host.feed, EngineLost(engine=ENGINE, reason="refused"))
        with pytest.raises(Interrupted) as stopped, ticket.attempt():
            await asyncio.Event().wait()
        assert stopped.value.stop is Stop.ENGINE_LOST
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        host.feed(reported("e1"))
        host.feed(StepFailed(step=StepId("s1"), reason="lost", is_retryable=True))
        again = await ticket.verdict()
        assert isinstance(again, Dispatch)
        assert again.engine == "e1"
        with ticket.attempt():
            await asyncio.sleep(0)
        host.feed(finished("s1"))

    async def test_an_engine_lost_before_the_attempt_began(self, host: LiveHost) -> None:
        host.feed(UP)
        ticket = host.submit(asked("s1"))
        # The word is out, but whoever waits for it has not run yet.
        host.feed(EngineLost(engine=ENGINE, reason="refused"))
        assert isinstance(await ticket.verdict(), Dispatch)
        with pytest.raises(Interrupted), ticket.attempt():
            pytest.fail("the attempt began")
        host.feed(StepCancelled(step=StepId("s1"), reason="test"))

    async def test_background_work_makes_way_and_waits_again(self, host: LiveHost) -> None:
        ticket = await sent(host)
        yielded = Cancel(step=StepId("s1"), reason=CancelReason.YIELDED)
        asyncio.get_running_loop().call_soon(host._perform, yielded)
        with pytest.raises(Interrupted) as stopped, ticket.attempt():
            await asyncio.Event().wait()
        assert stopped.value.stop is Stop.YIELDED
        host.feed(StepFailed(step=StepId("s1"), reason="made way", is_retryable=True))
        assert isinstance(await ticket.verdict(), Dispatch)
        # An answer that has begun to reach its client is not taken back.
        ticket.is_firm = True
        with ticket.attempt():
            host._perform(yielded)
            await asyncio.sleep(0)
        host.feed(finished("s1"))

    async def test_a_step_that_answers_is_left_alone(self, host: LiveHost) -> None:
        ticket = await sent(host)
        with ticket.attempt():
            host.feed(StepStarted(step=StepId("s1")))
            host.feed(EngineLost(engine=ENGINE, reason="probe failed"))
            await asyncio.sleep(0)
        host.feed(finished("s1"))

    async def test_one_whose_client_has_bytes_is_left_alone(self, host: LiveHost) -> None:
        ticket = await sent(host)
        ticket.is_firm = True  # a role, or the word that an answer will come, and no token yet
        with ticket.attempt():
            host.feed(EngineLost(engine=ENGINE, reason="probe failed"))
            await asyncio.sleep(0)
        host.feed(finished("s1"))

    async def test_a_clients_hang_up_passes_as_it_is(self, host: LiveHost) -> None:
        task = await begun(await sent(host))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        host.feed(StepCancelled(step=StepId("s1"), reason="gone"))

    async def test_a_hang_up_and_a_stop_at_once_are_a_hang_up(self, host: LiveHost) -> None:
        ticket = await sent(host)
        task = await begun(ticket)
        task.cancel()
        ticket.interrupt(Interrupted(Stop.ENGINE_LOST, "lost"))
        with pytest.raises(asyncio.CancelledError):
            await task
        host.feed(StepCancelled(step=StepId("s1"), reason="gone"))

    async def test_a_failure_while_being_stopped_is_the_failure(self, host: LiveHost) -> None:
        ticket = Ticket(StepId("s"), host.loop)

        async def worse() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise KeyError("worse") from None

        async def work() -> int:
            with pytest.raises(KeyError), ticket.attempt():
                await worse()
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        ticket.interrupt(Interrupted(Stop.ENGINE_LOST, "lost"))
        assert await task == 0

    async def test_all_can_be_stopped(self, host: LiveHost) -> None:
        held = host.submit(asked("held"))

        async def wait() -> None:
            await held.verdict()

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        host.stop_all("the end")
        with pytest.raises(Interrupted, match="the end"):
            await waiting
        host.feed(StepCancelled(step=StepId("held"), reason="the end"))

        running = await sent(host, "running")
        asyncio.get_running_loop().call_soon(host.stop_all, "the end")
        with pytest.raises(Interrupted) as stopped, running.attempt():
            await asyncio.Event().wait()
        assert stopped.value.stop is Stop.DRAINING
        host.feed(StepCancelled(step=StepId("running"), reason="the end"))

    async def test_the_scheduler_can_cancel(self, host: LiveHost) -> None:
        ticket = await sent(host)
        cancel = Cancel(step=StepId("s1"), reason=CancelReason.PROGRAM_CLOSED)
        asyncio.get_running_loop().call_soon(host._perform, cancel)
        with pytest.raises(Interrupted, match="program_closed") as stopped, ticket.attempt():
            await asyncio.Event().wait()
        assert stopped.value.stop is Stop.CANCELLED
        host.feed(StepCancelled(step=StepId("s1"), reason="yielded"))
        host._perform(cancel)  # late: nobody is there any more


class TestSinks:
    async def test_one_that_fails_stops_nobody(
        self, clock: Still, entries: Entries, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken:
            def write(self, entry: JournalEntry) -> None:
                raise OSError("disk full")

        made = make(clock, sinks=[Broken(), entries])
        made.feed(UP)
        made.feed(TimerFired())
        assert len(entries.seen) == 2
        assert "Broken" in caplog.text
        await made.aclose()

    async def test_come_and_go(self, host: LiveHost, entries: Entries) -> None:
        late = Entries()
        host.watch(late)
        host.feed(TimerFired())
        host.unwatch(late)
        host.feed(TimerFired())
        assert (len(entries.seen), len(late.seen)) == (2, 1)


class TestHints:
    async def pinned(self, clock: Still, entries: Entries, **hints: Any) -> LiveHost:
        made = make(clock, hints=hints, sinks=[entries], choices=_fixed_pins())
        made.feed(UP)
        made.submit(asked("s1"))
        made.feed(paused("s1"))
        await asyncio.gather(*made._tasks)
        return made

    @staticmethod
    def answers(entries: Entries) -> list[HintOutcome]:
        return [e.event.outcome for e in entries.seen if isinstance(e.event, HintAnswered)]

    async def test_are_performed_and_answered(self, clock: Still, entries: Entries) -> None:
        engine = FakeEngine(ENGINE, pins=True)
        made = await self.pinned(clock, entries, e0=engine)
        assert [c for e in entries.seen for c in e.commands if isinstance(c, Pin)]
        assert len(self.answers(entries)) == 1
        await made.aclose()
        await engine.aclose()

    async def test_one_that_fails_is_an_answer(
        self, clock: Still, entries: Entries, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken:
            async def hint(self, hint: object) -> HintOutcome:
                raise OSError("no such bus")

        made = await self.pinned(clock, entries, e0=Broken())
        assert self.answers(entries) == [HintOutcome.FAILED]
        assert "no such bus" in caplog.text
        await made.aclose()

    async def test_without_a_sink_they_are_unsupported(
        self, clock: Still, entries: Entries
    ) -> None:
        made = await self.pinned(clock, entries)
        assert self.answers(entries) == [HintOutcome.UNSUPPORTED]
        await made.aclose()

    async def test_those_under_way_end_with_the_host(self, clock: Still, entries: Entries) -> None:
        asked_for = asyncio.Event()

        class Slow:
            async def hint(self, hint: object) -> HintOutcome:
                asked_for.set()
                await asyncio.Event().wait()
                return HintOutcome.ACCEPTED

        made = make(clock, hints={ENGINE: Slow()}, sinks=[entries], choices=_fixed_pins())
        made.feed(UP)
        made.submit(asked("s1"))
        made.feed(paused("s1"))
        async with asyncio.timeout(60):
            await asked_for.wait()
        await made.aclose()
        assert self.answers(entries) == []
        made._perform(unpin(engine=ENGINE))
        assert not made._tasks


def _fixed_pins() -> dict[str, Choice]:
    return {"pin": Choice(name="fixed", params={})}


async def test_a_defect_leaves_no_ticket(host: LiveHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(event: object, *, now: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(host.scheduler, "handle", broken)
        with pytest.raises(ZeroDivisionError):
            host.submit(asked("s1"))
    assert host.live_steps == 0


async def test_the_log_has_the_first_failure_of_a_policy_and_why(
    host: LiveHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody to divide by")

    monkeypatch.setattr(ProgramFcfs, "rank", broken)
    for number in range(3):
        await sent(host, f"s{number}")
    assert host.scheduler.policy_errors["order.rank"] >= 3
    [told] = [record for record in caplog.records if "policy" in record.getMessage()]
    assert "order.rank (program-fcfs)" in told.getMessage()
    assert "nobody to divide by" in caplog.text
