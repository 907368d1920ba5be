"""When each prefetch policy warms, by hand; and what holds for all of them in the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shorthand import arrived, finished, prefix, tool_call

from agentsched.model import (
    SECOND,
    CallId,
    Capabilities,
    Command,
    ConversationId,
    EngineId,
    HintAnswered,
    HintOutcome,
    Instant,
    Nanos,
    Prefetch,
    Prefix,
    ProgramId,
    StepArrived,
    StepId,
    StepStarted,
    TenantId,
    TimerFired,
    ToolFinished,
    ToolName,
    ToolStarted,
    Unpin,
    seconds,
)
from agentsched.policy import Choice
from agentsched_policies.prefetch.kvflow import KvFlow
from agentsched_policies.prefetch.never import Never
from agentsched_policies.prefetch.saga import Saga
from agentsched_policies.prefetch.value import Value

ENGINE, PROGRAM, TALK = EngineId("e1"), ProgramId("p"), ConversationId("c")
TENANT = TenantId("t")
WHOLE = prefix("all", 2_000)
NOW = Instant(100 * SECOND)


@dataclass
class Spread:
    """Returns evenly between two instants from now, in seconds."""

    first_s: float
    last_s: float
    has_skill: bool = True
    is_certain: bool = True

    def chances(self, spans: Sequence[Nanos]) -> list[float]:
        width = (self.last_s - self.first_s) * SECOND
        return [min(1.0, max(0.0, (s - self.first_s * SECOND) / width)) for s in spans]

    def probability_within(self, span: Nanos) -> float:
        return self.chances([span])[0]

    def quantile(self, share: float) -> Nanos | None:
        middle = self.first_s + share * (self.last_s - self.first_s)
        return seconds(middle) if self.is_certain else None


@dataclass
class Graph:
    returning: Spread | None = None
    likely: tuple[tuple[str, float], ...] = ()

    def returns(self, conversation: Any, *, now: Any) -> Spread | None:
        return self.returning

    def next_tools(self, conversation: Any) -> Any:
        return self.likely


@dataclass
class Talk:
    is_over: bool = False
    is_resident: bool = False


@dataclass
class Program:
    conversations: dict[Any, Talk]


@dataclass
class Engine:
    reload_ns: float = 1e6  # a thousand tokens a second
    warm_paid: float = 1.0
    is_up: bool = True
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(kv_tokens=10_000, prefix_cache=True)
    )

    def reload(self, tokens: int) -> Nanos:
        return Nanos(round(tokens * self.reload_ns))


@dataclass
class World:
    talk: Talk | None = field(default_factory=Talk)
    outlook: Graph | None = field(default_factory=Graph)
    engine: Engine = field(default_factory=Engine)

    @property
    def programs(self) -> dict[Any, Program]:
        return {} if self.talk is None else {PROGRAM: Program({TALK: self.talk})}

    @property
    def engines(self) -> dict[Any, Engine]:
        return {ENGINE: self.engine}

    def graph(self, program: Any) -> Graph | None:
        return self.outlook


@dataclass
class Pause:
    tools: dict[Any, Any] = field(default_factory=lambda: {CallId("k"): ToolName("bash")})
    program: ProgramId = PROGRAM
    conversation: ConversationId = TALK
    tenant: TenantId = TENANT
    since: Instant = NOW
    engine: EngineId = ENGINE
    prefix: Prefix = WHOLE


def at(policy: Any, world: World, pause: Pause | None = None) -> float | None:
    """Seconds from now until the warm-up; asked twice, because asking must change nothing."""
    answers = [policy.warm_at(pause or Pause(), world, now=NOW) for _ in range(2)]
    assert answers[0] == answers[1]
    return None if answers[0] is None else (answers[0] - NOW) / SECOND


def ended(call: str) -> ToolFinished:
    return ToolFinished(program=PROGRAM, call_id=CallId(call), tool=ToolName("bash"))


def test_never_warms_nothing() -> None:
    assert at(Never(), World()) is None


@pytest.mark.parametrize("policy", [KvFlow(), Saga()], ids=["kvflow", "saga"])
def test_published_policies_warm_at_once_what_was_evicted_and_runs_next(policy: Any) -> None:
    assert at(policy, World()) == 0
    assert at(policy, World(outlook=None)) == 0
    assert at(policy, World(talk=None)) is None
    assert at(policy, World(talk=Talk(is_resident=True))) is None
    assert at(policy, World(talk=Talk(is_over=True))) is None
    assert at(policy, World(), Pause(tools={})) is None


def test_saga_follows_no_edge_into_the_end() -> None:
    def after(*likely: tuple[str, float]) -> float | None:
        return at(Saga(confidence=0.7), World(outlook=Graph(likely=likely)))

    assert after(("(end)", 0.7), ("bash", 0.3)) is None
    assert after(("(end)", 0.69), ("bash", 0.31)) == 0
    assert after(("bash", 0.9), ("(end)", 0.1)) == 0


@pytest.mark.parametrize("confidence", [-0.1, 1.1])
def test_saga_takes_shares_only(confidence: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Saga(confidence=confidence)


def test_value_warms_at_once_when_every_tool_has_ended() -> None:
    policy, pause = Value(), Pause(tools={CallId("k"): "bash", CallId("m"): "read"})
    assert at(policy, World(), pause) is None  # nobody says when it comes back
    policy.observe(ended("k"), now=NOW)
    assert at(policy, World(), pause) is None
    policy.observe(ended("m"), now=NOW)
    assert at(policy, World(), pause) == 0
    back = arrived("s", PROGRAM, conversation=TALK, answers=(CallId("k"), CallId("m")))
    policy.observe(back, now=NOW)
    assert at(policy, World(), pause) is None


def test_a_call_that_begins_again_has_not_ended() -> None:
    """By whatever name it was told before."""
    policy = Value()
    policy.observe(ended("k"), now=NOW)
    assert at(policy, World()) == 0
    begun = ToolStarted(program=PROGRAM, call_id=CallId("k"), tool=ToolName("bash"))
    policy.observe(begun, now=NOW)
    assert at(policy, World()) is None


def test_value_warms_a_reload_before_the_middle_of_a_skilled_forecast() -> None:
    # 2,000 tokens take 2 s. The middle is at 10 s, so it begins at 8; all of 9 to 11 s lies within
    # the eight seconds that follow, so the chance is 1.
    assert at(Value(), World(outlook=Graph(Spread(9, 11)))) == 8
    # Sooner than a reload takes: at once.
    assert at(Value(), World(outlook=Graph(Spread(1, 2)))) == 0
    for returning in (
        None,
        Spread(9, 11, has_skill=False),
        Spread(9, 11, is_certain=False),
    ):
        assert at(Value(), World(outlook=Graph(returning))) is None
    assert at(Value(), World(outlook=Graph(Spread(9, 11))), Pause(tools={})) is None
    assert at(Value(), World(outlook=None)) is None


def test_value_weighs_the_chance_that_it_is_still_there_against_the_price() -> None:
    # Between 0 and 100 s: begins at 48, and 8 of the 52 s that are left are covered, 0.154.
    wide = World(outlook=Graph(Spread(0, 100)))
    assert at(Value(price=0.15), wide) == 48
    assert at(Value(price=0.16), wide) is None
    # Twice the survival covers 16 of 52.
    assert at(Value(price=0.30, survival=8.0), wide) == 48
    assert at(Value(price=0.31, survival=8.0), wide) is None
    # Half of what was warmed was of use: half the worth.
    wide.engine.warm_paid = 0.5
    assert at(Value(price=0.07), wide) == 48
    assert at(Value(price=0.08), wide) is None


def test_value_leaves_alone_what_cannot_pay() -> None:
    policy = Value(tokens_min=256, paid_min=0.2)
    policy.observe(ended("k"), now=NOW)
    assert at(policy, World()) == 0

    def on(**capabilities: Any) -> World:
        return World(engine=Engine(capabilities=Capabilities(**capabilities)))

    assert at(policy, on(kv_tokens=None, prefix_cache=True)) is None
    assert at(policy, on(kv_tokens=10_000, prefix_cache=False)) is None
    assert at(policy, World(engine=Engine(warm_paid=0.19))) is None
    assert at(policy, World(engine=Engine(warm_paid=0.2))) == 0
    for tokens, expected in ((255, None), (256, 0)):
        assert at(policy, World(), Pause(prefix=prefix("short", tokens))) == expected
    assert at(policy, World(talk=Talk(is_resident=True))) is None
    assert at(policy, World(talk=Talk(is_over=True))) is None
    assert at(policy, World(talk=None)) is None


def touching(**params: Any) -> Value:
    """One that touches after half a turnover. 100,000 computed tokens of late: a turnover of the
    pool of 10,000 takes 30 s, so what pauses now is dropped in 30 s, and touched in 15.
    """
    policy = Value(touch=0.5, **params)
    policy.observe(finished("s", prompt=100_000, cached=0, output=0), now=NOW)
    return policy


@pytest.mark.parametrize(
    ("first_s", "last_s", "expected"),
    [
        (30, 45, 15),  # after it would be dropped, and before it is dropped all the same
        (0, 30, None),  # it is back before
        (45, 60, None),  # too late for one touch
        (0, 150, None),  # 0.1 of what is left: not worth it
    ],
)
def test_value_touches_what_would_be_dropped_before_it_is_back(
    first_s: float, last_s: float, expected: float | None
) -> None:
    cached = World(talk=Talk(is_resident=True), outlook=Graph(Spread(first_s, last_s)))
    assert at(touching(), cached) == expected
    assert at(Value(), cached) is None  # unless it is asked to, it leaves alone what is cached


def test_value_touches_by_the_price_of_all_warm_ups() -> None:
    cached = World(talk=Talk(is_resident=True), outlook=Graph(Spread(0, 150)))
    assert at(touching(price=0.12), cached) == 15  # 15 of the 120 s that are left
    assert at(touching(price=0.13), cached) is None
    cached.engine.warm_paid = 0.5
    assert at(touching(price=0.12), cached) is None
    assert at(touching(price=0.06), cached) == 15


def test_value_touches_nothing_that_it_knows_too_little_of() -> None:
    def touched(returning: Spread | None, pause: Pause | None = None, **talk: Any) -> float | None:
        world = World(talk=Talk(is_resident=True, **talk), outlook=Graph(returning))
        return at(touching(), world, pause)

    certain = Spread(31, 44)
    assert touched(certain) == 15
    assert touched(None) is None
    assert touched(Spread(31, 44, has_skill=False)) is None
    assert touched(certain, Pause(tools={})) is None
    assert touched(certain, is_over=True) is None
    assert touched(certain, Pause(prefix=prefix("short", 255))) is None
    # Of one that paused 20 s ago the place in the LRU is past half a turnover.
    assert touched(certain, Pause(since=Instant(NOW - 20 * SECOND))) is None
    # What was evicted is warmed as ever.
    evicted = World(outlook=Graph(Spread(9, 11)))
    assert at(touching(), evicted) == 8


def test_value_forgets_the_oldest_ended_tools() -> None:
    policy = Value()
    policy.observe(ended("k"), now=NOW)
    for number in range(10_000):
        policy.observe(ended(f"other-{number}"), now=NOW)
    assert at(policy, World()) is None


@pytest.mark.parametrize(
    "wrong", [{"price": -1.0}, {"tokens_min": -1}, {"paid_min": -0.1}, {"survival": 0.0}]
)
def test_value_refuses_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Value(**wrong)


@pytest.mark.parametrize("touch", [-0.1, 1.0])
def test_value_touches_after_a_share_of_a_turnover(touch: float) -> None:
    with pytest.raises(ValueError, match="share of a turnover"):
        Value(touch=touch)


# Laws, in the scheduler with its own books: whatever the policy answers, the kernel keeps them.

TENANTS = 2
ACTS = st.tuples(
    st.sampled_from(["arrive", "start", "finish", "end", "tool", "answer", "fail", "wait"]),
    st.integers(0, 5),
)


class Course:
    """Six programs of two tenants whose contexts, 4,000 tokens each, do not fit into 10,000."""

    def __init__(self, floor: Any) -> None:
        self.floor = floor
        self.counts = [0] * 6
        self.live: dict[int, str] = {}
        #: Warm-ups under way, by id.
        self.under_way: dict[str, Prefetch] = {}
        self.ended: set[str] = set()
        self.issued = self.cancelled = 0

    def act(self, what: str, number: int) -> None:
        at = self.floor.now + 0.25
        event = self._event(what, number) or TimerFired()
        held = {t.conversation for t in self.floor.world.resident(ENGINE)}
        # Past `feed`, which asks every policy everything twice: that is tested elsewhere.
        self.floor.now = at
        commands = self.floor.scheduler.handle(event, now=Instant(round(at * SECOND)))
        self.floor.scheduler.check()
        self.take(commands, held=held, event=event)
        self.check()

    def _event(self, what: str, number: int) -> Any:
        step = self.live.get(number)
        if what == "arrive" and step is None:
            self.counts[number] += 1
            self.live[number] = f"s{number}.{self.counts[number]}"
            return arrived(
                self.live[number],
                f"p{number}",
                conversation=f"c{number}",
                tenant=f"t{number % TENANTS}",
                tokens=4_000,
                prefixes=(prefix(f"c{number}", 4_000),),
                answers=(CallId(f"k{number}.{self.counts[number] - 1}"),),
            )
        if what == "start" and step is not None:
            return StepStarted(step=StepId(step))
        if what in ("finish", "end") and step is not None:
            del self.live[number]
            calls = [] if what == "end" else [tool_call(f"k{number}.{self.counts[number]}")]
            return finished(step, *calls, prompt=4_000, cached=number * 500, output=10)
        if what == "tool" and step is None and self.counts[number]:
            call = CallId(f"k{number}.{self.counts[number]}")
            program = ProgramId(f"p{number}")
            return ToolFinished(program=program, call_id=call, tool=ToolName("bash"))
        if what in ("answer", "fail") and self.under_way:
            pin = next(iter(self.under_way))
            outcome = HintOutcome.ACCEPTED if what == "answer" else HintOutcome.FAILED
            self.ended.add(pin)
            return HintAnswered(pin=self.under_way.pop(pin).pin, outcome=outcome)
        return None

    def take(self, commands: Sequence[Command], *, held: set[Any], event: Any) -> None:
        for command in commands:
            if isinstance(command, Prefetch):
                # A turn may let go of a conversation and plan for it; it never warms one that was
                # held before and is held now.
                now_held = {t.conversation for t in self.floor.world.resident(ENGINE)}
                assert command.conversation not in held & now_held
                assert command.pin not in self.ended
                self.under_way[command.pin] = command
                self.issued += command.prefix.tokens
            elif isinstance(command, Unpin):
                gone = self.under_way.pop(command.pin)  # exactly once, and only what is under way
                self.ended.add(command.pin)
                self.cancelled += gone.prefix.tokens
        if isinstance(event, StepArrived) and event.step in self._running():
            # Real work: nothing that was under way before it was sent goes on.
            assert not self.under_way

    def _running(self) -> set[Any]:
        steps = self.floor.scheduler.steps
        return {key for key, step in steps.items() if step.dispatched_at is not None}

    def check(self) -> None:
        limits = self.floor.world.limits
        assert len(self.under_way) <= limits.warm_ups_per_engine_max
        account = self.floor.scheduler.warm_accounts.get(ENGINE)
        if account is None:
            assert not self.issued
            return
        assert (account.issued, account.cancelled) == (self.issued, self.cancelled)
        settled = account.hit + account.wasted + account.cancelled + account.failed
        assert account.issued >= settled


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kvflow", "saga", "value"])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(acts=st.lists(ACTS, min_size=20, max_size=60))
def test_laws_of_warm_ups(
    floor: Callable[..., Any], name: str, acts: list[tuple[str, int]]
) -> None:
    course = Course(
        floor(prefetch=Choice(name=name), capabilities={"prefix_cache": True, "warm": True})
    )
    for number in range(6):  # a floor that is contended from the beginning
        for what in ("arrive", "start", "finish"):
            course.act(what, number)
    for what, number in acts:
        course.act(what, number)


@pytest.mark.parametrize("name", ["kvflow", "saga", "value"])
def test_each_policy_does_warm_in_that_course(floor: Callable[..., Any], name: str) -> None:
    """So that the laws are about something: issued, used, wasted, stopped and failed."""
    course = Course(
        floor(prefetch=Choice(name=name), capabilities={"prefix_cache": True, "warm": True})
    )
    for _ in range(6):
        for number in (1, 2, 4, 5):
            for what in ("arrive", "start", "finish", "tool", "answer"):
                course.act(what, number)
            course.act("tool", (number + 2) % 6)
            course.act("fail", 0)
    account = course.floor.scheduler.warm_accounts[ENGINE]
    assert account.issued > 0
    assert account.hit + account.wasted + account.cancelled + account.failed > 0
