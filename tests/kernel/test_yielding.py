"""Background work gives way, and is not lost."""

from __future__ import annotations

from typing import Any

from agentsched.model import (
    SECOND,
    Cancel,
    CancelReason,
    Dispatch,
    Nanos,
    StepClass,
    StepFailed,
    StepId,
)

BATCH = StepClass.BATCH


def sent(commands: Any) -> list[str]:
    return [c.step for c in commands if isinstance(c, Dispatch)]


def make_way(rig: Any, step: str) -> Any:
    return rig.push(StepFailed(step=StepId(step), reason="made way", is_retryable=True))


def test_batch_work_is_stopped_when_other_work_is_held_and_goes_on_later(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=2, retries_max=0)
    rig.engine()
    rig.arrive("b1", program="b1", step_class=BATCH)
    rig.arrive("b2", program="b2", step_class=BATCH)
    [cancel] = rig.arrive("s1")
    assert cancel == Cancel(step=StepId("b2"), reason=CancelReason.YIELDED)
    assert rig.timer(at=0.1) == ()  # asked once
    [dispatch] = make_way(rig, "b2")
    assert dispatch.step == "s1"
    statistics = rig.scheduler.statistics()
    assert (statistics.yielded_total, statistics.retried_total) == (1, 0)
    # It made way for nothing that was its engine's fault: neither a try nor an engine is used up.
    again = rig.finish("s1")
    assert sent(again) == ["b2"]
    assert rig.scheduler.steps["b2"].attempts == 1
    assert rig.scheduler.steps["b2"].failed_on == ()


def test_what_began_to_answer_runs_on(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1)
    rig.engine()
    rig.arrive("b1", program="b1", step_class=BATCH)
    rig.start("b1")
    assert rig.arrive("s1") == ()
    assert sent(rig.finish("b1")) == ["s1"]


def test_an_answer_that_comes_after_all_is_taken(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1)
    rig.engine()
    rig.arrive("b1", program="b1", step_class=BATCH)
    assert isinstance(rig.arrive("s1")[0], Cancel)
    rig.start("b1")
    assert sent(rig.finish("b1")) == ["s1"]
    assert rig.scheduler.statistics().yielded_total == 0


def test_where_one_began_to_answer_after_all_the_next_one_is_asked(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=2)
    rig.engine()
    rig.arrive("b1", program="b1", step_class=BATCH)
    rig.arrive("b2", program="b2", step_class=BATCH)
    assert [c.step for c in rig.arrive("s1")] == ["b2"]
    assert rig.start("b2") == (Cancel(step=StepId("b1"), reason=CancelReason.YIELDED),)
    assert sent(make_way(rig, "b1")) == ["s1"]


def test_batch_work_goes_last_whatever_the_policy_says(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1)
    rig.arrive("b1", program="b1", step_class=BATCH, at=0)
    rig.arrive("s1", at=1)
    assert sent(rig.engine()) == ["s1"]


def test_the_promise_of_a_bounded_wait_holds_for_batch_work(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1, wait_ns_max=Nanos(5 * SECOND))
    rig.engine()
    rig.arrive("s1", at=0)
    rig.arrive("b1", program="b1", step_class=BATCH, at=1)
    rig.arrive("s2", program="p2", at=2)
    assert sent(rig.finish("s1", at=3)) == ["s2"]
    assert sent(rig.finish("s2", at=6)) == ["b1"]
    # Forced in at its bound, it does not make way any more.
    assert not [c for c in rig.arrive("s3", program="p3", at=6.5) if isinstance(c, Cancel)]


def test_with_room_nobody_makes_way(rig: Any) -> None:
    rig.engine()
    rig.arrive("b1", program="b1", step_class=BATCH)
    assert sent(rig.arrive("s1")) == ["s1"]


def test_batch_work_that_was_overtaken_too_often_runs_on(make_rig: Any) -> None:
    """Stopped again it would be due again, sent again and stopped again, without end."""
    rig = make_rig(running_steps_per_engine_max=1, bypasses_max=1)
    rig.engine()
    rig.arrive("b1", program="b1", step_class=BATCH, at=0)
    assert isinstance(rig.arrive("s1", at=1)[0], Cancel)
    assert sent(make_way(rig, "b1")) == ["s1"]
    assert rig.scheduler.steps["b1"].bypassed == 1
    [forced] = rig.finish("s1", at=2)
    assert (forced.step, forced.order) == ("b1", "bound")
    assert rig.arrive("s2", program="p2", at=3) == ()
    assert sent(rig.finish("b1", at=4)) == ["s2"]


def test_nobody_makes_way_for_work_that_could_not_use_his_engine(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1)
    rig.engine("e1", models=("x",))
    rig.engine("e2", models=("y",))
    rig.arrive("b1", program="b1", step_class=BATCH, model="x")
    rig.arrive("y1", program="y1", model="y")
    assert rig.arrive("y2", program="y2", model="y") == ()
    assert rig.timer(at=1) == ()
    [cancel] = rig.arrive("x1", program="x1", model="x")
    assert cancel == Cancel(step=StepId("b1"), reason=CancelReason.YIELDED)


def test_as_many_make_way_on_an_engine_as_could_use_it(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=3)
    rig.engine("e1", models=("x", "z"))
    rig.engine("e2", models=("y",))
    for number in range(3):
        rig.arrive(f"b{number}", program=f"b{number}", step_class=BATCH, model="x")
        rig.arrive(f"y{number}", program=f"y{number}", model="y")
    for name in ("y8", "y9"):
        assert rig.arrive(name, program=name, model="y") == ()
    assert [c.step for c in rig.arrive("x1", program="x1", model="x")] == ["b2"]
    assert [c.step for c in rig.arrive("z1", program="z1", model="z")] == ["b1"]
    assert rig.timer(at=1) == ()  # both are asked already


def test_what_made_way_once_makes_way_again(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1)
    rig.engine()
    rig.arrive("b1", program="b1", step_class=BATCH)
    for number in (1, 2):
        step = f"s{number}"
        cancel = Cancel(step=StepId("b1"), reason=CancelReason.YIELDED)
        assert rig.arrive(step, program=step) == (cancel,)
        assert sent(make_way(rig, "b1")) == [step]
        assert sent(rig.finish(step)) == ["b1"]
    assert rig.scheduler.statistics().yielded_total == 2
