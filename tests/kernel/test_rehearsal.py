"""The dry run decides what the real turn then decides, and leaves no trace."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthand import answered, arrived, finished, prefix, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler, encode
from agentsched.model import (
    Choice,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    Instant,
    Limits,
    ProgramId,
    Reject,
    RejectReason,
    StepArrived,
    StepId,
    StepStarted,
    seconds,
)


def asked(number: int, program: int, tokens: int, **more: Any) -> StepArrived:
    """A step of one of many programs of two tenants, which share a system prompt."""
    return arrived(
        f"s{number}",
        f"p{program}",
        conversation=f"p{program}#0",
        tenant=f"t{program % 2}",
        tokens=tokens,
        prefixes=(prefix("system", 50), prefix(f"{program}:{tokens}", tokens)),
        **more,
    )


def made(profile: str, limits: Limits | None = None, **choices: Choice) -> Scheduler:
    config = SchedulerConfig(profile=profile, limits=limits or Limits(), choices=choices)
    scheduler = build_scheduler(config)
    for name in "ab":
        scheduler.handle(reported(name, kv_tokens=2_000, prefix_cache=True), now=Instant(0))
    return scheduler


ACTIONS = st.lists(
    st.tuples(st.sampled_from("asf"), st.integers(0, 5), st.integers(60, 1_500)), max_size=30
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    profile=st.sampled_from(["passthrough", "fcfs", "agentsched", "thunderagent"]), actions=ACTIONS
)
def test_the_turn_is_as_it_was_planned(profile: str, actions: list[tuple[str, int, int]]) -> None:
    scheduler, twin = made(profile), made(profile)
    now = Instant(0)
    running: list[str] = []
    for number, (verb, program, tokens) in enumerate(actions):
        now = Instant(now + 10_000_000)
        event: Event
        if verb == "a" or not running:
            event = asked(number, program, tokens)
        elif verb == "s":
            event = StepStarted(step=StepId(running[0]))
        else:
            event = finished(running.pop(0), prompt=tokens, cached=0, output=9)
        commands = scheduler.handle(event, now=now)
        running += [c.step for c in commands if isinstance(c, Dispatch)]
        probe = asked(10_000 + number, program, tokens)
        plan = scheduler.plan(probe, now=now)
        scheduler.check()
        # The twin never planned anything, and decides the same all the way.
        assert twin.handle(event, now=now) == commands
        once = pickle.dumps(plan)
        assert pickle.dumps(scheduler.plan(probe, now=now)) == once
    last = asked(99_999, 9, 400)
    plan = scheduler.plan(last, now=now)
    assert scheduler.handle(last, now=now) == plan.commands == twin.handle(last, now=now)
    assert scheduler.latest is not None
    assert twin.latest is not None
    assert encode(scheduler.latest) == encode(twin.latest)
    scheduler.check()


def test_a_step_that_would_wait_is_told_why_and_for_how_long() -> None:
    one_each = Choice(name="depth", params={"depth": 1})
    scheduler = made("fcfs", Limits(wait_ns_max=seconds(10)), admit=one_each)
    for number in range(12):
        scheduler.handle(asked(number, number, 1_400), now=Instant(number))
    plan = scheduler.plan(asked(50, 50, 1_400), now=Instant(100))
    assert plan.verdict is None
    assert plan.held_for
    assert plan.due_at == Instant(100 + seconds(10))
    assert plan.ahead <= scheduler.statistics().waiting_steps
    assert {outlook.engine for outlook in plan.engines} == {"a", "b"}
    assert all(outlook.missing_tokens > 0 for outlook in plan.engines)
    assert all(outlook.prefill_ns > 0 for outlook in plan.engines)


@pytest.mark.parametrize(("prompt", "missing"), [(500, 91), (300, 0)])
def test_where_a_conversation_lives_only_what_is_new_is_missing(prompt: int, missing: int) -> None:
    """Also of a prompt that was cut since, which names no beginning that was there before."""
    scheduler = made("fcfs")
    scheduler.handle(asked(1, 1, 400), now=Instant(1))
    scheduler.handle(finished("s1", prompt=400, output=9), now=Instant(2))
    plan = scheduler.plan(asked(2, 1, prompt), now=Instant(3))
    assert [(o.engine, o.missing_tokens) for o in plan.engines] == [("a", missing), ("b", prompt)]


def test_a_step_that_would_be_turned_away() -> None:
    scheduler = made("fcfs", Limits(ready_steps_max=1, running_steps_per_engine_max=1))
    for number in range(3):
        scheduler.handle(asked(number, number, 100), now=Instant(number))
    plan = scheduler.plan(asked(9, 9, 100), now=Instant(9))
    assert isinstance(plan.verdict, Reject)
    assert plan.verdict.reason is RejectReason.QUEUE_FULL


def test_a_live_step_is_not_planned_twice() -> None:
    scheduler = made("fcfs")
    scheduler.handle(asked(1, 1, 100), now=Instant(1))
    plan = scheduler.plan(asked(1, 1, 100), now=Instant(2))
    assert plan.verdict is None


def test_engines_that_do_not_serve_the_model_are_no_outlook() -> None:
    scheduler = made("fcfs")
    scheduler.handle(reported("c", kv_tokens=2_000, models=("large",)), now=Instant(1))
    plan = scheduler.plan(asked(1, 1, 100, model="large"), now=Instant(2))
    assert isinstance(plan.verdict, Dispatch)
    outlooks = {outlook.engine for outlook in plan.engines}
    assert "c" in outlooks
    small = scheduler.plan(asked(1, 1, 100, model="small"), now=Instant(2))
    assert "c" not in {outlook.engine for outlook in small.engines}


def test_idle_programs_whose_memory_is_gone_are_shared_with_the_dry_run() -> None:
    """They can be reached by nothing, so they need no copy; and nothing of them changes."""
    scheduler = made("fcfs")
    for number in (1, 2):
        scheduler.handle(asked(number, number, 1_500), now=Instant(number))
        scheduler.handle(finished(f"s{number}", prompt=1_500, output=9), now=Instant(number))
    scheduler.handle(EngineLost(engine=EngineId("a"), reason="crash"), now=Instant(3))
    scheduler.handle(EngineLost(engine=EngineId("b"), reason="crash"), now=Instant(3))
    idle = scheduler.programs[ProgramId("p1")]
    assert not any(c.is_resident for c in idle.conversations.values())
    before = pickle.dumps(idle)
    plan = scheduler.plan(asked(9, 9, 100), now=Instant(4))
    assert plan.verdict is None
    assert scheduler.programs[ProgramId("p1")] is idle
    assert pickle.dumps(idle) == before
    scheduler.check()


def test_a_planned_sub_program_is_no_child_of_its_parent() -> None:
    """Its parent is idle and its memory gone; its next step looks at the children that it has."""
    scheduler = made("agentsched")
    boss, kid = ProgramId("p1"), ProgramId("p2")
    scheduler.handle(asked(1, 1, 100), now=Instant(1))
    scheduler.handle(answered("s1", prompt=100, output=9), now=Instant(2))
    for name in "ab":
        scheduler.handle(EngineLost(engine=EngineId(name), reason="crash"), now=Instant(3))
        scheduler.handle(reported(name, kv_tokens=2_000), now=Instant(4))
    plan = scheduler.plan(asked(2, 2, 100, parent=boss), now=Instant(5))
    assert isinstance(plan.verdict, Dispatch)
    assert not scheduler.programs[boss].children
    assert kid not in scheduler.programs
    assert scheduler.handle(asked(3, 1, 120), now=Instant(6))
    scheduler.check()


def test_what_a_dry_run_would_do_is_no_part_of_any_story() -> None:
    scheduler = made("agentsched")
    scheduler.handle(asked(1, 1, 100), now=Instant(1))
    scheduler.handle(answered("s1", prompt=100, output=9), now=Instant(2))
    before = scheduler.story(ProgramId("p1"))
    assert isinstance(scheduler.plan(asked(2, 1, 120), now=Instant(3)).verdict, Dispatch)
    assert scheduler.story(ProgramId("p1")) == before
    scheduler.handle(asked(2, 1, 120), now=Instant(4))
    assert len(scheduler.story(ProgramId("p1"))) == len(before) + 1


def test_a_policy_that_is_told_of_newcomers_plans_as_if_it_had_been() -> None:
    scheduler = made("thunderagent")
    assert isinstance(scheduler.plan(asked(0, 0, 1_500), now=Instant(1)).verdict, Dispatch)
    for number in range(4):  # two on each engine: by its count there is no room
        assert scheduler.handle(asked(number, number, 1_500), now=Instant(1 + number))
    newcomer = asked(4, 4, 1_500)
    plan = scheduler.plan(newcomer, now=Instant(5))
    assert (plan.verdict, plan.held_for) == (None, "paused")
    assert scheduler.handle(newcomer, now=Instant(5)) == ()


def test_a_program_that_is_to_pause_at_its_next_step_is_planned_to() -> None:
    scheduler = made("thunderagent")
    for number in range(4):
        scheduler.handle(asked(number, number, 1_500), now=Instant(1 + number))
    # Two are one too many on each engine: so the tick finds, and marks the first.
    scheduler.handle(StepStarted(step=StepId("s0")), now=Instant(seconds(5)))
    scheduler.handle(answered("s0", prompt=1_500), now=Instant(seconds(6)))
    step = asked(5, 0, 1_550)
    plan = scheduler.plan(step, now=Instant(seconds(7)))
    assert (plan.verdict, plan.held_for) == (None, "paused")
    assert scheduler.handle(step, now=Instant(seconds(7))) == ()
