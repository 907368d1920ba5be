"""Programs that the process before this one had begun, and those that only say so."""

from __future__ import annotations

from typing import Any

from desk import Desk
from shorthand import arrived

from agentsched.model import (
    MINUTE,
    SECOND,
    Instant,
    ProgramId,
    Reject,
    RejectReason,
    StepClass,
    StepId,
    TimerFired,
)
from agentsched.policy import Held

WINDOW = 10 * MINUTE
WINDOW_S = WINDOW / SECOND


def hold_a_queue(rig: Any, *, waiting: int) -> None:
    """So many first steps wait; whoever was not served finds the queue full from the 18th on."""
    rig.engine()
    rig.policy.admission = lambda step, engine: Held(reason="never")
    for number in range(waiting):
        assert rig.arrive(f"s{number}", program=f"p{number}") == ()


def test_the_last_tenth_of_the_queue_is_for_those_that_go_on_after_a_start(make_rig: Any) -> None:
    rig = make_rig(ready_steps_max=20)
    hold_a_queue(rig, waiting=18)
    [reject] = rig.arrive("new", program="new")
    assert reject.reason is RejectReason.QUEUE_FULL
    assert rig.arrive("old", program="old", goes_on=True) == ()
    assert StepId("old") not in rig.scheduler._books.ready.newcomers
    assert rig.scheduler.programs[ProgramId("old")].was_served
    # What it begins is no newcomer either.
    assert rig.arrive("kid", program="kid", parent=ProgramId("old")) == ()
    assert StepId("kid") not in rig.scheduler._books.ready.newcomers


def test_it_is_believed_for_ten_minutes_after_the_start(make_rig: Any) -> None:
    rig = make_rig()
    assert rig.scheduler.believes(now=Instant(0))
    rig.now = 7 * SECOND  # the clock of a machine begins anywhere
    rig.engine()
    last = Instant(7 * SECOND + WINDOW)
    assert rig.scheduler.believes(now=last)
    assert not rig.scheduler.believes(now=Instant(last + 1))
    rig.timer(at=(last + 1) / SECOND)
    assert not rig.scheduler.believes(now=last), "time never steps back"


def test_who_was_believed_goes_on_when_the_time_is_over(make_rig: Any) -> None:
    rig = make_rig(ready_steps_max=20)
    rig.engine()
    rig.arrive("first", program="old", goes_on=True)
    rig.finish("first")
    rig.policy.admission = lambda step, engine: Held(reason="never")
    rig.now = round((WINDOW_S + 1) * SECOND)
    for number in range(18):
        rig.arrive(f"s{number}", program=f"p{number}")
    assert rig.arrive("second", program="old", goes_on=True) == ()


def crowded() -> Desk:
    """A house after its start, in which three programs fill the cache and one of them runs."""
    desk = Desk(wait_s=0.5, swap_share=0.0001)
    for number, name in enumerate("abc", start=1):
        desk.turn(name, 3_500, at=number)
    assert desk.ask("a", 9_000, at=4) == ["a1"]
    return desk


def test_admission_refuses_newcomers_in_overload_and_not_who_goes_on() -> None:
    desk = crowded()
    assert desk.feed(arrived("n", "new", tokens=3_500), 4.1) == ()
    assert desk.feed(arrived("o", "old", tokens=3_500, goes_on=True), 4.15) == ()
    held = {step.step: step.held_for for step in desk.scheduler.steps.values()}
    assert held == {"a1": "", "n": "programs", "o": "memory"}
    [reject] = desk.feed(TimerFired(), 4.6)
    assert isinstance(reject, Reject)
    assert (reject.step, reject.reason) == ("n", RejectReason.WAIT_BOUND)
    assert desk.tick(at=4.65) == ["o"]


def test_nobody_is_begun_in_place_of_who_comes_back() -> None:
    """What it had before the start it wants again, and not only when it is answered."""
    desk = Desk(swap_share=0.0001, patience=1_000.0)
    desk.turn("a", 3_500, at=1)
    desk.turn("b", 3_500, at=2)
    assert desk.ask("a", 3_600, at=3) == ["a1"]
    assert desk.night("old", 6_500, at=3.1, step_class=StepClass.STEP, goes_on=True) == []
    assert desk.ask("new", 1_500, at=3.2) == []
    assert desk.scheduler.steps[StepId("new0")].held_for == "programs"
