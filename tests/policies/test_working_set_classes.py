"""The default admission and what steps are for: summaries beside the work, and work by night."""

from __future__ import annotations

from typing import Any

import pytest
from desk import Desk
from shorthand import arrived

from agentsched.model import (
    Cancel,
    CancelReason,
    EngineId,
    Lineage,
    ProgramId,
    Reject,
    RejectReason,
    StepClass,
    StepId,
    TimerFired,
)


@pytest.mark.parametrize("step_class", [StepClass.AUXILIARY, StepClass.PROBE])
def test_nobody_who_has_room_waits_for_a_large_step_that_has_none(step_class: StepClass) -> None:
    """A summary of 6,000 tokens, say, though such go before others."""
    desk = Desk(patience=1_000.0)
    for number, name in enumerate("ab"):
        desk.turn(name, 4_000, at=number)
    assert desk.ask("b", 4_100, at=2) == ["b1"]
    assert desk.night("sum", 6_000, at=2.1, step_class=step_class) == []
    assert desk.ask("a", 4_100, at=2.2) == ["a1"]
    assert desk.scheduler.steps[StepId("sum0")].held_for == "memory"
    # Whoever has no room either comes after it, and it goes at its bound at the latest.
    assert desk.ask("c", 1_500, at=2.3) == []
    assert desk.tick(at=22.1) == ["sum0"]


def test_nor_over_a_tier_where_the_engines_queue_is_full() -> None:
    desk = Desk(cheap_reload=2.0, engine_queue=0.5)
    desk.turn("a", 1_000, at=0)
    assert desk.ask("b", 4_000, at=1) == ["b0"]
    assert desk.night("sum", 6_000, at=1.1, step_class=StepClass.AUXILIARY) == []
    assert desk.ask("a", 1_100, at=1.2) == ["a1"]


def test_background_work_makes_way_for_a_summary() -> None:
    desk = Desk()
    desk.turn("a", 4_000, at=0)
    assert desk.night("night", 5_000, at=1) == ["night0"]
    asked = arrived("sum", "sum", tokens=6_000, step_class=StepClass.AUXILIARY)
    [stop] = desk.feed(asked, 1.1)
    assert isinstance(stop, Cancel)
    assert (stop.step, stop.reason) == ("night0", CancelReason.YIELDED)


def served_by_night(**params: Any) -> Desk:
    """Three programs fill the house; a batch agent among them was answered, and is let go."""
    desk = Desk(wait_s=0.5, swap_share=0.0001, **params)
    desk.night("night", 3_400, at=0)
    desk.start("night", at=0.05)
    desk.answer("night", 3_410, at=0.1)
    for number, name in enumerate("abc", start=1):
        desk.turn(name, 3_500, at=number)
    assert desk.ask("a", 9_000, at=4) == ["a1"]
    return desk


def test_a_batch_agent_that_was_served_before_is_never_turned_away() -> None:
    desk = served_by_night()
    assert desk.night("night", 3_500, at=4.1) == []
    held = {step.step: step.held_for for step in desk.scheduler.steps.values()}
    assert held == {"a1": "", "night1": "memory"}
    assert desk.tick(at=4.6) == ["night1"]


def test_a_new_batch_agent_is_one_however_often_it_comes_back() -> None:
    """Nor does it help that it says that it goes on: nobody has answered it."""
    desk = served_by_night()
    for number in range(3):
        now = 4.1 + number
        assert desk.night("late", 3_500, at=now, lineage=Lineage.EXTENDS) == []
        [reject] = desk.feed(TimerFired(), now + 0.5)
        assert isinstance(reject, Reject)
        assert (reject.reason, reject.detail) == (RejectReason.WAIT_BOUND, "programs")


def test_a_child_of_a_batch_agent_that_was_served_is_never_turned_away() -> None:
    desk = served_by_night()
    kid = {"parent": ProgramId("night"), "step_class": StepClass.BATCH}
    desk.feed(arrived("kid", "kid", tokens=3_500, **kid), 4.1)
    assert desk.scheduler.steps[StepId("kid")].held_for == "memory"
    assert desk.tick(at=4.6) == ["kid"]


def test_whom_another_replica_served_is_never_turned_away_though_its_engine_is_gone() -> None:
    desk = served_by_night()
    moved = arrived("m", "moved", tokens=3_500, home=EngineId("lost"), home_tokens=3_000)
    desk.feed(moved, 4.1)
    assert desk.scheduler.steps[StepId("m")].held_for == "memory"
    assert desk.tick(at=4.6) == ["m"]
