"""Programs that the process before this one had begun, and those that only say so."""

from __future__ import annotations

from typing import Any

import pytest
from desk import Desk
from shorthand import arrived

from agentsched.model import (
    MINUTE,
    SECOND,
    Nanos,
    ProgramId,
    Reject,
    RejectReason,
    StepId,
    TimerFired,
)
from agentsched.policy import Held

WINDOW_S = 10 * MINUTE / SECOND


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


@pytest.mark.parametrize(("after_s", "is_believed"), [(WINDOW_S, True), (WINDOW_S + 1, False)])
def test_it_is_believed_for_ten_minutes_after_the_start(
    make_rig: Any, after_s: float, is_believed: bool
) -> None:
    rig = make_rig(ready_steps_max=20, wait_ns_max=Nanos(10**15))
    rig.now = 7 * SECOND  # the clock of a machine begins anywhere
    hold_a_queue(rig, waiting=18)
    commands = rig.arrive("old", program="old", goes_on=True, at=7 + after_s)
    assert [type(c) for c in commands] == ([] if is_believed else [Reject])


def test_a_history_that_is_made_up_later_changes_nothing(make_rig: Any) -> None:
    rig = make_rig()
    rig.engine()
    rig.policy.admission = lambda step, engine: Held(reason="never")
    rig.arrive("made up", program="p", goes_on=True, at=WINDOW_S + 1)
    assert StepId("made up") in rig.scheduler._books.ready.newcomers
    assert not rig.scheduler.programs[ProgramId("p")].was_served


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


def test_nor_one_whose_history_is_made_up_when_the_start_is_long_ago() -> None:
    desk = Desk(wait_s=0.5, swap_share=0.0001)
    for number, name in enumerate("abc", start=1):
        desk.turn(name, 3_500, at=WINDOW_S + number)
    desk.ask("a", 9_000, at=WINDOW_S + 4)
    made_up = arrived("m", "made up", tokens=3_500, goes_on=True)
    assert desk.feed(made_up, WINDOW_S + 4.1) == ()
    [reject] = desk.feed(TimerFired(), WINDOW_S + 4.6)
    assert isinstance(reject, Reject)
    assert reject.detail == "programs"
