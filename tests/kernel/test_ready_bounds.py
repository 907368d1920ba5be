"""A promise that changes while steps wait holds for those that wait already, to the step; and what
reaches a bound together is taken one by one without a search for each."""

from __future__ import annotations

import pytest
from shorthand import arrived, waiting

from agentsched.kernel.ready import ReadySteps
from agentsched.kernel.records import EngineRecord, StepRecord
from agentsched.model import EngineId, Instant, Nanos, StepId


@pytest.mark.parametrize(("bypassed", "is_due"), [(2, False), (3, True), (4, True)])
def test_a_new_bypass_bound_counts_what_passed_already(bypassed: int, is_due: bool) -> None:
    ready = ReadySteps(wait_ns_max=Nanos(1_000), bypasses_max=9)
    step = waiting(arrived("s"))
    step.bypassed = bypassed
    ready.add(step)
    ready.set_bounds(wait_ns_max=Nanos(1_000), bypasses_max=3)
    due = ready.next_due(now=Instant(1), passing=set())
    assert (due is step) is is_due


class Counted(set[StepId]):
    """Counts how often somebody is looked for."""

    looks = 0

    def __contains__(self, key: object) -> bool:
        self.looks += 1
        return super().__contains__(key)


@pytest.mark.parametrize("is_lowered", [True, False])
def test_a_burst_that_reaches_its_bypass_bound_as_one_is_taken_oldest_first(
    *, is_lowered: bool
) -> None:
    ready = ReadySteps(wait_ns_max=Nanos(1_000), bypasses_max=9 if is_lowered else 1)
    steps = [waiting(arrived(f"s{n % 7}-{n}", model=f"m{n % 2}"), since=n // 3) for n in range(90)]
    for step in steps:
        ready.add(step)
    ready.count_bypasses(waiting(arrived("new"), since=99), EngineRecord(engine=EngineId("e")))
    if is_lowered:
        ready.set_bounds(wait_ns_max=Nanos(1_000), bypasses_max=1)
    taken: list[StepRecord] = []
    passing = Counted()
    while (step := ready.next_due(now=Instant(100), passing=passing)) is not None:
        ready.check()
        ready.remove(step)
        taken.append(step)
    assert taken == sorted(steps, key=lambda s: (s.arrived_at, s.step))
    assert passing.looks <= len(steps)
    ready.check()


def test_whoever_asks_for_the_model_of_one_that_waits_on_waits_on_as_well() -> None:
    ready = ReadySteps(wait_ns_max=Nanos(1_000), bypasses_max=0)
    first, other, same = steps = [
        waiting(arrived(f"s{number}", model=model), since=number)
        for number, model in enumerate(("x", "y", "x"))
    ]
    for step in steps:
        ready.add(step)
    assert ready.next_due(now=Instant(9), passing={first.step}) is other
    assert ready.next_due(now=Instant(9), passing={first.step, other.step}) is None
    ready.tell_overtaken("x", "engine full")
    assert [step.held_for for step in steps] == ["engine full", "", "engine full"]
    # Late, it is told so itself.
    assert ready.next_due(now=Instant(1_002), passing={first.step, other.step}) is same
