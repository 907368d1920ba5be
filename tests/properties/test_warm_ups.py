"""What a tenant's warm-ups may cost, whatever a prefetch policy asks for.

The policy of these tests wants every pause warmed, at once or at any time, again and again. From
the commands alone, as a host sees them: how many warm-ups are under way for a tenant and on an
engine, how many of its conversations are kept warm, and how many tokens were begun for it within
any minute.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from shorthand import arrived, finished, prefix, reported, tool_call

from agentsched.compose import SchedulerConfig, build_policies
from agentsched.kernel import Scheduler
from agentsched.model import (
    MINUTE,
    SECOND,
    CallId,
    EngineId,
    EngineLost,
    Event,
    HintAnswered,
    HintOutcome,
    Instant,
    Limits,
    PinId,
    Prefetch,
    ProgramClosed,
    ProgramId,
    StepId,
    TenantConfigured,
    TenantId,
    TenantLimits,
    TimerFired,
    ToolFinished,
    ToolName,
    Unpin,
)

#: Everybody begins with a copy of these.
POLICIES = build_policies(SchedulerConfig(profile="passthrough"))
BASH = ToolName("bash")
NAMES = [f"p{number}" for number in range(6)]
PROGRAMS = st.sampled_from(NAMES)
ENGINES = st.sampled_from(["e0", "e1", "e2"])


def tenant_of(program: str) -> TenantId:
    """Two tenants, of four programs and of two."""
    return TenantId("t1" if int(program[1:]) % 3 else "t2")


class Wants:
    """Every pause warmed: now, in the past, or within a second, as the conversation's name says."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def warm_at(self, pause: Any, world: Any, *, now: Instant) -> Instant:
        return Instant(now + crc32(pause.conversation.encode()) % 3 * (SECOND // 2) - SECOND // 2)


class Host(RuleBasedStateMachine):
    """Plays the world; knows nothing of the scheduler's inside."""

    @initialize(
        per_engine=st.integers(1, 4),
        per_tenant=st.integers(1, 4),
        a_minute=st.sampled_from([300, 1_000, 2_000_000]),
        own=st.sampled_from([None, None, 0, 1, 2]),
    )
    def set_up(self, per_engine: int, per_tenant: int, a_minute: int, own: int | None) -> None:
        self.limits = Limits(
            warm_ups_per_engine_max=per_engine,
            warm_ups_per_tenant_max=per_tenant,
            warm_tokens_per_tenant_a_minute_max=a_minute,
        )
        policies = replace(copy.deepcopy(POLICIES), prefetch=Wants())
        self.scheduler = Scheduler(policies=policies, limits=self.limits)
        self.now = 0
        self.steps = 0
        #: Warm-ups under way, as their commands named them.
        self.open: dict[PinId, Prefetch] = {}
        #: When so many tokens were begun, of each tenant.
        self.begun: dict[TenantId, list[tuple[int, int]]] = defaultdict(list)
        self.own = own
        self.running: dict[str, list[StepId]] = defaultdict(list)
        for engine in ("e0", "e1", "e2"):
            self.report(engine=engine)
        if own is not None:
            limits = TenantLimits(warm_max=own)
            self.feed(TenantConfigured(tenant=TenantId("t1"), limits=limits))

    def feed(self, event: Event) -> None:
        """One event; what it brought about is taken down."""
        for command in self.scheduler.handle(event, now=Instant(self.now)):
            match command:
                case Prefetch():
                    tenant = tenant_of(command.program)
                    self.begun[tenant].append((self.now, command.prefix.tokens))
                    self.open[command.pin] = command
                    self.judge(tenant)
                case Unpin():
                    self.open.pop(command.pin, None)
                case _:
                    pass
        self.scheduler.check()

    def judge(self, tenant: TenantId) -> None:
        """The bounds, at the instant at which a warm-up begins: only then can they be passed."""
        begun = [tokens for at, tokens in self.begun[tenant] if at > self.now - MINUTE]
        assert sum(begun) <= self.limits.warm_tokens_per_tenant_a_minute_max

    @invariant()
    def bounds_hold(self) -> None:
        per_tenant: dict[TenantId, int] = defaultdict(int)
        per_engine: dict[EngineId, int] = defaultdict(int)
        for warm in self.open.values():
            per_tenant[tenant_of(warm.program)] += 1
            per_engine[warm.engine] += 1
        assert max(per_tenant.values(), default=0) <= self.limits.warm_ups_per_tenant_max
        assert max(per_engine.values(), default=0) <= self.limits.warm_ups_per_engine_max
        if self.own is not None:
            assert per_tenant[TenantId("t1")] <= self.own

    @rule(engine=ENGINES)
    def report(self, engine: str) -> None:
        """An engine whose pool is of unknown size: it may always be short of memory."""
        self.feed(reported(engine, prefix_cache=True))

    @rule(engine=ENGINES)
    def lose(self, engine: str) -> None:
        self.feed(EngineLost(engine=EngineId(engine), reason="crash"))

    @rule(program=PROGRAMS, tokens=st.integers(1, 400), is_quick=st.booleans())
    def turn(self, program: str, tokens: int, is_quick: bool) -> None:
        """A step, which ends with a tool call, now or later."""
        step = StepId(f"s{self.steps}")
        self.steps += 1
        whole, tenant = prefix(f"x{step}", tokens), tenant_of(program)
        self.feed(
            arrived(
                step,
                program,
                conversation=f"{program}/main",
                tenant=tenant,
                tokens=tokens,
                prefixes=(whole,),
            )
        )
        self.running[program].append(step)
        if is_quick:
            self.finish(program=program, tokens=tokens)

    @rule(program=PROGRAMS, tokens=st.integers(1, 400))
    def finish(self, program: str, tokens: int) -> None:
        while self.running[program]:
            step, call = self.running[program].pop(), tool_call(f"k-{program}", BASH)
            self.feed(finished(step, call, prompt=tokens, cached=0, output=3))

    @rule(program=PROGRAMS)
    def tool_ends(self, program: str) -> None:
        call = CallId(f"k-{program}")
        self.feed(ToolFinished(program=ProgramId(program), call_id=call, tool=BASH))

    @rule(program=PROGRAMS)
    def close(self, program: str) -> None:
        self.feed(ProgramClosed(program=ProgramId(program), reason="done"))

    @rule(data=st.data(), outcome=st.sampled_from(HintOutcome))
    def answered(self, data: st.DataObject, outcome: HintOutcome) -> None:
        if self.open:
            pin = data.draw(st.sampled_from(sorted(self.open)))
            if outcome is not HintOutcome.CLIPPED:
                del self.open[pin]
                self.feed(HintAnswered(pin=pin, outcome=outcome))

    @rule(span=st.sampled_from([1, SECOND // 3, SECOND, 20 * SECOND, 59 * SECOND, MINUTE]))
    def time_passes(self, span: int) -> None:
        self.now += span
        self.feed(TimerFired())


TestWarmUps = pytest.mark.slow(Host.TestCase)
TestWarmUps.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def course(*, a_minute: int) -> Host:
    """A host with a bound of its own."""
    host = Host()
    host.set_up(per_engine=4, per_tenant=4, a_minute=a_minute, own=None)
    return host


def warm(host: Host, program: str, tokens: int) -> int:
    """A turn whose pause is warmed if the bounds allow it; how many tokens have been begun."""
    host.turn(program=program, tokens=tokens, is_quick=True)
    host.tool_ends(program=program)
    host.now += 2 * SECOND  # later than the policy asks for
    host.feed(TimerFired())
    for pin in list(host.open):
        del host.open[pin]
        host.feed(HintAnswered(pin=pin, outcome=HintOutcome.ACCEPTED))
    return sum(tokens for begun in host.begun.values() for _, tokens in begun)


def test_a_minute_s_tokens_are_used_up_and_come_back() -> None:
    host = course(a_minute=1_000)
    begun = [warm(host, "p1", 297) for _ in range(8)]
    # Each is of 297 and 3 of the answer. Three fit into the minute, a fourth does not.
    assert begun == [300, 600, 900, 900, 900, 900, 900, 900]
    assert warm(host, "p0", 297) == 1_200, "another tenant's are its own"
    host.now += 50 * SECOND
    # The first of them is more than a minute ago: as much as it was may be begun again.
    assert warm(host, "p1", 297) > 1_200


def test_more_than_a_minute_s_worth_is_never_begun() -> None:
    host = course(a_minute=200)
    assert warm(host, "p1", 297) == 0
    host.now += 10 * MINUTE
    assert warm(host, "p1", 297) == 0
    assert warm(host, "p1", 100) == 103


def test_a_conversation_that_went_elsewhere_ends_the_warm_up_it_left_behind() -> None:
    host = course(a_minute=1_000)
    for _ in range(6):  # two turns at the same instant, and no answer to a warm-up
        host.turn(program="p0", tokens=1, is_quick=True)
        host.bounds_hold()
    assert len(host.open) == 1
