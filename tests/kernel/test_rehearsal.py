"""The dry run decides what the real turn then decides, and leaves no trace."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler, encode
from agentsched.model import (
    Capabilities,
    Choice,
    ConversationId,
    Dispatch,
    EngineId,
    EngineLoad,
    EngineLost,
    EngineReported,
    Event,
    Instant,
    Limits,
    Prefix,
    PrefixId,
    ProgramId,
    Reject,
    RejectReason,
    StepArrived,
    StepFinished,
    StepId,
    StepStarted,
    TenantId,
    Usage,
    seconds,
)


def engine(name: str, tokens: int = 2_000) -> EngineReported:
    capabilities = Capabilities(kv_tokens=tokens, prefix_cache=True)
    return EngineReported(engine=EngineId(name), capabilities=capabilities, load=EngineLoad())


def arrived(number: int, program: int, tokens: int) -> StepArrived:
    own = Prefix(prefix=PrefixId(f"{program}:{tokens}"), tokens=tokens)
    shared = Prefix(prefix=PrefixId("system"), tokens=50)
    return StepArrived(
        step=StepId(f"s{number}"),
        program=ProgramId(f"p{program}"),
        conversation=ConversationId(f"p{program}#0"),
        tenant=TenantId(f"t{program % 2}"),
        prompt_tokens=tokens,
        prefixes=(shared, own),
    )


def made(profile: str, limits: Limits | None = None, **choices: Choice) -> Scheduler:
    config = SchedulerConfig(profile=profile, limits=limits or Limits(), choices=choices)
    scheduler = build_scheduler(config)
    scheduler.handle(engine("a"), now=Instant(0))
    scheduler.handle(engine("b"), now=Instant(0))
    return scheduler


ACTIONS = st.lists(
    st.tuples(st.sampled_from("asf"), st.integers(0, 5), st.integers(60, 1_500)), max_size=30
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(profile=st.sampled_from(["passthrough", "fcfs", "agentsched"]), actions=ACTIONS)
def test_the_turn_is_as_it_was_planned(profile: str, actions: list[tuple[str, int, int]]) -> None:
    scheduler, twin = made(profile), made(profile)
    now = Instant(0)
    running: list[str] = []
    for number, (verb, program, tokens) in enumerate(actions):
        now = Instant(now + 10_000_000)
        event: Event
        if verb == "a" or not running:
            event = arrived(number, program, tokens)
        elif verb == "s":
            event = StepStarted(step=StepId(running[0]))
        else:
            usage = Usage(prompt_tokens=tokens, cached_tokens=0, output_tokens=9)
            event = StepFinished(step=StepId(running.pop(0)), usage=usage)
        commands = scheduler.handle(event, now=now)
        running += [c.step for c in commands if isinstance(c, Dispatch)]
        probe = arrived(10_000 + number, program, tokens)
        plan = scheduler.plan(probe, now=now)
        scheduler.check()
        # The twin never planned anything, and decides the same all the way.
        assert twin.handle(event, now=now) == commands
        once = pickle.dumps(plan)
        assert pickle.dumps(scheduler.plan(probe, now=now)) == once
    last = arrived(99_999, 9, 400)
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
        scheduler.handle(arrived(number, number, 1_400), now=Instant(number))
    plan = scheduler.plan(arrived(50, 50, 1_400), now=Instant(100))
    assert plan.verdict is None
    assert plan.held_for
    assert plan.due_at == Instant(100 + seconds(10))
    assert plan.ahead <= scheduler.statistics().waiting_steps
    assert {outlook.engine for outlook in plan.engines} == {"a", "b"}
    assert all(outlook.missing_tokens > 0 for outlook in plan.engines)
    assert all(outlook.prefill_ns > 0 for outlook in plan.engines)


def test_a_step_that_would_be_turned_away() -> None:
    scheduler = made("fcfs", Limits(ready_steps_max=1, running_steps_per_engine_max=1))
    for number in range(3):
        scheduler.handle(arrived(number, number, 100), now=Instant(number))
    plan = scheduler.plan(arrived(9, 9, 100), now=Instant(9))
    assert isinstance(plan.verdict, Reject)
    assert plan.verdict.reason is RejectReason.QUEUE_FULL


def test_a_live_step_is_not_planned_twice() -> None:
    scheduler = made("fcfs")
    scheduler.handle(arrived(1, 1, 100), now=Instant(1))
    plan = scheduler.plan(arrived(1, 1, 100), now=Instant(2))
    assert plan.verdict is None


def test_engines_that_do_not_serve_the_model_are_no_outlook() -> None:
    scheduler = made("fcfs")
    capable = Capabilities(kv_tokens=2_000, models=("large",))
    scheduler.handle(
        EngineReported(engine=EngineId("c"), capabilities=capable, load=EngineLoad()),
        now=Instant(1),
    )
    plan = scheduler.plan(replace(arrived(1, 1, 100), model="large"), now=Instant(2))
    assert isinstance(plan.verdict, Dispatch)
    outlooks = {outlook.engine for outlook in plan.engines}
    assert "c" in outlooks
    small = scheduler.plan(replace(arrived(1, 1, 100), model="small"), now=Instant(2))
    assert "c" not in {outlook.engine for outlook in small.engines}


def test_idle_programs_whose_memory_is_gone_are_shared_with_the_dry_run() -> None:
    """They can be reached by nothing, so they need no copy; and nothing of them changes."""
    scheduler = made("fcfs")
    for number in (1, 2):
        scheduler.handle(arrived(number, number, 1_500), now=Instant(number))
        done = StepFinished(
            step=StepId(f"s{number}"), usage=Usage(prompt_tokens=1_500, output_tokens=9)
        )
        scheduler.handle(done, now=Instant(number))
    scheduler.handle(EngineLost(engine=EngineId("a"), reason="crash"), now=Instant(3))
    scheduler.handle(EngineLost(engine=EngineId("b"), reason="crash"), now=Instant(3))
    idle = scheduler.programs[ProgramId("p1")]
    assert not any(c.is_resident for c in idle.conversations.values())
    before = pickle.dumps(idle)
    plan = scheduler.plan(arrived(9, 9, 100), now=Instant(4))
    assert plan.verdict is None
    assert scheduler.programs[ProgramId("p1")] is idle
    assert pickle.dumps(idle) == before
    scheduler.check()
