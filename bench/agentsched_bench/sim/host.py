"""SimHost: the scheduler's host in virtual time. It performs commands on modelled engines.

Engines may differ, die and come back, or be slow for a while; what the proxy is told may be late,
lost or told twice; and the proxy itself may be started anew (`agentsched_bench.sim.faults`).

One agenda holds everything that is going to happen. An engine is advanced only up to the next thing
on it, so nothing ever reaches an engine in its past; while an engine merely decodes, it is left
alone until something can start or end.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, assert_never

from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    SECOND,
    Cancel,
    CancelReason,
    Command,
    ConversationId,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    Instant,
    Nanos,
    Pin,
    PolicyError,
    Prefetch,
    Reject,
    StepArrived,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    TenantConfigured,
    TimerFired,
    Unpin,
    Usage,
    after,
    between,
)
from agentsched.policy.registry import POINTS
from agentsched_bench.engine.requests import (
    EngineConfig,
    Finished,
    Refusal,
    StepOutcome,
)
from agentsched_bench.sim.clients import (
    ATTEMPTS_MAX,
    CallState,
    Clients,
    Endings,
    ProgramRun,
    Start,
    Talk,
)
from agentsched_bench.sim.engines import EngineTraits, SimEngine
from agentsched_bench.sim.faults import NO_FAULTS, Faults, Outage, Restart, Slowdown, Stall, apart
from agentsched_bench.sim.hints import HintHost, SimHints


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
    #: Steps of the proxy's past lives that were lost with it.
    lost: int = 0
    pins: int = 0
    warmed_tokens: int = 0
    #: Nanoseconds, one for each call that came so far: until its last try did.
    first_token_waits: array[int] = field(default_factory=lambda: array("q"))
    #: Which of these are of conversations' first calls: others continue one that was served.
    first_calls: set[int] = field(default_factory=set)
    held: array[int] = field(default_factory=lambda: array("q"))


def _noted(values: array[int], place: int | None, value: int) -> int:
    """Note a call's value, in place of that of an earlier try; where it stands."""
    if place is None:
        values.append(value)
        return len(values) - 1
    values[place] = value
    return place


Deed = Callable[[Instant], None]

#: As `upstream.probe_interval`.
_LOOK_EVERY: Final = Nanos(2 * SECOND)


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
        traits: Sequence[EngineTraits] = (),
        renew: Callable[[], Scheduler] | None = None,
        tells_tools: bool | None = None,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> None:
        """Take a fresh scheduler; `renew` makes the one that serves after a restart.

        Engines have blocks of one size. `traits`, where given, are one for each engine.
        """
        assert len({config.block_size for config in engines}) == 1
        self._scheduler = scheduler
        self._renew = renew
        self._faults = NO_FAULTS
        self._tenants: Sequence[TenantConfigured] = ()
        #: The proxy is down; clients cannot connect.
        self._is_down = False
        #: How often it was started anew: what an earlier life was told does not reach this one.
        self._life = 0
        self._on_turn = on_turn
        self._streams = streams
        self._agenda: list[tuple[Instant, int, Deed]] = []
        self._number = 0
        self._timer: Instant | None = None
        self.now = Instant(0)
        self.engines = {
            EngineId(f"e{number:03d}"): SimEngine(
                EngineId(f"e{number:03d}"),
                config,
                traits=traits[number] if traits else EngineTraits(),
            )
            for number, config in enumerate(engines)
        }
        #: When calls reach an engine that are on their way to it.
        self._inbound: dict[EngineId, deque[Instant]] = {key: deque() for key in self.engines}
        self._in_flight: dict[StepId, tuple[CallState, EngineId | None]] = {}
        self.block_size = engines[0].block_size
        self.clients = Clients(
            block_size=self.block_size,
            later=self._later,
            send=self._send,
            endings=endings,
            token_error=token_error,
            cost=engines[0].cost,
            ended=self._unclaim,
            tells_tools=tells_tools,
            attempts_max=attempts_max,
        )
        #: Where the cache is clairvoyant: the engine that keeps a paused conversation's blocks.
        self._claims: dict[ConversationId, SimEngine] = {}
        self._hints = SimHints(
            HintHost(
                later=self._later,
                reach=self._reach,
                watch=self._watch,
                tell=self._feed,
                prefix_of=self.clients.prefix_of,
            )
        )
        self.tally = Tally()

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler that serves now."""
        return self._scheduler

    def run(
        self,
        starts: Sequence[Start],
        *,
        outages: Sequence[Outage] = (),
        faults: Faults = NO_FAULTS,
        pools: Mapping[str, int] | None = None,
        tenants: Sequence[TenantConfigured] = (),
    ) -> list[ProgramRun]:
        """Play everything to its end.

        `pools` says how many programs of each closed loop run at a time; `tenants` is what the
        operator has configured, which every life of the proxy is told first.

        Raises:
            PolicyError: a policy failed. The kernel lets the plainest rule stand in for it, and so
                the result would be that of another scheduler.
        """
        self._faults = faults = apart(replace(faults, outages=(*outages, *faults.outages)))
        self._tenants = tenants
        self.clients.rooms = dict(pools or {})
        self._introduce()
        for start in starts:
            self.clients.start(start)
        self._plan_faults([*faults.outages, *faults.slowdowns])
        self._plan_faults([*faults.stalls, *faults.restarts])
        if faults.stalls or self._reads_gauges():  # looks would find nothing else
            self._later(Instant(_LOOK_EVERY), self._look)
        agenda = self._agenda
        # What the scheduler might still do about programs that are over is of no interest.
        while agenda and self.clients.unfinished:
            at, _, deed = heapq.heappop(agenda)
            self.now = max(self.now, at)
            deed(self.now)
        self._refuse_failures()
        self.tally.pins, self.tally.warmed_tokens = self._hints.pinned, self._hints.warmed_tokens
        return self.clients.runs

    def _reads_gauges(self) -> bool:
        """Whether what engines say of themselves as they serve bears on a decision."""
        policies = self._scheduler.policies
        return any(getattr(getattr(policies, p), "reads_gauges", False) for p in POINTS)

    def _introduce(self) -> None:
        """A scheduler that begins is told its tenants, and the engines that there are."""
        for tenant in self._tenants:
            self._feed(tenant)
        for engine in self.engines.values():
            if not engine.is_lost:
                self._feed(engine.report())

    def _refuse_failures(self) -> None:
        errors = self._scheduler.policy_errors
        if not errors:
            return
        counts = ", ".join(f"{name} {count}x" for name, count in sorted(errors.items()))
        latest = self._scheduler.latest_policy_error
        text = f"policies failed ({counts}), so there is no result"
        raise PolicyError(f"{text}; the latest: {latest!r}") from latest

    def _plan_faults(self, faults: Sequence[Outage | Slowdown | Stall | Restart]) -> None:
        engines = list(self.engines.values())
        # At one instant, what is planned first is done first: whoever is back may be lost again.
        for fault in sorted(faults, key=lambda fault: fault.at):
            match fault:
                case Outage():
                    self._later(fault.at, partial(self._lose, engines[fault.engine]))
                    self._later(fault.back_at, partial(self._return, engines[fault.engine]))
                case Slowdown():
                    slow = partial(self._slow, engines[fault.engine], fault.factor)
                    self._later(fault.at, slow)
                    well = partial(self._slow, engines[fault.engine], 1 / fault.factor)
                    self._later(fault.until, well)
                case Stall():
                    self._later(fault.at, partial(self._stall, engines[fault.engine], True))
                    self._later(fault.until, partial(self._stall, engines[fault.engine], False))
                case Restart():
                    assert self._renew is not None, "a restart needs a way to make a scheduler"
                    self._later(fault.at, self._go_down)
                    self._later(fault.back_at, self._come_back)
                case _:
                    assert_never(fault)

    def _later(self, at: Instant, deed: Deed) -> None:
        self._number += 1
        heapq.heappush(self._agenda, (at, self._number, deed))

    # The scheduler.

    def _feed(self, event: Event) -> None:
        if self._is_down:
            return
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
            case Cancel(reason=CancelReason.YIELDED):
                self._make_way(command.step)
            case Cancel():
                self._cancel(command.step)
            case Pin() | Unpin() | Prefetch():
                self._hints.perform(command, self.engines[command.engine], now=self.now)
            case _:
                assert_never(command)

    def _reach(self, engine: SimEngine, deed: Deed) -> None:
        """Run `deed` when what is sent now is at the engine, which then has come that far."""
        at = after(self.now, engine.request_ns)
        self._inbound[engine.engine].append(at)

        def arrive(now: Instant) -> None:
            self._inbound[engine.engine].popleft()
            if not engine.is_lost:
                self._advance(engine, until=now)
            deed(now)

        self._later(at, arrive)

    def _send(self, call: CallState, event: StepArrived, now: Instant) -> None:
        if call.tries == 1:
            self.tally.calls += 1
        if self._is_down:
            self.clients.turned_away(call, wait=None, now=now)
            return
        self._in_flight[call.step] = (call, None)
        self._feed(event)

    # The engines.

    def _dispatch(self, command: Dispatch) -> None:
        call, _ = self._in_flight[command.step]
        self._in_flight[command.step] = (call, command.engine)
        self.tally.forced += command.order == "bound"
        held = between(call.sent_at, self.now)
        call.held_place = _noted(self.tally.held, call.held_place, held)
        call.sendings += 1
        engine = self.engines[command.engine]
        deliver = partial(self._deliver, engine, command.step, call.sendings, command.priority)
        self._reach(engine, deliver)

    def _deliver(
        self, engine: SimEngine, step: StepId, sending: int, priority: int, now: Instant
    ) -> None:
        found = self._in_flight.get(step)
        # What was sent to an engine that was lost meanwhile never comes, though it may be back.
        if found is None or found[1] != engine.engine or found[0].sendings != sending:
            return
        if engine.is_lost:
            self._fail(step, reason="connection refused")
            return
        self._unclaim(found[0].talk.key, back_on=engine)
        refusal = engine.add(self.clients.generation(found[0], priority=priority), now=now)
        if refusal in (Refusal.QUEUE_FULL, Refusal.TOO_LONG):  # engines may be unlike
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
            self._later(seen_at, partial(self._show, engine, engine.lives, outcome))
            # A client that hears of it may answer, and that may come to this engine.
            until = min(until, after(seen_at, engine.request_ns))

    def _show(self, engine: SimEngine, life: int, outcome: StepOutcome, now: Instant) -> None:
        """What an engine's step brought reaches the proxy and the clients."""
        if engine.lives != life:
            return  # it was lost meanwhile, and its connections with it
        for key in outcome.first:
            found = self._in_flight.get(StepId(key))
            if found is not None and found[1] == engine.engine:
                self._start(found[0], now=now)
        for finished in outcome.finished:
            if self._hints.finished(finished):
                continue
            found = self._in_flight.get(StepId(finished.id))
            if found is not None and found[1] == engine.engine:
                self._finish(found[0], finished, now=now)

    def _start(self, call: CallState, *, now: Instant) -> None:
        call.started_at = now
        waited = between(call.sent_at, now)
        waits = self.tally.first_token_waits
        call.waited_place = _noted(waits, call.waited_place, waited)
        if call.index == 0:
            self.tally.first_calls.add(call.waited_place)
        run = call.talk.run
        run.first_token_wait_max = max(run.first_token_wait_max, waited)
        if self._streams and not self._faults.strikes("lost", call.step, self._faults.lost):
            self._tell(StepStarted(step=call.step))

    def _finish(self, call: CallState, finished: Finished, *, now: Instant) -> None:
        _, key = self._in_flight.pop(call.step)
        assert key is not None
        tally = self.tally
        tally.prompt_tokens += finished.prompt_tokens
        tally.cached_tokens += finished.cached_tokens
        tally.output_tokens += finished.output_tokens
        seen = call.talk.prompts.seen_tokens(call.index)
        size = self.block_size
        tally.again_tokens += max(0, seen // size * size - finished.cached_tokens)
        usage = Usage(
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            output_tokens=finished.output_tokens,
        )
        self.clients.foresee(call, now=now)
        self._tell(self.clients.finished(call, usage=usage))
        self.clients.answered(call, now=now)
        self._claim(call.talk, self.engines[key])

    def _claim(self, talk: Talk, engine: SimEngine) -> None:
        """A conversation paused on the engine. One that has had its last answer needs nothing."""
        if not engine.traits.is_clairvoyant or talk.next_call == len(talk.plan.calls):
            return
        asked = self.clients.prefix_of(talk.key)
        if asked is not None:
            hashes = asked[0].hashes(asked[1] // self.block_size)
            engine.claim(talk.key, hashes, at=self.clients.returns_at(talk.key))
            self._claims[talk.key] = engine

    def _unclaim(self, key: ConversationId, *, back_on: SimEngine | None = None) -> None:
        """A conversation is back, on this engine or another than it left; or it is over."""
        engine = self._claims.pop(key, None)
        if engine is not None:
            engine.unclaim(key, is_back=engine is back_on)

    def _tell(self, event: StepStarted | StepFinished) -> None:
        """Let the proxy know what came of a step, now or late, once or twice."""
        faults = self._faults
        key = f"{type(event).__name__}/{event.step}"
        times = 1 + faults.strikes("twice", key, faults.twice)
        life = self._life

        def tell(now: Instant) -> None:
            if life == self._life:
                self._feed(event)

        for number in range(times):
            if faults.strikes("late", f"{key}/{number}", faults.late):
                self._later(after(self.now, faults.delay(f"{key}/{number}")), tell)
            else:
                self._feed(event)

    def _cancel(self, step: StepId) -> None:
        call, key = self._in_flight.pop(step)
        if key is not None:
            self.engines[key].model.abort(step)
            self._watch(self.engines[key])
        self.clients.turned_away(call, wait=None, now=self.now)

    def _make_way(self, step: StepId) -> None:
        """Background work goes back into the queue, unless its client has a part of its answer."""
        call, key = self._in_flight[step]
        if call.started_at is not None or key is None:
            return
        self.engines[key].model.abort(step)
        self._watch(self.engines[key])
        self._in_flight[step] = (call, None)
        made_way = StepFailed(step=step, reason="made way", is_retryable=True)
        self._later(self.now, lambda now: self._feed(made_way))

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
        self._hints.lost(engine)
        for step, (_, key) in list(self._in_flight.items()):
            if key == engine.engine and step in self._in_flight:
                self._fail(step, reason="connection reset")

    def _slow(self, engine: SimEngine, factor: float, now: Instant) -> None:
        engine.slow(factor)

    def _stall(self, engine: SimEngine, is_stalled: bool, now: Instant) -> None:
        engine.is_stalled = is_stalled
        if not is_stalled and not engine.is_lost:
            engine.at = max(engine.at, now)
            self._watch(engine)

    def _look(self, now: Instant) -> None:
        """Look at every engine, as the proxy does."""
        for engine in self.engines.values():
            if not engine.is_lost:
                self._advance(engine, until=now)
                self._watch(engine)
                self._feed(engine.look())
        self._later(after(now, _LOOK_EVERY), self._look)

    def _go_down(self, now: Instant) -> None:
        """The proxy dies: all connections break, on both sides."""
        self._hints.forget()
        for step, (call, key) in list(self._in_flight.items()):
            if key is not None and not self.engines[key].is_lost:
                self.engines[key].model.abort(step)
                self._watch(self.engines[key])
            self.tally.lost += 1
            call.started_at = None
            del self._in_flight[step]
            self.clients.turned_away(call, wait=None, now=now)
        self._is_down = True
        self._life += 1

    def _come_back(self, now: Instant) -> None:
        assert self._renew is not None
        self._refuse_failures()
        self._scheduler = self._renew()
        self._is_down = False
        self._timer = None
        self._introduce()

    def _return(self, engine: SimEngine, now: Instant) -> None:
        engine.is_lost = False
        engine.at = now
        self._feed(engine.report())
