"""What happened to a program can be asked when it is over, until many others have closed."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import answered, arrived

from agentsched.kernel.stories import CLOSED_MAX
from agentsched.model import Dispatch, Instant, ProgramClosed, ProgramId, ToolFinished
from agentsched.model.ids import CallId, ToolName

P1 = ProgramId("p1")


def kinds(rig: Any, program: ProgramId = P1) -> list[str]:
    return [type(entry.event).__name__ for entry in rig.scheduler.story(program)]


def lived(rig: Any, step: str = "s1", **more: Any) -> None:
    rig.arrive(step, **more)
    rig.finish(step)


class TestOver:
    def test_its_end_is_part_of_its_story(self, rig: Any) -> None:
        rig.engine()
        lived(rig)
        rig.push(ProgramClosed(program=P1, reason="released"), at=2)
        assert P1 not in rig.scheduler.programs
        assert kinds(rig) == ["StepArrived", "StepFinished", "ProgramClosed"]
        closed = rig.scheduler.closed[P1]
        assert (closed.tenant, closed.closed_at) == ("t1", 2_000_000_000)

    def test_with_the_answer_to_its_last_word(self, rig: Any) -> None:
        rig.engine()
        lived(rig, is_last=True)
        assert P1 not in rig.scheduler.programs
        assert kinds(rig) == ["StepArrived", "StepFinished"]

    def test_after_a_long_silence(self, make_rig: Any) -> None:
        rig = make_rig(program_idle_ns_max=1_000_000_000)
        rig.engine()
        lived(rig)
        lived(rig, "s2", program="p2", at=5)  # whose turn it is has no part in the other's story
        assert P1 not in rig.scheduler.programs
        assert kinds(rig) == ["StepArrived", "StepFinished"]

    def test_what_comes_too_late_is_no_part_of_it(self, rig: Any) -> None:
        rig.engine()
        lived(rig, is_last=True)
        rig.push(ToolFinished(program=P1, call_id=CallId("c"), tool=ToolName("t")))
        assert kinds(rig) == ["StepArrived", "StepFinished"]

    def test_no_more_than_a_live_ones(self, make_rig: Any) -> None:
        rig = make_rig(story_entries_max=2)
        rig.engine()
        lived(rig)
        rig.push(ProgramClosed(program=P1, reason="released"))
        assert kinds(rig) == ["StepFinished", "ProgramClosed"]


def test_one_that_lives_again_tells_of_its_present_life(rig: Any) -> None:
    rig.engine()
    lived(rig, is_last=True)
    rig.arrive("s2")
    assert kinds(rig) == ["StepArrived"]
    rig.finish("s2")
    rig.push(ProgramClosed(program=P1, reason="released"))
    assert kinds(rig) == ["StepArrived", "StepFinished", "ProgramClosed"]
    assert list(rig.scheduler.closed) == [P1]


def test_the_one_closed_first_is_forgotten_first(rig: Any) -> None:
    rig.engine()
    scheduler = rig.scheduler
    for number in range(CLOSED_MAX + 1):
        step, program = f"s{number}", f"p{number}"
        scheduler.handle(arrived(step, program, is_last=True), now=Instant(number))
        scheduler.handle(answered(step, prompt=10, output=1), now=Instant(number))
    assert len(scheduler.closed) == CLOSED_MAX
    assert scheduler.story(ProgramId("p0")) == ()
    assert kinds(rig) == ["StepArrived", "StepFinished"]


@pytest.mark.parametrize("profile", [None, "agentsched"])
def test_a_dry_run_ends_no_story(make_rig: Any, profile: str | None) -> None:
    rig = make_rig(profile=profile, programs_max=1)
    rig.engine()
    lived(rig)
    plan = rig.scheduler.plan(arrived("s2", "p2"), now=Instant(9))
    assert isinstance(plan.verdict, Dispatch)  # for which the idle one would give way
    assert P1 in rig.scheduler.programs
    assert not rig.scheduler.closed
    assert kinds(rig) == ["StepArrived", "StepFinished"]
