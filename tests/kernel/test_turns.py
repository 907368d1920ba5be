"""Whose turn it is among tenants."""

from __future__ import annotations

from shorthand import arrived, waiting

from agentsched.kernel.records import StepRecord
from agentsched.kernel.turns import take_turns
from agentsched.model import StepClass, TenantId


def step(name: str, *, step_class: StepClass = StepClass.STEP) -> StepRecord:
    """A step of the tenant that its first letter names, at the instant of its number."""
    event = arrived(name, name, tenant=name[0], step_class=step_class)
    return waiting(event, since=int(name[1:]))


class Line:
    """Tenants that are charged 10 for each step that is taken."""

    def __init__(self, *steps: StepRecord, resident: str = "", ahead_max: float = -1.0) -> None:
        self.served = dict.fromkeys((s.tenant for s in steps), 0.0)
        self._steps, self._resident, self._ahead_max = steps, resident.split(), ahead_max

    def walk(self) -> list[str]:
        taken = []
        for taken_step in take_turns(
            self._steps,
            rank=lambda tenant: (self.served[tenant],),
            may_continue=lambda tenant: self.served[tenant] <= self._ahead_max,
            is_resident=lambda s: s.step in self._resident,
        ):
            taken.append(taken_step.step)
            self.served[taken_step.tenant] += 10.0
        return taken


def test_the_tenant_served_least_is_next_and_its_order_stays() -> None:
    line = Line(*map(step, ("a1", "a2", "a3", "b9", "b8")))
    line.served[TenantId("b")] = 15.0
    assert line.walk() == ["a1", "a2", "b9", "a3", "b8"]


def test_ties_go_to_the_older_step() -> None:
    assert Line(*map(step, ("b2", "a5", "c1"))).walk() == ["c1", "b2", "a5"]


def test_resident_ones_go_first_as_far_as_they_may() -> None:
    line = Line(*map(step, ("a1", "a2", "b3", "b4", "b5")), resident="b4 b5", ahead_max=0.0)
    assert line.walk() == ["b4", "a1", "a2", "b3", "b5"]


def test_but_not_before_an_earlier_priority_of_their_tenant() -> None:
    later = step("a1")
    later.priority = 10
    line = Line(*map(step, ("a2", "b3")), later, resident="a1 b3", ahead_max=9.0)
    assert line.walk() == ["b3", "a2", "a1"]


def test_background_work_is_last() -> None:
    batch = step("b1", step_class=StepClass.BATCH)
    assert Line(batch, *map(step, ("a2", "a3")), resident="b1", ahead_max=9).walk()[-1] == "b1"


def test_ranks_that_never_rest_end_the_walk_all_the_same() -> None:
    count = iter(range(10_000))
    steps = [step(f"{tenant}{number}") for tenant in "abc" for number in range(5)]
    walk = take_turns(
        steps,
        rank=lambda tenant: (float(next(count)),),
        may_continue=lambda tenant: True,
        is_resident=lambda s: False,
    )
    assert sorted(s.step for s in walk) == sorted(s.step for s in steps)
