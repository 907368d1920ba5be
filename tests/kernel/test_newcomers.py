"""First steps of programs that were sent nothing: who is told why all of them wait."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import arrived, waiting

from agentsched.kernel.newcomers import Newcomers
from agentsched.kernel.records import StepRecord
from agentsched.model import ProgramId, StepClass
from agentsched.policy import Held

PROGRAMS = Held(reason="programs", blocks_others=False)


def step(name: str, *, model: str = "") -> StepRecord:
    return waiting(arrived(name, name, model=model))


def test_all_are_told_a_reason_that_is_new() -> None:
    newcomers = Newcomers()
    first, second = step("a"), step("b")
    newcomers.add(first)
    newcomers.tell({"": "programs"})
    newcomers.add(second)
    newcomers.tell({"": "programs"})
    assert (first.held_for, second.held_for) == ("programs", "programs")
    newcomers.tell({"": "memory"})
    assert (first.held_for, second.held_for) == ("memory", "memory")
    newcomers.check()


def test_whoever_was_asked_for_by_itself_is_told_again() -> None:
    newcomers = Newcomers()
    first, second = step("a"), step("b")
    for one in (first, second):
        newcomers.add(one)
    newcomers.tell({"": "programs"})
    newcomers.ask_each()
    first.held_for = "cold start"
    newcomers.tell({"": "programs"})
    assert (first.held_for, second.held_for) == ("programs", "programs")


def test_each_is_told_the_reason_of_its_model() -> None:
    newcomers = Newcomers()
    large, small, late = (
        step("a", model="large"),
        step("b", model="small"),
        step("c", model="small"),
    )
    newcomers.add(large)
    newcomers.add(small)
    newcomers.tell({"large": "memory", "small": "programs"})
    newcomers.add(late)
    newcomers.tell({"large": "programs", "small": "programs"})
    assert [one.held_for for one in (large, small, late)] == ["programs"] * 3
    newcomers.remove(large)
    newcomers.check()
    newcomers.tell({"small": "memory"})
    assert (small.held_for, late.held_for) == ("memory", "memory")
    newcomers.add(large)
    newcomers.tell({"large": "memory", "small": "programs"})
    assert [one.held_for for one in (large, small, late)] == ["memory", "programs", "programs"]


def test_whoever_was_told_is_not_gone_through_again() -> None:
    newcomers = Newcomers()
    known = step("a", model="large")
    newcomers.add(known)
    newcomers.tell({"large": "memory"})
    known.held_for = "as it was"
    newcomers.add(step("b", model="small"))
    newcomers.tell({"large": "memory", "small": "programs"})
    assert known.held_for == "as it was"


def test_they_are_counted_by_model_and_go_once() -> None:
    newcomers = Newcomers()
    first, second = step("a", model="m"), step("b", model="m")
    for one in (first, second):
        newcomers.add(one)
    assert (len(newcomers), newcomers.models) == (2, {"m": 2})
    assert newcomers.of(ProgramId("a")) is first
    assert newcomers.remove(first)
    assert not newcomers.remove(first)
    assert newcomers.of(ProgramId("a")) is None
    assert (first.step in newcomers, second.step in newcomers) == (False, True)
    newcomers.tell({"m": "programs"})
    assert (first.held_for, second.held_for) == ("", "programs")
    assert newcomers.models == {"m": 1}
    assert newcomers.remove(second)
    assert newcomers.models == {}
    newcomers.check()


def shut_out(rig: Any, answer: Any) -> list[str]:
    """Let the scripted admission say `answer` of engines; the steps that are asked for."""
    asked: list[str] = []
    rig.policy.admission = lambda step, engine: asked.append(step.step) or PROGRAMS
    rig.policy.shuts_out = lambda engines, world, *, now: answer(engines)
    rig.scheduler._guarded._take(rig.scheduler.policies)
    return asked


def test_newcomers_that_are_shut_out_for_two_reasons_are_told_their_own(rig: Any) -> None:
    for name in ("large", "small"):
        rig.engine(name, models=(name,))
    asked = shut_out(rig, lambda engines: Held(reason=engines[0].engine, blocks_others=False))
    ranked: list[str] = []
    rig.policy.rank_of = lambda step: ranked.append(step.step) or (0.0,)
    for number, model in enumerate(("large", "small", "large")):
        rig.arrive(f"s{number}", program=f"p{number}", model=model)
    held = {s.step: s.held_for for s in rig.scheduler.steps.values()}
    assert held == {"s0": "large", "s1": "small", "s2": "large"}
    assert (asked, ranked) == ([], [])  # a queue of thousands costs a turn nothing


@pytest.mark.parametrize("is_running", [True, False])
def test_with_background_work_about_each_is_asked_for(rig: Any, *, is_running: bool) -> None:
    """Which engines somebody waits for must be known: that work makes way there."""
    rig.engine()
    if is_running:
        rig.arrive("b", program="night", step_class=StepClass.BATCH)
    asked = shut_out(rig, lambda engines: PROGRAMS)
    if not is_running:
        rig.arrive("b", program="night", step_class=StepClass.BATCH)
    asked.clear()
    rig.arrive("s", program="new")
    assert "s" in asked
