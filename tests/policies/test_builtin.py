"""What each built-in policy answers, asked through a scheduler's own records."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import arrived, finished, prefix, reported, tool_call

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler
from agentsched.model import (
    SECOND,
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLost,
    Instant,
    Pin,
    PolicyError,
)
from agentsched.policy import Choice, load


def build(profile: str = "passthrough", **choices: Choice) -> Scheduler:
    return build_scheduler(SchedulerConfig(profile=profile, choices=choices))


def engine(scheduler: Scheduler, name: str, *, at: int = 0, **capabilities: Any) -> Any:
    return scheduler.handle(reported(name, **capabilities), now=Instant(at))


def arrive(scheduler: Scheduler, step: str, program: str, *, at: int, branch: str = "") -> Any:
    event = arrived(step, program, conversation=program + branch, prefixes=(prefix("x", 10),))
    return scheduler.handle(event, now=Instant(at))


def finish(scheduler: Scheduler, step: str, *, at: int, tools: int = 0) -> Any:
    calls = (tool_call(f"k{n}") for n in range(tools))
    return scheduler.handle(finished(step, *calls, prompt=10, output=1), now=Instant(at))


def sent(commands: Any) -> list[tuple[str, str, int]]:
    return [(c.step, c.engine, c.priority) for c in commands if isinstance(c, Dispatch)]


def test_fcfs_goes_by_arrival_of_the_step() -> None:
    scheduler = build()
    for at, (step, program) in enumerate([("a1", "a"), ("b1", "b"), ("a2", "a")]):
        arrive(scheduler, step, program, at=at)
    assert sent(engine(scheduler, "e", at=5)) == [("a1", "e", 0), ("b1", "e", 0), ("a2", "e", 0)]


def test_program_fcfs_goes_by_arrival_of_the_program() -> None:
    scheduler = build(order=Choice(name="program-fcfs"))
    for at, (step, program) in enumerate([("a1", "a"), ("b1", "b"), ("a2", "a")]):
        arrive(scheduler, step, program, at=at, branch=step)
    assert sent(engine(scheduler, "e", at=5)) == [("a1", "e", 1), ("a2", "e", 1), ("b1", "e", 2)]


def test_round_robin_takes_turns() -> None:
    scheduler = build()
    for name in ("e2", "e1", "e3"):
        engine(scheduler, name)
    taken = [sent(arrive(scheduler, f"s{n}", f"p{n}", at=n))[0][1] for n in range(6)]
    assert taken == ["e1", "e2", "e3"] * 2


def test_round_robin_owes_nothing_to_an_engine_that_was_drained() -> None:
    """What the others had meanwhile would be all that comes for as long again."""
    scheduler = build()
    for name in ("e1", "e2", "e3"):
        engine(scheduler, name)
    scheduler.handle(EngineDrained(engine=EngineId("e1"), is_draining=True), now=Instant(0))
    for n in range(8):
        arrive(scheduler, f"s{n}", f"p{n}", at=n)
    scheduler.handle(EngineDrained(engine=EngineId("e1"), is_draining=False), now=Instant(9))
    eased = 60 * SECOND
    taken = [sent(arrive(scheduler, f"t{n}", f"q{n}", at=eased + n))[0][1] for n in range(6)]
    assert taken == ["e1", "e2", "e3"] * 2


class TestSessionAffinity:
    @pytest.fixture
    def scheduler(self) -> Scheduler:
        scheduler = build("fcfs")
        for name in ("e1", "e2"):
            engine(scheduler, name)
        return scheduler

    def test_a_conversation_stays_where_its_kv_is(self, scheduler: Scheduler) -> None:
        assert sent(arrive(scheduler, "a1", "a", at=1))[0][1] == "e1"
        finish(scheduler, "a1", at=2)
        assert sent(arrive(scheduler, "b1", "b", at=3))[0][1] == "e1"
        assert sent(arrive(scheduler, "a2", "a", at=4))[0][1] == "e1"

    def test_a_newcomer_goes_where_least_runs(self, scheduler: Scheduler) -> None:
        arrive(scheduler, "a1", "a", at=1)
        assert sent(arrive(scheduler, "b1", "b", at=2))[0][1] == "e2"

    def test_a_branch_goes_to_its_sibling_though_more_runs_there(
        self, scheduler: Scheduler
    ) -> None:
        arrive(scheduler, "a1", "a", at=1)
        assert sent(arrive(scheduler, "a2", "a", at=2, branch="/sub"))[0][1] == "e1"

    def test_nothing_draws_a_branch_to_an_engine_that_lost_its_cache(
        self, scheduler: Scheduler
    ) -> None:
        arrive(scheduler, "a1", "a", at=1)
        scheduler.handle(EngineLost(engine=EngineId("e1"), reason="x"), now=Instant(2))
        engine(scheduler, "e1", at=3)
        assert sent(arrive(scheduler, "a2", "a", at=4, branch="/sub"))[0][1] == "e2"


@pytest.mark.parametrize(
    ("params", "running_max", "depth"), [({"depth": 2}, 5, 2), ({}, 3, 3), ({}, None, 256)]
)
def test_depth_bounds_what_an_engine_has(
    params: dict[str, object], running_max: int | None, depth: int
) -> None:
    scheduler = build(admit=Choice(name="depth", params=params))
    engine(scheduler, "e", running_max=running_max)
    for number in range(depth + 2):
        arrive(scheduler, f"s{number}", f"p{number}", at=number)
    assert scheduler.engines[EngineId("e")].running_steps == depth
    assert sent(finish(scheduler, "s0", at=999))[0][0] == f"s{depth}"


def test_open_lets_everybody_in() -> None:
    scheduler = build()
    engine(scheduler, "e", running_max=1)
    for number in range(9):
        assert sent(arrive(scheduler, f"s{number}", f"p{number}", at=number))


class TestFixed:
    def run(self, *, tools: int, **choices: Choice) -> tuple[Any, ...]:
        scheduler = build(**choices)
        engine(scheduler, "e", pins=True)
        arrive(scheduler, "s1", "p", at=1)
        commands: tuple[Any, ...] = finish(scheduler, "s1", at=2, tools=tools)
        return commands

    def test_a_pin_for_a_program_that_waits_for_tools(self) -> None:
        [pin] = self.run(tools=1, pin=Choice(name="fixed", params={"ttl_s": 1.5}))
        assert isinstance(pin, Pin)
        assert pin.expires_at == 2 + 1.5 * SECOND

    def test_no_pin_after_the_last_word(self) -> None:
        assert self.run(tools=0, pin=Choice(name="fixed")) == ()

    def test_never(self) -> None:
        assert self.run(tools=1, pin=Choice(name="never")) == ()


@pytest.mark.parametrize(
    ("point", "name", "params"),
    [("pin", "fixed", {"ttl_s": 0.0}), ("admit", "depth", {"depth": 0})],
)
def test_parameters_that_make_no_sense(point: str, name: str, params: dict[str, object]) -> None:
    with pytest.raises(PolicyError, match="bad parameters"):
        load(point, name, params)
