"""SimHost: the scheduler's host in virtual time. It performs commands on modelled engines.

One agenda holds everything that is going to happen. An engine is advanced only up to the next thing
on it, so nothing ever reaches an engine in its past; while an engine merely decodes, it is left
alone until something can start or end.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    SECOND,
    Cancel,
    Command,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    HintAnswered,
    HintOutcome,
    Instant,
    Nanos,
    Pin,
    Prefetch,
    Reject,
    StepArrived,
    StepFailed,
    StepId,
    StepStarted,
    TimerFired,
    Unpin,
    Usage,
    after,
    between,
)
from agentsched_bench.engine.requests import EngineConfig, Finished, Refusal, StepOutcome
from agentsched_bench.sim.clients import CallState, Clients, Endings, ProgramRun
from agentsched_bench.sim.engines import SimEngine
from agentsched_bench.workload.shape import PlannedProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A program that begins at an instant; `copy` keeps its content apart from its twins'."""

    plan: PlannedProgram
    at: Instant
    agent: str = ""
    copy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """An engine dies and is back, empty, after a while."""

    engine: int
    at: Instant
    back_at: Instant


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts over a whole simulation; tokens as the engines counted them."""

    calls: int = 0
    rejected: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    #: Prompt tokens that were computed though an earlier call of the conversation had done so.
    again_tokens: int = 0
    forced: int = 0
    first_token_waits: list[Nanos] = field(default_factory=list)
    held: list[Nanos] = field(default_factory=list)


Deed = Callable[[Instant], None]


class SimHost:
    """Drives one scheduler, its clients and its engines until nothing is left to happen."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        engines: Sequence[EngineConfig],
        endings: Endings = Endings.SPOKEN,
        token_error: float = 0.0,
        streams: bool = True,
        on_turn: Callable[[JournalEntry], None] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._on_turn = on_turn
        self._streams = streams
        self._agenda: list[tuple[Instant, int, Deed]] = []
        self._number = 0
        self._timer: Instant | None = None
        self.now = Instant(0)
        self.engines = {
            EngineId(f"e{number:03d}"): SimEngine(EngineId(f"e{number:03d}"), config)
            for number, config in enumerate(engines)
        }
        #: When calls reach an engine that are on their way to it.
        self._inbound: dict[EngineId, deque[Instant]] = {key: deque() for key in self.engines}
        self._in_flight: dict[StepId, tuple[CallState, EngineId | None]] = {}
        self.clients = Clients(
            block_size=engines[0].block_size,
            later=self._later,
            send=self._send,
            endings=endings,
            token_error=token_error,
        )
        self.tally = Tally()

    def run(self, starts: Sequence[Start], *, outages: Sequence[Outage] = ()) -> list[ProgramRun]:
        """Play everything to its end."""
        for engine in self.engines.values():
            self._feed(engine.report())
        for start in starts:
            self.clients.start(start.plan, agent=start.agent, copy=start.copy, at=start.at)
        keys = list(self.engines)
        for outage in outages:
            engine = self.engines[keys[outage.engine]]
            self._later(outage.at, partial(self._lose, engine))
            self._later(outage.back_at, partial(self._return, engine))
        agenda = self._agenda
        # What the scheduler might still do about programs that are over is of no interest.
        while agenda and self.clients.unfinished:
            at, _, deed = heapq.heappop(agenda)
            self.now = max(self.now, at)
            deed(self.now)
        return self.clients.runs

    def _later(self, at: Instant, deed: Deed) -> None:
        self._number += 1
        heapq.heappush(self._agenda, (at, self._number, deed))

    # The scheduler.

    def _feed(self, event: Event) -> None:
        commands = self._scheduler.handle(event, now=self.now)
        if self._on_turn is not None:
            assert self._scheduler.latest is not None
            self._on_turn(self._scheduler.latest)
        for command in commands:
            self._perform(command)
        deadline = self._scheduler.next_deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer):
            self._timer = deadline
            self._later(deadline, self._ring)

    def _ring(self, now: Instant) -> None:
        if self._timer is None or self._timer > now:
            return  # set for an earlier instant meanwhile, and rung then
        self._timer = None
        deadline = self._scheduler.next_deadline()
        if deadline is None:
            return
        if deadline <= now:
            self._feed(TimerFired())
        else:
            self._timer = deadline
            self._later(deadline, self._ring)

    def _perform(self, command: Command) -> None:
        match command:
            case Dispatch():
                self._dispatch(command)
            case Reject():
                call, _ = self._in_flight.pop(command.step)
                self.tally.rejected += 1
                self.clients.turned_away(call, wait=command.retry_after, now=self.now)
            case Cancel():
                self._cancel(command.step)
            case Pin() | Prefetch():
                answer = HintAnswered(pin=command.pin, outcome=HintOutcome.UNSUPPORTED)
                self._later(self.now, lambda now: self._feed(answer))
            case Unpin():
                pass
            case _:
                assert_never(command)

    def _send(self, call: CallState, event: StepArrived, now: Instant) -> None:
        if call.tries == 1:
            self.tally.calls += 1
        self._in_flight[call.step] = (call, None)
        self._feed(event)

    # The engines.

    def _dispatch(self, command: Dispatch) -> None:
        call, _ = self._in_flight[command.step]
        self._in_flight[command.step] = (call, command.engine)
        self.tally.forced += command.order == "bound"
        self.tally.held.append(between(call.sent_at, self.now))
        engine = self.engines[command.engine]
        at = after(self.now, engine.request_ns)
        self._inbound[engine.engine].append(at)
        step = command.step
        self._later(at, lambda now: self._deliver(engine, step, now=now))

    def _deliver(self, engine: SimEngine, step: StepId, *, now: Instant) -> None:
        self._inbound[engine.engine].popleft()
        found = self._in_flight.get(step)
        if found is None or found[1] != engine.engine:
            return
        if engine.is_lost:
            self._fail(step, reason="connection refused")
            return
        self._advance(engine, until=now)
        refusal = engine.add(self.clients.generation(found[0]), now=now)
        if refusal is Refusal.QUEUE_FULL:
            self._fail(step, reason=str(refusal))
            return
        assert refusal is None, f"{step}: {refusal}"
        self._watch(engine)

    def _watch(self, engine: SimEngine) -> None:
        """Look at the engine again when something may have happened on it."""
        at = engine.quiet_until()
        if at is not None:
            engine.wake += 1
            wake = engine.wake
            self._later(max(at, self.now), lambda now: self._wake(engine, wake))

    def _wake(self, engine: SimEngine, wake: int) -> None:
        if engine.wake != wake or engine.is_lost:
            return
        # Whatever is still to be decided reaches an engine no sooner than a call's way to it.
        top = self._agenda[0][0] if self._agenda else after(self.now, SECOND)
        until = after(top, engine.request_ns)
        inbound = self._inbound[engine.engine]
        if inbound:
            until = min(until, inbound[0])
        self._advance(engine, until=max(until, after(engine.at, Nanos(1))))
        self._watch(engine)

    def _advance(self, engine: SimEngine, *, until: Instant) -> None:
        while (found := engine.advance(until=until)) is not None:
            at, outcome = found
            seen_at = max(self.now, after(at, engine.request_ns))
            self._later(seen_at, partial(self._show, engine.engine, outcome))
            # A client that hears of it may answer, and that may come to this engine.
            until = min(until, after(seen_at, engine.request_ns))

    def _show(self, engine: EngineId, outcome: StepOutcome, now: Instant) -> None:
        """What an engine's step brought reaches the proxy and the clients."""
        for key in outcome.first:
            found = self._in_flight.get(StepId(key))
            if found is not None and found[1] == engine:
                self._start(found[0], now=now)
        for finished in outcome.finished:
            found = self._in_flight.get(StepId(finished.id))
            if found is not None and found[1] == engine:
                self._finish(found[0], finished, now=now)

    def _start(self, call: CallState, *, now: Instant) -> None:
        call.started_at = now
        waited = between(call.sent_at, now)
        self.tally.first_token_waits.append(waited)
        run = call.talk.run
        run.first_token_wait_max = max(run.first_token_wait_max, waited)
        if self._streams:
            self._feed(StepStarted(step=call.step))

    def _finish(self, call: CallState, finished: Finished, *, now: Instant) -> None:
        del self._in_flight[call.step]
        tally = self.tally
        tally.prompt_tokens += finished.prompt_tokens
        tally.cached_tokens += finished.cached_tokens
        tally.output_tokens += finished.output_tokens
        seen = call.talk.prompts.seen_tokens(call.index)
        size = next(iter(self.engines.values())).config.block_size
        tally.again_tokens += max(0, seen // size * size - finished.cached_tokens)
        usage = Usage(
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            output_tokens=finished.output_tokens,
        )
        self._feed(self.clients.finished(call, usage=usage))
        self.clients.answered(call, now=now)

    def _cancel(self, step: StepId) -> None:
        call, key = self._in_flight.pop(step)
        if key is not None:
            self.engines[key].model.abort(step)
            self._watch(self.engines[key])
        self.clients.turned_away(call, wait=None, now=self.now)

    def _fail(self, step: StepId, *, reason: str) -> None:
        """An engine gave no answer. Without a token out, the scheduler may try elsewhere."""
        call, _ = self._in_flight[step]
        self.tally.failed += 1
        is_retryable = call.started_at is None
        if is_retryable:
            self._in_flight[step] = (call, None)
        else:
            del self._in_flight[step]
        self._feed(StepFailed(step=step, reason=reason, is_retryable=is_retryable))
        if not is_retryable:
            call.started_at = None
            self.clients.turned_away(call, wait=None, now=self.now)

    def _lose(self, engine: SimEngine, now: Instant) -> None:
        engine.lose()
        self._feed(EngineLost(engine=engine.engine, reason="outage"))
        for step, (_, key) in list(self._in_flight.items()):
            if key == engine.engine and step in self._in_flight:
                self._fail(step, reason="connection reset")

    def _return(self, engine: SimEngine, now: Instant) -> None:
        engine.is_lost = False
        engine.at = now
        self._feed(engine.report())
