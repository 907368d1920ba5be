"""Other policies and limits at run time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from shorthand import answered, arrived, finished, prefix, reported, tool_call

from agentsched.compose import SchedulerConfig, build_scheduler, choices_of
from agentsched.kernel import Scheduler
from agentsched.kernel.briefing import briefing
from agentsched.model import (
    SECOND,
    Choice,
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLost,
    EngineReported,
    Event,
    Instant,
    Limits,
    Lineage,
    Prefetch,
    ProgramId,
    ProgramOpened,
    Reconfigured,
    StepArrived,
    StepCancelled,
    StepFinished,
    StepId,
    StepStarted,
    TenantId,
    TimerFired,
    Unpin,
    UnpinReason,
    seconds,
)
from agentsched.policy import Held
from agentsched_policies.live_programs import LivePrograms
from agentsched_policies.pauses import PauseWatch
from agentsched_policies.usual_ends import Kind

ONE_AT_A_TIME = {"admit": Choice(name="depth", params={"depth": 1})}


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = build_scheduler(SchedulerConfig(profile="fcfs", choices=ONE_AT_A_TIME))
    made.handle(reported(kv_tokens=100_000), now=Instant(0))
    yield made
    made.check()


def first(name: str, program: str = "") -> StepArrived:
    """The first step of a program, of its own unless it is named."""
    return arrived(name, program or f"p-{name}", tokens=100)


def changed(
    profile: str, choices: Mapping[str, Choice] | None = None, limits: Limits | None = None
) -> Reconfigured:
    config = SchedulerConfig(profile=profile, choices=choices or {})
    return Reconfigured(profile=profile, choices=choices_of(config), limits=limits)


def dispatched(commands: tuple[object, ...]) -> list[str]:
    return [c.step for c in commands if isinstance(c, Dispatch)]


def test_what_waits_is_decided_by_the_new_policies_at_once(scheduler: Scheduler) -> None:
    for n, name in enumerate("abc"):
        scheduler.handle(first(name), now=Instant(n + 1))
    assert scheduler.statistics().waiting_steps == 2
    commands = scheduler.handle(changed("passthrough"), now=Instant(9))
    assert dispatched(commands) == ["b", "c"]
    assert scheduler.policies.profile == "passthrough"
    assert scheduler.policies.names["admit"] == "open"


def test_a_policy_that_stays_keeps_what_it_learnt(scheduler: Scheduler) -> None:
    before = scheduler.policies
    other = {"admit": Choice(name="depth", params={"depth": 2})}
    scheduler.handle(changed("fcfs", other), now=Instant(1))
    after = scheduler.policies
    assert after.order is before.order
    assert after.place is before.place
    assert after.admit is not before.admit


def test_unknown_policies_change_nothing(scheduler: Scheduler) -> None:
    before = scheduler.policies
    wrong = {**choices_of(SchedulerConfig(profile="fcfs")), "order": Choice(name="nonsense")}
    assert not scheduler.handle(Reconfigured(profile="x", choices=wrong), now=Instant(1))
    assert scheduler.policies is before
    assert scheduler.statistics().ignored_total == 1


def test_a_tighter_bound_holds_for_those_that_wait_already(scheduler: Scheduler) -> None:
    scheduler.handle(first("a"), now=Instant(1))
    scheduler.handle(first("b"), now=Instant(2))
    limits = Limits(wait_ns_max=seconds(1))
    assert not scheduler.handle(changed("fcfs", ONE_AT_A_TIME, limits), now=Instant(3))
    assert scheduler.next_deadline() == Instant(2 + seconds(1))
    commands = scheduler.handle(first("c"), now=Instant(3 + seconds(1)))
    assert dispatched(commands) == ["b"]


def test_the_briefing_retells_the_present(scheduler: Scheduler) -> None:
    scheduler.handle(first("a1", "a"), now=Instant(1))
    scheduler.handle(StepStarted(step=StepId("a1")), now=Instant(2))
    scheduler.handle(finished("a1", tool_call("c"), prompt=100, output=20), now=Instant(3))
    scheduler.handle(first("b1", "b"), now=Instant(4))
    told = list(briefing(scheduler._books))
    assert [at for _, at in told] == sorted(at for _, at in told)
    kinds = [type(event).__name__ for event, _ in told]
    assert kinds.count("EngineReported") == 1
    assert kinds.count("ProgramOpened") == 2
    ended = [e for e, _ in told if isinstance(e, StepFinished)]
    assert [e.usage.prompt_tokens for e in ended] == [120]
    assert not ended[0].is_last_word
    live = [e for e, _ in told if isinstance(e, StepArrived) and e.step == "b1"]
    assert len(live) == 1
    # It can be told to a scheduler, which then knows the same programs.
    other = build_scheduler(SchedulerConfig(profile="passthrough"))
    events: list[tuple[Event, Instant]] = told
    for event, at in events:
        other.handle(event, now=at)
    assert set(other.programs) == {"a", "b"}
    other.check()


def test_the_briefing_tells_which_tools_are_waited_for(scheduler: Scheduler) -> None:
    scheduler.handle(first("a1", "a"), now=Instant(1))
    scheduler.handle(answered("a1", prompt=100), now=Instant(2))
    scheduler.handle(first("b1", "b"), now=Instant(3))
    scheduler.handle(answered("b1", prompt=100, is_last=True), now=Instant(4))
    scheduler.handle(first("c1", "c"), now=Instant(5))
    scheduler.handle(answered("c1", prompt=100), now=Instant(6))
    scheduler.handle(first("c2", "c"), now=Instant(7))
    told = list(briefing(scheduler._books))
    calls = {e.step: e.tool_calls for e, _ in told if isinstance(e, StepFinished)}
    assert calls == {"briefing-a": (tool_call("a1"),), "briefing-b": (), "briefing-c": ()}
    # So its return is a return from that tool to whoever was told.
    watch = PauseWatch()
    for event, at in told:
        watch.observe(event, now=at)
    gap = watch.observe(first("a2", "a"), now=Instant(9))
    assert gap is not None
    assert (gap.tool, gap.span) == ("bash", 7)


def test_the_briefing_tells_what_runs_and_leaves_out_engines_that_are_gone(
    scheduler: Scheduler,
) -> None:
    scheduler.handle(first("a1", "a"), now=Instant(1))
    scheduler.handle(StepStarted(step=StepId("a1")), now=Instant(2))
    told = list(briefing(scheduler._books))
    assert (StepStarted(step=StepId("a1")), Instant(2)) in told
    engines = [e.engine for e, _ in told if isinstance(e, EngineReported)]
    assert len(engines) == 1
    scheduler.handle(EngineLost(engine=engines[0], reason="crash"), now=Instant(3))
    later = [event for event, _ in briefing(scheduler._books)]
    assert not any(isinstance(event, EngineReported) for event in later)
    assert any(isinstance(event, StepArrived) for event in later)


@pytest.mark.parametrize("is_lasting", [True, False])
def test_the_briefing_tells_which_engines_are_drained(
    scheduler: Scheduler, *, is_lasting: bool
) -> None:
    drained = EngineDrained(engine=EngineId("e"), is_draining=True, is_lasting=is_lasting)
    scheduler.handle(drained, now=Instant(1))
    report, *others = [event for event, _ in briefing(scheduler._books)]
    assert isinstance(report, EngineReported)
    assert others == [drained]


def test_a_placement_that_takes_over_waits_for_no_quantum_of_a_drained_engine(
    scheduler: Scheduler,
) -> None:
    scheduler.handle(reported("e2", kv_tokens=100_000), now=Instant(1))
    scheduler.handle(EngineDrained(engine=EngineId("e2"), is_draining=True), now=Instant(2))
    choices = {"place": Choice(name="dlpm", params={"quantum": 40})}
    scheduler.handle(changed("fcfs", choices), now=Instant(3))
    assert dispatched(scheduler.handle(first("a"), now=Instant(4))) == ["a"]
    used = scheduler.policies.place._used.get(TenantId("t"))  # type: ignore[attr-defined]
    assert used == {"e": 20.0}  # of 100 tokens, with its quantum given again twice


def test_lower_budgets_end_the_pins_that_have_no_room_any_more(scheduler: Scheduler) -> None:
    points = {"pin": Choice(name="fixed", params={"ttl_s": 1_000.0})}
    scheduler.handle(reported(kv_tokens=1_000, pins=True), now=Instant(0))
    scheduler.handle(changed("passthrough", points), now=Instant(1))
    for number in range(6):
        program = f"p{number}"
        arrival = arrived(program, program, tokens=200, prefixes=(prefix(program, 200),))
        scheduler.handle(arrival, now=Instant(10 * number + 10))
        scheduler.handle(answered(program, prompt=190, output=10), now=Instant(10 * number + 15))
    pins = scheduler.statistics().pins
    assert pins > 3

    def limited(**limits: int) -> list[UnpinReason]:
        event = changed("passthrough", points, Limits(**limits))  # type: ignore[arg-type]
        commands = scheduler.handle(event, now=Instant(99))
        scheduler.check()
        return [command.reason for command in commands if isinstance(command, Unpin)]

    assert limited(pinned_tokens_per_engine_max=600) == [UnpinReason.BUDGET] * (pins - 3)
    assert limited(pins_per_engine_max=1) == [UnpinReason.BUDGET] * 2
    assert limited() == []
    assert scheduler.statistics().pins == 1


def test_a_policy_that_takes_over_does_not_take_programs_for_ended_at_once(
    scheduler: Scheduler,
) -> None:
    """It learns how long they take from what it is told, and lets newcomers in by that."""
    scheduler.handle(changed("passthrough"), now=Instant(0))
    for number in range(80):
        begun, program = 20 * number * SECOND, f"p{number}"
        scheduler.handle(first(program), now=Instant(begun))
        scheduler.handle(answered(program, prompt=90), now=Instant(begun + SECOND))
        again = arrived(f"{program}/2", f"p-{program}", tokens=200, lineage=Lineage.EXTENDS)
        scheduler.handle(again, now=Instant(begun + 5 * SECOND))
        end = Instant(begun + 10 * SECOND)
        scheduler.handle(answered(f"{program}/2", is_last=True, prompt=190), now=end)
    commands = scheduler.handle(changed("agentsched"), now=Instant(1_600 * SECOND))
    assert not commands
    live: LivePrograms = scheduler.policies.admit._live  # type: ignore[attr-defined]
    assert live.ends._all.took_ns == pytest.approx(10 * SECOND)
    assert live.ends.chance_of_more(Kind(TenantId("t"), "")) >= 0.5  # agents are no questions


@pytest.mark.parametrize("is_replaced", [True, False])
def test_warm_ups_are_those_of_the_policy_in_force(rig: Any, *, is_replaced: bool) -> None:
    rig.policy.warm = lambda pause: Instant(10 * SECOND)
    rig.engine(pins=False)
    rig.arrive("a", at=0)
    rig.finish("a", tools={"call": "bash"}, at=1)
    new = type(rig.policy)() if is_replaced else rig.policy
    rig.scheduler._remake = lambda *_: new.as_set()
    rig.push(Reconfigured(profile="other", choices={}), at=2)
    warmed = [c for c in rig.push(TimerFired(), at=11) if isinstance(c, Prefetch)]
    assert len(warmed) == (not is_replaced)


def test_a_retry_keeps_its_place_under_other_limits(rig: Any) -> None:
    """Of a bound of 60 s it may find 50 used up: the 10 of an engine's absence are left to it."""
    rig.scheduler._remake = lambda *_: rig.policy.as_set()
    limits = Limits(wait_ns_max=seconds(60), engine_wait_ns_max=seconds(10))
    rig.push(Reconfigured(profile="other", choices={}, limits=limits), at=0)
    rig.policy.admission = lambda step, engine: Held(reason="not yet")
    rig.engine()
    rig.arrive("first", at=0)
    for again, former, time_s, counts_from_s in (
        ("second", "first", 30, 0),
        ("third", "second", 58, 8),
    ):
        rig.push(StepCancelled(step=StepId(former), reason="client went away"), at=time_s)
        rig.arrive(again, at=time_s, retries=StepId(former))
        assert rig.scheduler.steps[StepId(again)].arrived_at == counts_from_s * SECOND


def test_the_briefing_begins_with_the_engines(scheduler: Scheduler) -> None:
    """At its first instant, whatever is told at that: time never steps back in it."""
    assert [at for _, at in briefing(scheduler._books)] == [0]
    for number, program in enumerate(("p", "q")):
        opened = ProgramOpened(program=ProgramId(program), tenant=TenantId("t"))
        scheduler.handle(opened, now=Instant(7 + number))
        told = [(type(event).__name__, at) for event, at in briefing(scheduler._books)]
        assert told == [
            ("EngineReported", 7),
            ("ProgramOpened", 7),
            *[("ProgramOpened", 8)] * number,
        ]
