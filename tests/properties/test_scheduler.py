"""What must hold whatever happens and whatever the policies say.

A Hypothesis state machine plays a host: any event in any order, many of them wrong, late or twice,
under tiny limits, with the built-in policies and with policies that mean harm. Safety (capacity,
one outcome a step, one end a pin, bounded waits) is asserted from the commands alone, as a host
sees them; `scheduler.check()` asserts the books beside it.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentsched.compose import SchedulerConfig, build_policies
from agentsched.kernel import JournalEntry, Scheduler, decode, encode
from agentsched.kernel.records import Pause
from agentsched.model import (
    SECOND,
    CallId,
    Cancel,
    CancelReason,
    Capabilities,
    Command,
    ConversationId,
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLoad,
    EngineLost,
    EngineReported,
    Event,
    HintAnswered,
    HintOutcome,
    Instant,
    Limits,
    Lineage,
    Nanos,
    Pin,
    PinId,
    Prefetch,
    Prefix,
    PrefixId,
    ProgramClosed,
    ProgramOpened,
    Reject,
    StepArrived,
    StepCancelled,
    StepClass,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    TenantConfigured,
    TimerFired,
    ToolCall,
    ToolFinished,
    ToolName,
    ToolStarted,
    Unpin,
    Usage,
)
from agentsched.policy import Admitted, Choice, Held, PolicySet, Retention, TurnedAway, available

POINTS = ("order", "admit", "place", "pin", "prefetch", "share")


class Plain:
    """Learns by counting, so that a query which changes the state is seen."""

    def __init__(self) -> None:
        self.seen = 0

    def observe(self, event: Event, *, now: Instant) -> None:
        self.seen += 1


class Scrambled(Plain):
    """Ranks and scores at random, though always the same."""

    def rank(self, step: Any, world: Any, *, now: Instant) -> tuple[float, ...]:
        return (float(crc32(f"{self.seen // 3}{step.step}".encode())),)

    def priority(self, step: Any, world: Any, *, now: Instant) -> int:
        return crc32(step.step.encode()) % 100

    def score(self, step: Any, engine: Any, world: Any, *, now: Instant) -> float:
        return float(crc32(f"{step.step}{engine.engine}".encode()))


class Newest(Scrambled):
    """The latest goes first: starves the old."""

    def rank(self, step: Any, world: Any, *, now: Instant) -> tuple[float, ...]:
        return (-float(step.arrived_at),)


class HoldsAll(Plain):
    def admit(self, step: Any, engine: Any, world: Any, *, now: Instant) -> Held:
        return Held(reason="never", blocks_others=False, until=Instant(now + SECOND))


class HoldsSome(Plain):
    def admit(self, step: Any, engine: Any, world: Any, *, now: Instant) -> Any:
        if crc32(step.step.encode()) % 2:
            return Held(reason="odd", blocks_others=crc32(step.step.encode()) % 4 == 1)
        return Admitted()


class TurnsAway(Plain):
    def admit(self, step: Any, engine: Any, world: Any, *, now: Instant) -> Any:
        return TurnedAway(reason="no") if crc32(step.step.encode()) % 3 else Admitted()


class Releases(Plain):
    """Lets everybody in and gives up everything for them, also what is busy or unknown."""

    def admit(self, step: Any, engine: Any, world: Any, *, now: Instant) -> Admitted:
        every = [key for p in world.programs.values() for key in p.conversations]
        return Admitted(releases=(*every, ConversationId("nobody")))


class PinsAll(Plain):
    def retain(self, pause: Any, world: Any, *, now: Instant) -> Retention:
        value = float(crc32(pause.conversation.encode()) % 5)
        return Retention(ttl=Nanos(10**18), value=value)


class WarmsAll(Plain):
    def warm_at(self, pause: Any, world: Any, *, now: Instant) -> Instant:
        return Instant(now - SECOND + crc32(pause.conversation.encode()) % (4 * SECOND))


class Favours(Plain):
    """Some tenants before others, whatever they were served, and at times no opinion."""

    def rank_tenant(self, tenant: Any, world: Any, *, now: Instant) -> Any:
        favour = crc32(tenant.tenant.encode()) % 5
        return (float(favour), tenant.service(now=now)) if favour or self.seen % 3 else None

    def may_continue(self, tenant: Any, world: Any, *, now: Instant) -> bool:
        return crc32(tenant.tenant.encode()) % 2 == self.seen % 2


class Fails(Plain):
    """Raises or answers nonsense, at every other question."""

    def rank(self, step: Any, world: Any, *, now: Instant) -> Any:
        return None if self.seen % 2 else (0.0,)

    def _fail(self, *_: Any, **__: Any) -> Any:
        if self.seen % 2:
            raise RuntimeError("broken")
        return "nonsense"

    priority = score = admit = retain = warm_at = rank_tenant = may_continue = _fail


ADVERSARIES: dict[str, tuple[type[Plain], ...]] = {
    "order": (Scrambled, Newest, Fails),
    "admit": (HoldsAll, HoldsSome, HoldsSome, TurnsAway, Releases, Fails),
    "place": (Scrambled, Fails),
    "pin": (PinsAll, PinsAll, PinsAll, PinsAll, Fails),
    "prefetch": (WarmsAll, Fails),
    "share": (Favours, Fails),
}


def builtin(point: str, name: str) -> Callable[[], object]:
    config = SchedulerConfig(choices={point: Choice(name=name)})
    return lambda: getattr(build_policies(config), point)


MAKERS: dict[str, list[Callable[[], object]]] = {
    point: [*ADVERSARIES[point], *(builtin(point, name) for name in available(point))]
    for point in POINTS
}
POLICIES = st.fixed_dictionaries({point: st.sampled_from(MAKERS[point]) for point in POINTS})
LIMITS = st.builds(
    Limits,
    programs_max=st.integers(1, 5),
    program_idle_ns_max=st.integers(SECOND, 20 * SECOND),
    conversations_per_program_max=st.integers(1, 2),
    ready_steps_max=st.integers(1, 12),
    running_steps_per_engine_max=st.integers(1, 3),
    engine_wait_ns_max=st.integers(1, 5 * SECOND),
    wait_ns_max=st.integers(SECOND // 2, 5 * SECOND),
    bypasses_max=st.sampled_from([0, 1, 1, 2, 1_000]),
    pins_per_engine_max=st.integers(1, 2),
    pinned_tokens_per_engine_max=st.integers(100, 600),
    pin_ttl_ns_max=st.integers(1, 5 * SECOND),
    tools_per_program_max=st.integers(1, 2),
    story_entries_max=st.integers(1, 3),
    tenants_max=st.integers(1, 2),
    retries_max=st.integers(0, 2),
)


def ids(kind: str, count: int) -> st.SearchStrategy[Any]:
    return st.integers(0, count - 1).map(lambda number: f"{kind}{number}")


PROGRAMS, TENANTS, ENGINES = ids("p", 4), ids("t", 3), ids("e", 3)
CALLS, TOKENS = ids("k", 3), st.integers(0, 400)
MODELS = st.sampled_from(["", "", "small", "large"])


def make_set(makers: dict[str, Callable[[], object]]) -> PolicySet:
    made: dict[str, Any] = {point: make() for point, make in makers.items()}
    names = dict.fromkeys(POINTS, "any")
    return PolicySet(profile="any", names=names, **made)


#: What disturbs the ordinary course: a method of the host, and what it is called with (None: data).
DISTURBANCES: dict[str, dict[str, Any]] = {
    "open": {"program": PROGRAMS, "tenant": TENANTS},
    "arrive_again": {"data": None},
    "fail": {"data": None, "is_retryable": st.booleans()},
    "cancel": {"data": None},
    "tool": {"program": PROGRAMS, "call": CALLS, "is_end": st.booleans()},
    "close": {"program": PROGRAMS},
    "report": {
        "engine": ENGINES,
        "pins": st.booleans(),
        "models": st.sampled_from([(), ("small",), ("small", "large")]),
    },
    "lose": {"engine": ENGINES},
    "drain": {"engine": ENGINES, "is_draining": st.sampled_from([True, False, False])},
    "answer_hint": {
        "data": None,
        "outcome": st.sampled_from(HintOutcome),
        "until": st.integers(-1, 6),
    },
    "configure": {"tenant": TENANTS, "weight": st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])},
    "wake_for_nothing": {},
    "step_back": {"span": st.integers(1, 3 * SECOND)},
}
#: The rest is there so that engines come up more often than they go.
DEEDS = [*DISTURBANCES, "report", "report", "cancel", "tool", "answer_hint"]


class Host(RuleBasedStateMachine):
    """Plays the world and judges the commands; knows nothing of the scheduler's inside."""

    @initialize(makers=POLICIES, limits=LIMITS, engines=st.integers(0, 3))
    def set_up(self, makers: Any, limits: Limits, engines: int) -> None:
        self.makers, self.limits = makers, limits
        self.policies = make_set(makers)
        self.scheduler = Scheduler(policies=self.policies, limits=limits)
        self.now = 0
        self.journal: list[JournalEntry] = []
        #: Steps without an outcome, with their arrival; the order is that of arrival.
        self.waiting: dict[str, StepArrived] = {}
        self.arrived_at: dict[str, int] = {}
        #: Steps sent to an engine that have not ended.
        self.running: dict[str, str] = {}
        self.tried: set[str] = set()
        self.arrivals: dict[str, StepArrived] = {}
        self.bypassed: dict[str, int] = {}
        self.answered: set[str] = set()
        self.yielding: list[StepId] = []
        #: Steps that ended without an answer and whose place a retry took over.
        self.inherited: set[str] = set()
        self.pins: dict[str, Pin] = {}
        #: Warm-ups that their engines have not answered, by engine.
        self.warm_ups: dict[str, str] = {}
        self.ended_pins: set[str] = set()
        self.models: dict[str, tuple[str, ...]] = {}
        self.steps = 0
        for number in range(engines):
            self.report(EngineId(f"e{number}"), pins=True, models=())

    # The world.

    def open(self, program: Any, tenant: Any) -> None:
        self.feed(ProgramOpened(program=program, tenant=tenant))

    @rule(data=st.data(), deed=st.sampled_from(DEEDS))
    def disturb(self, data: st.DataObject, deed: str) -> None:
        needs = DISTURBANCES[deed].items()
        drawn = {name: data.draw(s) if s is not None else data for name, s in needs}
        getattr(self, deed)(**drawn)

    @rule(data=st.data(), count=st.integers(1, 6), span=st.integers(1, SECOND // 8))
    def answer(self, data: st.DataObject, count: int, span: int) -> None:
        """Engines do their work: first tokens and whole answers, one after the other."""
        for _ in range(count):
            self.wait(span)
            if self.running:
                step = StepId(data.draw(st.sampled_from(sorted(self.running))))
                self.feed(StepStarted(step=step))
                self.end(step, calls=[CallId("k0")], tokens=100)

    @rule(
        program=PROGRAMS,
        number=st.integers(0, 3),
        tenant=TENANTS,
        tokens=TOKENS,
        model=MODELS,
        step_class=st.sampled_from(
            [StepClass.STEP, StepClass.STEP, StepClass.AUXILIARY, StepClass.BATCH]
        ),
        lineage=st.sampled_from(Lineage),
        has_prefix=st.sampled_from([True, True, True, False]),
        is_last=st.booleans(),
        is_foreign=st.integers(0, 9),
        retried=st.integers(0, 7),
    )
    def arrive(self, program: Any, number: int, tenant: Any, tokens: int, **more: Any) -> None:
        step = StepId(f"s{self.steps}")
        self.steps += 1
        owner = "p0" if not more["is_foreign"] else program
        prefix = Prefix(prefix=PrefixId(f"x{tokens}"), tokens=tokens)
        event = StepArrived(
            step=step,
            program=program,
            conversation=ConversationId(f"{owner}/{number}"),
            tenant=tenant,
            prompt_tokens=tokens,
            prefixes=(prefix,) if more["has_prefix"] else (),
            model=more["model"],
            step_class=more["step_class"],
            lineage=more["lineage"],
            parent_conversation=ConversationId(f"{program}/0"),
            answers=(CallId("k0"),),
            is_last=more["is_last"] and not more["is_foreign"] % 3,
            retries=self.retried(program, more["retried"]),
        )
        self.waiting[step] = self.arrivals[step] = event
        self.arrived_at[step], self.bypassed[step] = self.place_of(event)
        self.feed(event)

    def retried(self, program: Any, back: int) -> StepId | None:
        """One of the latest steps, also of other programs, also one that still waits or runs."""
        known = list(self.arrivals)[-4:]
        return StepId(known[back]) if back < len(known) else None

    def place_of(self, event: StepArrived) -> tuple[int, int]:
        """What a retry must be granted: the first place, with a little of both bounds left."""
        old = event.retries
        if old is None or self.arrivals[old].program != event.program or old in self.answered:
            return self.now, 0
        if old not in self.waiting and old not in self.running:
            if old in self.inherited:
                return self.now, 0  # its place went to another retry
            self.inherited.add(old)
        used = max(0, self.limits.wait_ns_max - self.limits.engine_wait_ns_max)
        most = self.limits.bypasses_max * used // self.limits.wait_ns_max
        return max(self.arrived_at[old], self.now - used), min(self.bypassed[old], most)

    def arrive_again(self, data: st.DataObject) -> None:
        live = [s for s in self.arrivals if s in self.waiting or s in self.running]
        if live:
            self.feed(self.arrivals[data.draw(st.sampled_from(live))])

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.feed(StepStarted(step=self.some_step(data)))

    @rule(data=st.data(), calls=st.lists(CALLS, max_size=3), tokens=TOKENS)
    def finish(self, data: st.DataObject, calls: list[Any], tokens: int) -> None:
        self.end(self.some_step(data), calls=calls, tokens=tokens)

    def end(self, step: StepId, *, calls: list[Any], tokens: int) -> None:
        if step in self.running:
            del self.running[step]
            self.answered.add(step)
        self.feed(
            StepFinished(
                step=step,
                usage=Usage(prompt_tokens=tokens, cached_tokens=tokens // 2, output_tokens=3),
                tool_calls=tuple(ToolCall(call_id=c, tool=ToolName("bash")) for c in calls),
            )
        )

    def fail(self, data: st.DataObject, is_retryable: bool) -> None:
        step = self.some_step(data)
        if self.running.pop(step, None) is not None and is_retryable:
            self.waiting[step] = self.arrivals[step]
        self.feed(StepFailed(step=step, reason="reset", is_retryable=is_retryable))

    def cancel(self, data: st.DataObject) -> None:
        step = self.some_step(data)
        self.running.pop(step, None)
        self.waiting.pop(step, None)
        self.feed(StepCancelled(step=step, reason="client"))

    def tool(self, program: Any, call: Any, is_end: bool) -> None:
        kind = ToolFinished if is_end else ToolStarted
        self.feed(kind(program=program, call_id=call, tool=ToolName("bash")))

    def close(self, program: Any) -> None:
        self.feed(ProgramClosed(program=program, reason="done"))

    def report(self, engine: Any, pins: bool, models: tuple[str, ...]) -> None:
        self.models[engine] = models
        capabilities = Capabilities(pins=pins, models=models, running_max=2)
        self.feed(EngineReported(engine=engine, capabilities=capabilities, load=EngineLoad()))

    def lose(self, engine: Any) -> None:
        self.feed(EngineLost(engine=engine, reason="crash"))

    def drain(self, engine: Any, is_draining: bool) -> None:
        self.feed(EngineDrained(engine=engine, is_draining=is_draining))

    def answer_hint(self, data: st.DataObject, outcome: HintOutcome, until: int) -> None:
        known = [*self.pins, *self.warm_ups, *sorted(self.ended_pins), "unknown"]
        instant = Instant(self.now + until * SECOND) if until >= 0 else None
        pin = PinId(data.draw(st.sampled_from(known)))
        if self.warm_ups.pop(pin, None) is not None:
            self.ended_pins.add(pin)
        self.feed(HintAnswered(pin=pin, outcome=outcome, until=instant))

    def configure(self, tenant: Any, weight: float) -> None:
        self.feed(TenantConfigured(tenant=tenant, weight=weight))

    @rule(span=st.integers(0, SECOND))
    def wait(self, span: int) -> None:
        """Time passes; the host fires the timer whenever it was asked to."""
        until = self.now + span
        while (deadline := self.scheduler.next_deadline()) is not None and deadline <= until:
            self.now = deadline
            self.feed(TimerFired())
        self.now = until

    def wake_for_nothing(self) -> None:
        self.feed(TimerFired())

    def step_back(self, span: int) -> None:
        """The host's clock is behind for one event."""
        self.feed(TimerFired(), now=self.now - span)

    # Its judgement.

    def some_step(self, data: st.DataObject) -> StepId:
        """Mostly one that runs; sometimes one that waits, has ended, or never was."""
        running = list(self.running)
        others = [*self.arrivals, "nobody"]
        is_likely = bool(running) and data.draw(st.integers(0, 4)) > 0
        return StepId(data.draw(st.sampled_from(running if is_likely else others)))

    def feed(self, event: Event, *, now: int | None = None) -> tuple[Command, ...]:
        at = self.now if now is None else now
        commands = self.scheduler.handle(event, now=Instant(at))
        self.scheduler.check()
        entry = self.scheduler.latest
        assert entry is not None
        assert decode(encode(entry)) == entry
        self.journal.append(entry)
        for command in commands:
            self.judge(command)
        self.within_capacity()
        while self.yielding:
            self.make_way(self.yielding.pop())
        deadline = self.scheduler.next_deadline()
        assert deadline is None or deadline > self.now, "the timer would spin"
        return commands

    def make_way(self, step: StepId) -> None:
        """Some do at once; the others' answers have begun to reach their clients."""
        if crc32(step.encode()) % 2:
            del self.running[step]
            self.waiting[step] = self.arrivals[step]
            self.feed(StepFailed(step=step, reason="made way", is_retryable=True))

    def judge(self, command: Command) -> None:
        match command:
            case Dispatch(step=step, engine=engine):
                arrived = self.waiting.pop(step)  # one that waits, and no other
                assert step not in self.running
                assert not self.models[engine] or arrived.model in ("", *self.models[engine])
                self.running[step] = engine
                self.tried.add(step)
                self.count_bypasses(step, engine)
            case Reject(step=step):
                del self.waiting[step]
            case Pin():
                old = self.pins.get(command.pin)  # a second one means: longer, its step waits
                assert old is None or old.conversation == command.conversation
                assert command.pin not in self.ended_pins
                assert self.now < command.expires_at <= self.now + self.limits.pin_ttl_ns_max
                self.pins[command.pin] = command
            case Unpin(pin=pin, engine=engine):
                # A warm-up makes way for real work; a pin ends.
                assert (self.warm_ups.pop(pin, None) or self.pins.pop(pin).engine) == engine
                self.ended_pins.add(pin)
            case Prefetch():
                assert command.pin not in self.pins.keys() | self.warm_ups.keys() | self.ended_pins
                self.warm_ups[command.pin] = command.engine
            case Cancel(step=step):
                assert command.reason is CancelReason.YIELDED
                assert self.arrivals[step].step_class is StepClass.BATCH
                assert step in self.running
                assert self.now - self.arrived_at[step] < self.limits.wait_ns_max
                self.yielding.append(step)
            case _:
                raise AssertionError(command)

    def count_bypasses(self, dispatched: str, engine: str) -> None:
        serves = self.models[engine]
        for step, arrived in self.waiting.items():
            is_older = self.arrived_at[step] < self.arrived_at[dispatched]
            if is_older and (not serves or arrived.model in ("", *serves)):
                self.bypassed[step] += 1
                assert self.bypassed[step] <= self.limits.bypasses_max

    def within_capacity(self) -> None:
        limits = self.limits
        for engine in set(self.running.values()):
            running = [s for s, e in self.running.items() if e == engine]
            assert len(running) <= limits.running_steps_per_engine_max
        for engine in {pin.engine for pin in self.pins.values()}:
            pins = [pin for pin in self.pins.values() if pin.engine == engine]
            assert len(pins) <= limits.pins_per_engine_max
            assert sum(p.prefix.tokens for p in pins) <= limits.pinned_tokens_per_engine_max
        conversations = [pin.conversation for pin in self.pins.values()]
        assert len(conversations) == len(set(conversations))
        assert sum(s not in self.tried for s in self.waiting) <= limits.ready_steps_max

    @invariant()
    def nobody_waits_beyond_the_bound(self) -> None:
        for step in self.waiting:
            assert self.now - self.arrived_at[step] < self.limits.wait_ns_max

    @invariant()
    def host_and_scheduler_agree(self) -> None:
        statistics = self.scheduler.statistics()
        assert statistics.waiting_steps == len(self.waiting)
        assert statistics.running_steps == len(self.running)
        assert statistics.pins == len(self.pins)
        assert statistics.programs <= self.limits.programs_max
        busy = sum(account.is_busy for account in self.scheduler.tenants.values())
        assert len(self.scheduler.tenants) <= max(self.limits.tenants_max, busy + 1)

    @invariant()
    def asking_changes_nothing(self) -> None:
        """Each question, twice, about everything there is: equal answers, equal policies."""
        before = pickle.dumps(self.policies_state())
        assert self.ask_all() == self.ask_all()
        assert pickle.dumps(self.policies_state()) == before

    def policies_state(self) -> list[Any]:
        return [vars(copy.deepcopy(getattr(self.policies, point))) for point in POINTS]

    def ask_all(self) -> list[Any]:
        scheduler, policies, now = self.scheduler, self.policies, Instant(self.now)
        world = scheduler._books
        answers = []
        for step in scheduler.steps.values():
            answers.append(ask(policies.order.rank, step, world, now=now))
            answers.append(ask(policies.order.priority, step, world, now=now))
            for engine in scheduler.engines.values():
                answers.append(ask(policies.place.score, step, engine, world, now=now))
                answers.append(ask(policies.admit.admit, step, engine, world, now=now))
        for key in scheduler.tenants:
            tenant = world.tenant(key)
            answers.append(ask(policies.share.rank_tenant, tenant, world, now=now))
        for program in scheduler.programs.values() if "e0" in scheduler.engines else ():
            for conversation in program.conversations.values():
                pause = Pause(
                    program=program.program,
                    conversation=conversation.conversation,
                    tenant=program.tenant,
                    tools=conversation.tools,
                    since=now,
                    engine=EngineId("e0"),
                    prefix=Prefix(prefix=PrefixId("x"), tokens=1),
                )
                answers.append(ask(policies.pin.retain, pause, world, now=now))
                answers.append(ask(policies.prefetch.warm_at, pause, world, now=now))
        return answers

    def teardown(self) -> None:
        """Time alone serves whoever waits, and ends every pin; then it all replays."""
        if not hasattr(self, "scheduler"):
            return
        self.wait(self.limits.wait_ns_max + self.limits.pin_ttl_ns_max)
        assert not self.waiting
        assert not self.pins
        again = Scheduler(policies=make_set(self.makers), limits=self.limits)
        for entry in self.journal:
            assert again.handle(entry.event, now=entry.now) == entry.commands


def ask(question: Callable[..., Any], *about: Any, now: Instant) -> Any:
    try:
        return question(*about, now=now)
    except RuntimeError as error:
        return str(error)


TestScheduler = pytest.mark.timeout(600)(pytest.mark.slow(Host.TestCase))
TestScheduler.settings = settings(max_examples=60, stateful_step_count=50)
