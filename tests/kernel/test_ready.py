from __future__ import annotations

import pytest
from shorthand import arrived, waiting

from agentsched.kernel.ready import ReadySteps
from agentsched.kernel.records import EngineRecord, StepRecord
from agentsched.model import Capabilities, EngineId, Instant, Nanos, ProgramId

ENGINE = EngineRecord(engine=EngineId("e1"))


def make(name: str, *, at: int, model: str = "") -> StepRecord:
    return waiting(arrived(name, model=model), since=at)


@pytest.fixture
def ready() -> ReadySteps:
    return ReadySteps(wait_ns_max=Nanos(100), bypasses_max=2)


def names(steps: object) -> list[str]:
    return [s.step for s in steps]  # type: ignore[attr-defined]


def test_the_oldest_is_due_first(ready: ReadySteps) -> None:
    assert ready.earliest() is None
    a, b = make("a", at=1), make("b", at=2)
    ready.add(a)
    ready.add(b)
    assert ready.earliest() == 101
    assert ready.next_due(now=Instant(100), passing=()) is None
    assert ready.next_due(now=Instant(101), passing=()) is a
    assert ready.next_due(now=Instant(101), passing={"a"}) is None
    assert ready.next_due(now=Instant(102), passing={"a"}) is b
    ready.remove(a)
    assert ready.earliest() == 102
    assert "a" not in ready
    assert "b" in ready


def test_a_step_that_comes_back_takes_its_old_place(ready: ReadySteps) -> None:
    a, b, c = (make(name, at=at) for name, at in (("a", 1), ("b", 2), ("c", 2)))
    for step in (a, b, c):
        ready.add(step)
    ready.remove(a)
    ready.add(a)
    assert names(ready) == ["a", "b", "c"]
    ready.remove(b)
    ready.add(b)
    assert names(ready) == ["a", "c", "b"]  # of one instant: in the order in which they were added
    assert ready.earliest() == 101


def test_order_is_total(ready: ReadySteps) -> None:
    for name in "dbca":
        ready.add(make(name, at=5))
    ready.add(make("late", at=6))
    assert names(ready.in_order(lambda step: (0.0,))) == ["a", "b", "c", "d", "late"]
    first = ready.in_order(lambda step: (-float(step.arrived_at),))
    assert names(first) == ["late", "a", "b", "c", "d"]


def test_only_older_steps_that_could_go_there_are_bypassed(ready: ReadySteps) -> None:
    engine = EngineRecord(engine=EngineId("e"), capabilities=Capabilities(models=("m",)))
    old, other = make("old", at=1, model="m"), make("other", at=1, model="else")
    twin, young = make("twin", at=2, model="m"), make("young", at=3, model="m")
    gone = make("gone", at=2, model="m")
    for step in (old, other, twin, gone, young):
        ready.add(step)
    ready.count_bypasses(gone, engine)
    assert [s.bypassed for s in (old, other, twin, gone, young)] == [1, 0, 0, 0, 0]


def test_a_step_at_its_bypass_bound_is_due_also_after_a_retry(ready: ReadySteps) -> None:
    old = make("old", at=1)
    ready.add(old)
    for number in range(2):
        assert ready.next_due(now=Instant(9), passing=()) is None
        ready.count_bypasses(make(f"young{number}", at=2), ENGINE)
    assert ready.next_due(now=Instant(9), passing=()) is old
    assert ready.next_due(now=Instant(9), passing={"old"}) is None
    ready.remove(old)
    assert ready.next_due(now=Instant(9), passing=()) is None
    ready.add(old)
    assert ready.next_due(now=Instant(9), passing=()) is old


def test_newcomers_are_left_out_of_the_order_and_the_indexes_agree(ready: ReadySteps) -> None:
    ready.add(make("begun", at=1))
    ready.add(make("new", at=2), is_newcomer=True)
    ready.check()
    assert names(ready.in_order(lambda step: ())) == ["begun", "new"]
    assert names(ready.in_order(lambda step: (), newcomers=False)) == ["begun"]
    ready.begin(ProgramId("other"))
    ready.begin(ProgramId("p"))  # more of it is under way: no newcomer any more
    ready.check()
    assert names(ready.in_order(lambda step: (), newcomers=False)) == ["begun", "new"]


def test_newcomers_are_told_why_they_wait_once_each_and_again_after_each_was_asked(
    ready: ReadySteps,
) -> None:
    step = make("new", at=1)
    ready.add(step, is_newcomer=True)
    ready.newcomers.tell({"": "programs"})
    assert step.held_for == "programs"
    step.held_for = "memory"
    ready.newcomers.ask_each()
    ready.newcomers.tell({"": "programs"})
    assert step.held_for == "programs"
    ready.newcomers.tell({"": "other"})
    assert step.held_for == "other"
    ready.remove(step)
    ready.check()
    assert not len(ready.newcomers)
    assert not ready.newcomers.models


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5])
def test_a_step_that_comes_back_stands_behind_those_of_its_instant(
    ready: ReadySteps, at: int
) -> None:
    kept = [make(f"s{number}", at=number // 2) for number in range(8)]
    for step in kept:
        ready.add(step)
    back = make("back", at=at)
    ready.add(back)
    ready.check()
    assert list(ready) == sorted([*kept, back], key=lambda step: step.arrived_at)
