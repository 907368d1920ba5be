"""Order, place and admission under the guard that bounds every wait."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import (
    SECOND,
    ConversationId,
    Dispatch,
    EngineId,
    EngineLost,
    Instant,
    Nanos,
    ProgramId,
    Reject,
    RejectReason,
    StepCancelled,
    StepFailed,
    StepId,
    UnpinReason,
)
from agentsched.policy import Admitted, Held, Retention, TurnedAway


def dispatched(commands: Any) -> list[str]:
    return [c.step for c in commands if isinstance(c, Dispatch)]


def hold(step: Any, engine: Any) -> Held:
    return Held(reason="not now")


def test_the_policy_orders_and_the_wait_bound_overrules_it(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=Nanos(10 * SECOND))
    rig.policy.admission = hold
    rig.engine()
    for number in range(3):
        rig.arrive(f"s{number}", program=f"p{number}", at=number)
    rig.policy.rank_of = lambda step: (-float(step.arrived_at),)
    [first] = rig.timer()
    assert (first.step, first.order, rig.now) == ("s0", "bound", 10 * SECOND)
    rig.policy.admission = lambda step, engine: Admitted()
    assert dispatched(rig.arrive("s3", program="p3")) == ["s3", "s2", "s1"]


def test_the_timer_alone_serves_every_held_step(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=Nanos(SECOND))
    rig.policy.admission = hold
    rig.engine()
    for number in range(5):
        rig.arrive(f"s{number}", program=f"p{number}", at=number / 10)
    done = []
    while rig.scheduler.next_deadline() is not None:
        done += dispatched(rig.timer())
    assert done == [f"s{n}" for n in range(5)]


def test_at_the_wait_bound_with_every_engine_full_it_is_told_no(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1, wait_ns_max=Nanos(SECOND))
    rig.engine()
    rig.arrive("s1")
    rig.arrive("s2")
    [reject] = rig.timer()
    assert (reject.step, reject.reason) == ("s2", RejectReason.WAIT_BOUND)


def test_a_due_step_leaves_its_favourite_engine_for_one_with_room(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1, wait_ns_max=Nanos(SECOND))
    rig.policy.score_of = lambda step, engine: float(engine.engine == "e2")
    rig.engine("e1")
    rig.engine("e2")
    assert rig.arrive("s1")[0].engine == "e2"
    assert rig.arrive("s2") == ()
    assert rig.timer()[0].engine == "e1"


def test_a_due_step_that_leaves_its_favourite_engine_prefers_one_that_did_not_fail_it(
    make_rig: Any,
) -> None:
    rig = make_rig(running_steps_per_engine_max=2, wait_ns_max=Nanos(SECOND))
    favourite = {"a": "e2", "b": "e2", "c": "e3", "s": "e1"}
    rig.policy.score_of = lambda step, engine: float(engine.engine == favourite[step.step])
    for name in ("e1", "e2", "e3"):
        rig.engine(name)
    for name in favourite:
        rig.arrive(name, program=name)
    favourite["s"] = "e2"
    assert rig.push(StepFailed(step=StepId("s"), reason="reset", is_retryable=True)) == ()
    [dispatch] = rig.timer()
    assert (dispatch.step, dispatch.engine, dispatch.order) == ("s", "e3", "bound")


def test_a_full_house_asks_for_one_of_those_at_their_bound_however_many_they_are(
    make_rig: Any,
) -> None:
    rig = make_rig(running_steps_per_engine_max=1, bypasses_max=0)
    asked: list[str] = []
    rig.policy.score_of = lambda step, engine: asked.append(step.step) or 0.0
    rig.engine("e1")
    rig.engine("e2")
    for number in range(12):
        rig.arrive(f"s{number}", program=f"p{number}", at=number / 10)
    asked.clear()
    assert rig.timer(at=2) == ()
    assert set(asked) == {"s2"}
    waiting = [s for s in rig.scheduler.steps.values() if s.engine is None]
    assert [s.held_for for s in waiting] == ["engine full"] * 10
    assert dispatched(rig.finish("s0")) == ["s2"]


def test_no_step_is_bypassed_beyond_its_bound_even_within_one_turn(make_rig: Any) -> None:
    rig = make_rig(bypasses_max=2)
    rig.policy.admission = hold
    rig.engine()
    for number in range(6):
        rig.arrive(f"s{number}", program=f"p{number}", at=number)
    rig.policy.admission = lambda step, engine: Admitted()
    rig.policy.rank_of = lambda step: (-float(step.arrived_at),)
    commands = rig.timer(at=6)
    assert dispatched(commands) == ["s5", "s4", "s0", "s1", "s2", "s3"]
    assert [c.bypassed for c in commands] == [0, 1, 2, 2, 2, 2]


def test_a_step_at_its_bypass_bound_waits_for_room_and_goes_next(make_rig: Any) -> None:
    rig = make_rig(bypasses_max=1, running_steps_per_engine_max=1)
    rig.policy.admission = lambda step, engine: (
        Held(reason="shy", blocks_others=False) if step.step == "s0" else Admitted()
    )
    rig.engine()
    rig.arrive("s0", at=0)
    assert dispatched(rig.arrive("s1", program="p1b", at=1)) == ["s1"]
    assert dispatched(rig.arrive("s2", program="p2", at=2)) == []
    [dispatch] = rig.finish("s1")
    assert (dispatch.step, dispatch.order, dispatch.bypassed) == ("s0", "bound", 1)


def test_a_retried_step_keeps_its_place_and_its_bypasses(make_rig: Any) -> None:
    rig = make_rig(bypasses_max=1)
    rig.policy.admission = lambda step, engine: (
        Held(reason="shy", blocks_others=False) if step.step == "s0" else Admitted()
    )
    rig.engine()
    rig.arrive("s0", at=0)
    commands = rig.arrive("s1", program="p2", at=1)
    assert dispatched(commands) == ["s1", "s0"]
    failed = StepFailed(step=StepId("s0"), reason="reset", is_retryable=True)
    [again] = rig.push(failed, at=2)
    assert (again.step, again.order) == ("s0", "bound")


def test_a_step_that_blocks_keeps_others_from_its_engine_only(rig: Any) -> None:
    rig.policy.score_of = lambda step, engine: float(engine.engine == step.arrived.agent)
    rig.policy.admission = lambda step, engine: (
        Held(reason="big") if step.step == "big" else Admitted()
    )
    rig.engine("e1")
    rig.engine("e2")
    rig.arrive("big", agent="e1", at=0)
    assert rig.arrive("s1", program="p2", agent="e1", at=1) == ()
    assert dispatched(rig.arrive("s2", program="p3", agent="e2", at=2)) == ["s2"]
    held = {s.step: s.held_for for s in rig.scheduler.steps.values()}
    assert held["big"] == "big"
    assert held["s1"] in ("behind others", "")


def test_a_hold_with_an_end_is_asked_again_then(rig: Any) -> None:
    rig.policy.admission = lambda step, engine: Held(reason="wait", until=Instant(3 * SECOND))
    rig.engine()
    rig.arrive("s1", at=1)
    assert rig.scheduler.next_deadline() == 3 * SECOND
    rig.policy.admission = lambda step, engine: Admitted()
    assert dispatched(rig.timer()) == ["s1"]


def test_a_hold_whose_end_is_past_does_not_spin(rig: Any) -> None:
    rig.policy.admission = lambda step, engine: Held(reason="wait", until=Instant(0))
    rig.engine()
    rig.arrive("s1", at=1)
    assert rig.scheduler.next_deadline() == rig.scheduler.limits.wait_ns_max + SECOND


def test_turned_away(rig: Any) -> None:
    rig.policy.admission = lambda step, engine: TurnedAway(reason="no", retry_after=Nanos(7))
    rig.engine()
    [reject] = rig.arrive("s1")
    assert reject == Reject(
        step=StepId("s1"), reason=RejectReason.REFUSED, retry_after=Nanos(7), detail="no"
    )


def test_admission_may_give_up_what_is_kept_for_paused_conversations(rig: Any) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    rig.engine()
    rig.arrive("s1", conversation="idle")
    [pin] = rig.finish("s1")
    releases = (ConversationId("idle"), ConversationId("busy"), ConversationId("nobody"))
    rig.policy.admission = lambda step, engine: Admitted(releases=releases)
    unpin, dispatch = rig.arrive("s2", program="p2", conversation="busy")
    assert (unpin.pin, unpin.reason) == (pin.pin, UnpinReason.RELEASED)
    assert dispatch.step == "s2"
    idle = rig.scheduler.programs["p1"].conversations["idle"]
    assert not idle.is_resident
    assert rig.scheduler.programs["p2"].conversations["busy"].is_resident


def test_ties_between_engines_go_to_the_smaller_id(rig: Any) -> None:
    for name in ("e3", "e1", "e2"):
        rig.engine(name)
    assert rig.arrive("s1")[0].engine == "e1"


@pytest.mark.parametrize(("engine", "place"), [("e1", "stay"), ("e2", "move")])
def test_a_dispatch_explains_itself(rig: Any, engine: str, place: str) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    rig.policy.score_of = lambda step, e: float(e.engine == step.arrived.agent)
    rig.policy.priority_of = lambda step: 7
    rig.engine("e1")
    rig.engine("e2")
    [first] = rig.arrive("s1", agent="e1")
    assert (first.place, first.pin, first.priority) == ("new", "none", 7)
    rig.finish("s1", tools={"k": "bash"})
    [second] = rig.arrive("s2", agent=engine)
    assert (second.place, second.pin) == (place, "hit" if place == "stay" else "elsewhere")


def test_a_full_engine_stops_the_search(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=1)
    rig.engine()
    rig.arrive("s1")
    asked = []
    rig.policy.rank_of = lambda step: asked.append(step.step) or (0.0,)
    rig.arrive("s2")
    rig.arrive("s3")
    assert asked == []


def test_a_full_house_asks_nobody_however_many_wait(rig: Any) -> None:
    asked: list[str] = []
    rig.policy.rank_of = lambda step: asked.append(step.step) or (0.0,)
    rig.policy.room = lambda engine: engine.running_steps < 1
    rig.engine("e1")
    rig.engine("e2")
    assert dispatched(rig.arrive("s1")) == ["s1"]
    assert dispatched(rig.arrive("s2")) == []  # e1 is its choice, and e2 has room
    asked.clear()
    rig.policy.room = lambda engine: False
    assert rig.arrive("s3") == ()
    assert asked == []
    rig.policy.room = lambda engine: True
    assert dispatched(rig.finish("s1")) == ["s2", "s3"]


def test_a_cancelled_step_leaves_the_queue(rig: Any) -> None:
    rig.engine()
    rig.push(EngineLost(engine=EngineId("e1"), reason="x"))
    rig.arrive("s1")
    rig.push(StepCancelled(step=StepId("s1"), reason="client"))
    assert rig.engine() == ()
    assert rig.scheduler.next_deadline() is None


@pytest.mark.parametrize("is_full_before", [True, False])
def test_whose_engine_is_lost_is_told_so_in_time_while_the_others_are_full(
    make_rig: Any, *, is_full_before: bool
) -> None:
    rig = make_rig(running_steps_per_engine_max=1, engine_wait_ns_max=Nanos(2 * SECOND))
    rig.engine("a", models=("m1",))
    rig.push(EngineLost(engine=EngineId("a"), reason="crash"))
    arrivals = [("s1", "m1"), ("s2", "m2"), ("s3", "m2")]
    rig.policy.rank_of = lambda step: (-float(step.arrived_at), step.step == "s1")
    if is_full_before:
        rig.engine("b", models=("m2",))
        arrivals = arrivals[1:] + arrivals[:1]
    for step, model in arrivals:
        rig.arrive(step, program=f"p-{step}", model=model)
    if not is_full_before:
        rig.engine("b", models=("m2",))
    assert len(rig.scheduler.engines["b"].running) == 1
    assert rig.scheduler.steps["s1"].held_for == "no engine"
    assert rig.scheduler.next_deadline() == 2 * SECOND
    [reject] = rig.timer()
    assert (reject.step, reject.reason) == ("s1", RejectReason.NO_ENGINE)
    [reject] = rig.arrive("s4", program="p4", model="m3")
    assert (reject.step, reject.reason) == ("s4", RejectReason.UNKNOWN_MODEL)


def shut_out(rig: Any, answer: Any) -> list[str]:
    """Let the scripted admission say `answer` to all newcomers; the steps that are asked for."""
    asked: list[str] = []

    def admit(step: Any, engine: Any) -> Any:
        asked.append(step.step)
        return Held(reason="programs", blocks_others=False)

    rig.policy.admission = admit
    rig.policy.shuts_out = lambda engines, world, *, now: answer
    rig.scheduler._guarded._take(rig.scheduler.policies)
    return asked


def test_newcomers_that_are_shut_out_are_not_asked_for(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=Nanos(10 * SECOND))
    rig.engine()
    asked = shut_out(rig, Held(reason="programs", blocks_others=False))
    for number in range(3):
        rig.arrive(f"s{number}", program=f"p{number}", at=number)
    assert not asked
    assert {s.held_for for s in rig.scheduler.steps.values()} == {"programs"}
    # A second step of a program that waits: something of it is under way, so it is asked for.
    rig.arrive("s0-more", program="p0", conversation="p0#1", at=4)
    assert asked == ["s0", "s0-more"]
    [forced] = rig.timer()  # no policy breaks the promise of a bounded wait
    assert (forced.step, forced.order) == ("s0", "bound")


def test_newcomers_of_one_model_are_shut_out_and_others_asked_for(make_rig: Any) -> None:
    rig = make_rig()
    for name in ("large", "small"):
        rig.engine(name, models=(name,))
    held = Held(reason="programs", blocks_others=False)
    asked = shut_out(rig, None)
    rig.policy.shuts_out = lambda engines, world, *, now: (
        held if [e.engine for e in engines] == ["large"] else None
    )
    rig.scheduler._guarded._take(rig.scheduler.policies)
    for number, model in enumerate(("large", "small", "large")):
        rig.arrive(f"s{number}", program=f"p{number}", model=model)
    assert set(asked) == {"s1"}
    assert {s.held_for for s in rig.scheduler.steps.values()} == {"programs"}
    # What no engine has any more waits for one, and not for others' programs.
    rig.push(EngineLost(engine=EngineId("large"), reason="crash"))
    assert {s.held_for for s in rig.scheduler.steps.values()} == {"programs", "no engine"}


def test_children_of_whoever_was_served_are_asked_for(rig: Any) -> None:
    rig.engine()
    rig.arrive("s0", program="parent")
    asked = shut_out(rig, Held(reason="programs", blocks_others=False))
    rig.arrive("s1", program="early", parent=ProgramId("parent"))
    assert not asked  # its parent has no answer yet
    rig.finish("s0")
    assert asked == ["s1"]
    asked.clear()
    rig.arrive("s2", program="late", parent=ProgramId("parent"))
    rig.arrive("s3", program="stranger", parent=ProgramId("nobody"))
    assert set(asked) == {"s1", "s2"}


@pytest.mark.parametrize(
    "answer",
    [Admitted(), Held(reason="x"), Held(reason="x", blocks_others=False, until=Instant(9)), 5],
)
def test_what_does_not_hold_for_all_newcomers_is_counted_and_each_is_asked_for(
    make_rig: Any, answer: Any
) -> None:
    rig = make_rig()
    rig.engine()
    asked = shut_out(rig, answer)
    rig.arrive("s1")
    assert asked == ["s1"]
    assert rig.scheduler.policy_errors == {"admit.shuts_out": 1}


@pytest.mark.parametrize("ends", [(5, 3), (3, 5)])
def test_of_several_that_are_held_the_first_that_may_go_is_asked_again(
    rig: Any, ends: tuple[int, int]
) -> None:
    until = {f"s{number}": Instant(end * SECOND) for number, end in enumerate(ends)}
    rig.policy.admission = lambda step, engine: Held(
        reason="x", until=until[step.step], blocks_others=False
    )
    rig.engine()
    for step in until:
        rig.arrive(step, program=step, at=1)
    assert rig.scheduler.next_deadline() == 3 * SECOND


def test_of_several_without_an_engine_the_first_is_told_so_first(make_rig: Any) -> None:
    rig = make_rig(engine_wait_ns_max=Nanos(2 * SECOND))
    for number in range(2):
        rig.arrive(f"s{number}", program=f"p{number}", at=number)
    for number in range(2):
        assert rig.scheduler.next_deadline() == (2 + number) * SECOND
        [reject] = rig.timer()
        assert (reject.step, reject.reason) == (f"s{number}", RejectReason.NO_ENGINE)


def test_a_due_step_whose_engine_is_full_goes_where_the_fewest_run(make_rig: Any) -> None:
    rig = make_rig(running_steps_per_engine_max=2, wait_ns_max=Nanos(SECOND))
    favourite = {"a": "e1", "b": "e1", "c": "e2", "s": "e1"}
    rig.policy.score_of = lambda step, engine: float(engine.engine == favourite[step.step])
    for name in ("e1", "e2", "e3"):
        rig.engine(name)
    for name in favourite:
        rig.arrive(name, program=name)
    [dispatch] = rig.timer()
    assert (dispatch.step, dispatch.engine) == ("s", "e3")


def test_only_a_step_that_leaves_others_behind_tells_how_fast_the_queue_moves(
    make_rig: Any,
) -> None:
    rig = make_rig(running_steps_per_engine_max=1)
    pace = rig.scheduler._books.pace
    guess = pace.ns_per_step
    rig.engine()
    for number in range(3):  # each is sent as it comes
        rig.arrive(f"s{number}", at=10 * number)
        rig.finish(f"s{number}")
    assert pace.ns_per_step == guess
    for number in range(4):
        rig.arrive(f"q{number}", program=f"q{number}", at=30)
    rig.finish("q0", at=31)  # q1 goes, and others wait
    assert pace.ns_per_step == guess
    rig.finish("q1", at=33)
    assert pace.ns_per_step == pytest.approx(guess + 0.1 * (2 * SECOND - guess))
