"""The life of steps and programs: events in, commands out."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import pytest

from agentsched.model import (
    SECOND,
    ConversationId,
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLost,
    HintAnswered,
    HintOutcome,
    Instant,
    Lineage,
    Nanos,
    Pin,
    PinId,
    ProgramClosed,
    ProgramId,
    ProgramOpened,
    Reject,
    RejectReason,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    TenantConfigured,
    TenantId,
    TimerFired,
    ToolFinished,
    ToolStarted,
    Unpin,
    UnpinReason,
)
from agentsched.model.ids import CallId, ToolName
from agentsched.policy import Admitted, Held, Retention, TurnedAway


def rejected(commands: Any) -> list[RejectReason]:
    return [c.reason for c in commands if isinstance(c, Reject)]


def dispatched(commands: Any) -> list[tuple[str, str]]:
    return [(c.step, c.engine) for c in commands if isinstance(c, Dispatch)]


def test_a_new_one_has_counted_nothing(rig: Any) -> None:
    assert not any(astuple(rig.scheduler.statistics()))


def test_a_step_goes_at_once_and_ends(rig: Any) -> None:
    rig.engine()
    [dispatch] = rig.arrive("s1")
    assert dispatch == Dispatch(
        step=StepId("s1"),
        engine=EngineId("e1"),
        order="scripted",
        place="new",
        pin="none",
    )
    assert rig.start("s1") == ()
    assert rig.finish("s1", prompt=100, cached=40, output=10) == ()
    program = rig.scheduler.programs[ProgramId("p1")]
    assert (program.steps_done, program.active_steps, program.served_tokens) == (1, 0, 70)
    assert program.conversations["p1/main"].context_tokens == 110
    assert rig.scheduler.steps == {}
    assert rig.scheduler.statistics().steps_total == 1
    assert rig.scheduler.tenants[TenantId("t1")].served_tokens == 70


def test_ends_that_come_twice_or_late_are_counted_and_change_nothing(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1")
    rig.finish("s1")
    before = rig.scheduler.statistics().ignored_total
    for event in (
        StepFinished(step=StepId("s1"), usage=rig.policy.seen[-1].usage),
        StepCancelled(step=StepId("s1"), reason="late"),
        StepFailed(step=StepId("s1"), reason="late", is_retryable=True),
        StepFailed(step=StepId("nobody"), reason="unknown"),
        ProgramClosed(program=ProgramId("nobody"), reason="unknown"),
        ToolStarted(program=ProgramId("nobody"), call_id=CallId("c"), tool=ToolName("t")),
        TenantConfigured(tenant=TenantId("t1"), weight=0.0),
        TenantConfigured(tenant=TenantId("t1"), weight=-1.0),
        TenantConfigured(tenant=TenantId("t1"), weight=float("inf")),
    ):
        assert rig.push(event) == ()
    assert rig.start("s1") == ()
    assert rig.scheduler.statistics().ignored_total == before + 10
    assert rig.push(HintAnswered(pin=PinId("none"), outcome=HintOutcome.REFUSED)) == ()


def test_the_same_arrival_twice_is_one_step(rig: Any) -> None:
    assert rig.arrive("s1") == ()
    assert rig.arrive("s1") == ()
    assert rig.scheduler.statistics().waiting_steps == 1
    assert dispatched(rig.engine()) == [("s1", "e1")]


def test_time_stands_still_when_the_clock_steps_back(rig: Any) -> None:
    rig.engine(at=10)
    rig.arrive("s1", at=3)
    assert rig.scheduler.steps[StepId("s1")].arrived_at == 10 * SECOND
    assert rig.scheduler.latest.now == 10 * SECOND


def test_a_failed_step_is_tried_elsewhere_and_then_given_up(make_rig: Any) -> None:
    rig = make_rig(retries_max=1)
    rig.engine("e1")
    rig.engine("e2")
    [(step, first)] = dispatched(rig.arrive("s1"))
    failed = StepFailed(step=StepId(step), reason="connection reset", is_retryable=True)
    [(_, second)] = dispatched(rig.push(failed))
    assert {first, second} == {"e1", "e2"}
    assert rejected(rig.push(failed)) == [RejectReason.ENGINE_FAILED]
    assert rig.scheduler.statistics().retried_total == 1
    assert rig.scheduler.steps == {}


def test_a_failure_after_the_first_byte_is_final(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1")
    rig.start("s1")
    assert rig.push(StepFailed(step=StepId("s1"), reason="cut")) == ()
    assert rig.scheduler.steps == {}


def test_a_full_queue_turns_newcomers_away(make_rig: Any) -> None:
    rig = make_rig(ready_steps_max=1)
    rig.arrive("s1")
    [reject] = rig.arrive("s2", program="p2")
    assert reject.reason is RejectReason.QUEUE_FULL
    assert reject.retry_after is not None
    assert ProgramId("p2") not in rig.scheduler.programs


def test_the_idlest_program_makes_room_and_busy_ones_do_not(make_rig: Any) -> None:
    rig = make_rig(programs_max=2)
    rig.engine()
    for number in (1, 2):
        rig.arrive(f"s{number}", program=f"p{number}", at=number)
    rig.finish("s1", at=3)
    rig.arrive("s3", program="p3", at=4)
    assert list(rig.scheduler.programs) == ["p2", "p3"]
    assert ProgramClosed(program=ProgramId("p1"), reason="forgotten for room") in rig.policy.seen
    assert rejected(rig.arrive("s4", program="p4", at=5)) == [RejectReason.PROGRAMS_FULL]
    assert rig.push(ProgramOpened(program=ProgramId("p5"), tenant=TenantId("t"))) == ()
    assert ProgramId("p5") not in rig.scheduler.programs


@pytest.mark.parametrize("end", ["cancelled", "turned away"])
def test_a_flood_of_newcomers_costs_nobody_who_pauses_its_place(make_rig: Any, end: str) -> None:
    """They are no less programs for having been refused, and there are any number of them."""
    rig = make_rig(programs_max=4)
    rig.engine()
    rig.arrive("s", program="old")
    rig.finish("s", tools={"call": "bash"}, at=1)
    rig.policy.admission = lambda step, engine: TurnedAway(reason="programs")
    if end == "cancelled":
        rig.policy.admission = lambda step, engine: Held(reason="programs")
    for number in range(6):
        name = f"new{number}"
        rig.arrive(name, program=name, at=2 + number)
        if end == "cancelled":
            rig.push(StepCancelled(step=StepId(name), reason="the client went away"))
    assert list(rig.scheduler.programs) == ["old", "new3", "new4", "new5"]
    assert rig.scheduler.programs[ProgramId("old")].was_served
    # One of them that is served at last is like any other, and so is whoever comes back to wait.
    rig.policy.admission = lambda step, engine: Admitted()
    rig.arrive("again", program="new3", at=9)
    rig.finish("again", at=10)
    rig.policy.admission = lambda step, engine: Held(reason="programs")
    rig.arrive("waits", program="new4", at=11)
    for number in range(6, 9):
        name = f"new{number}"
        rig.arrive(name, program=name, at=6 + number)
        rig.push(StepCancelled(step=StepId(name), reason="the client went away"))
    assert list(rig.scheduler.programs) == ["old", "new3", "new4", "new8"]


def test_an_idle_program_is_forgotten_in_time(make_rig: Any) -> None:
    rig = make_rig(program_idle_ns_max=Nanos(10 * SECOND))
    rig.push(ProgramOpened(program=ProgramId("p1"), tenant=TenantId("t")), at=0)
    rig.push(ProgramOpened(program=ProgramId("p2"), tenant=TenantId("t")), at=5)
    rig.push(TimerFired(), at=9.9)
    assert len(rig.scheduler.programs) == 2
    rig.push(TimerFired(), at=10)
    assert list(rig.scheduler.programs) == ["p2"]


def test_the_idlest_conversation_is_forgotten_and_a_burst_does_not_stay(make_rig: Any) -> None:
    rig = make_rig(conversations_per_program_max=2)
    rig.engine()
    program = "p1"
    for number in range(4):  # all busy: they may exceed the limit
        rig.arrive(f"s{number}", conversation=f"c{number}", at=number)
    conversations = rig.scheduler.programs[ProgramId(program)].conversations
    assert len(conversations) == 4
    for number in range(4):
        rig.finish(f"s{number}", at=10 + number)
    rig.arrive("s9", conversation="c9", at=20)
    assert list(conversations) == ["c3", "c9"]


def test_a_conversation_belongs_to_one_program(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1", program="p1", conversation="c")
    [reject] = rig.arrive("s2", program="p2", conversation="c")
    assert reject.reason is RejectReason.REFUSED


def test_a_program_stays_its_first_tenants(rig: Any) -> None:
    rig.arrive("s1", tenant="t1")
    rig.arrive("s2", tenant="t2")
    assert rig.scheduler.steps[StepId("s2")].tenant == "t1"
    rig.engine()
    rig.finish("s2")
    assert list(rig.scheduler.tenants) == ["t1"]


def test_a_closed_program_goes_when_its_last_step_ends(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1")
    close = ProgramClosed(program=ProgramId("p1"), reason="done")
    rig.push(close)
    assert ProgramId("p1") in rig.scheduler.programs
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    assert rig.finish("s1", tools={"k": "bash"}) == ()  # no pin for a program that goes
    assert rig.scheduler.programs == {}
    assert rig.policy.seen[-1] == ProgramClosed(program=ProgramId("p1"), reason="closed")


def test_a_closed_program_that_wakes_lives_on(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1")
    rig.push(ProgramClosed(program=ProgramId("p1"), reason="done"))
    rig.arrive("s2", conversation="p1/other")
    rig.finish("s1")
    rig.finish("s2")
    assert ProgramId("p1") in rig.scheduler.programs


def test_a_program_goes_with_its_last_step(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1", is_last=True)
    rig.finish("s1")
    assert rig.scheduler.programs == {}


def test_a_closed_program_goes_also_when_its_step_is_rejected(make_rig: Any) -> None:
    rig = make_rig(engine_wait_ns_max=Nanos(SECOND))
    rig.arrive("s1", is_last=True)
    assert rejected(rig.timer()) == [RejectReason.NO_ENGINE]
    assert rig.scheduler.programs == {}


def test_steps_of_one_conversation_run_side_by_side(rig: Any) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    rig.engine()
    rig.arrive("s1")
    rig.arrive("s2")
    assert rig.finish("s1", tools={"k": "bash"}) == ()
    [pin] = rig.finish("s2", tools={"k2": "bash"})
    assert isinstance(pin, Pin)


def test_compaction_ends_what_is_kept_for_the_old_prefix(rig: Any) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    rig.engine()
    rig.arrive("s1", conversation="old")
    [pin] = rig.finish("s1")
    unpin, _ = rig.arrive(
        "s2",
        conversation="new",
        lineage=Lineage.COMPACTS,
        parent_conversation=ConversationId("old"),
    )
    assert unpin == Unpin(pin=pin.pin, engine=pin.engine, reason=UnpinReason.SUPERSEDED)


def test_compaction_does_not_reach_into_another_program(rig: Any) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    rig.engine()
    rig.arrive("s1", program="victim", conversation="old")
    rig.finish("s1")
    commands = rig.arrive(
        "s2",
        conversation="new",
        lineage=Lineage.COMPACTS,
        parent_conversation=ConversationId("old"),
    )
    assert [type(c) for c in commands] == [Dispatch]
    assert rig.scheduler.statistics().pins == 1


class TestEngines:
    def test_no_engine_is_waited_for_and_then_told(self, make_rig: Any) -> None:
        rig = make_rig(engine_wait_ns_max=Nanos(2 * SECOND))
        rig.arrive("s1", at=1)
        assert rig.scheduler.next_deadline() == 3 * SECOND
        assert rejected(rig.timer()) == [RejectReason.NO_ENGINE]

    def test_each_is_told_when_its_own_time_is_up(self, make_rig: Any) -> None:
        rig = make_rig(engine_wait_ns_max=Nanos(2 * SECOND))
        rig.arrive("s1", at=1)
        rig.arrive("s2", program="p2", at=2)
        assert [c.step for c in rig.timer()] == ["s1"]
        assert rig.now == 3 * SECOND
        assert [c.step for c in rig.timer()] == ["s2"]
        assert rig.now == 4 * SECOND

    def test_an_engine_that_comes_back_takes_up_those_who_wait(self, rig: Any) -> None:
        rig.engine()
        rig.push(EngineLost(engine=EngineId("e1"), reason="gone"))
        assert rig.arrive("s1") == ()
        assert dispatched(rig.engine()) == [("s1", "e1")]

    def test_a_drained_engine_gets_nothing_new_also_when_it_reports(self, rig: Any) -> None:
        rig.engine("e1")
        rig.push(EngineDrained(engine=EngineId("e1"), is_draining=True))
        rig.engine("e1")
        assert rig.arrive("s1") == ()
        back = EngineDrained(engine=EngineId("e1"), is_draining=False)
        assert dispatched(rig.push(back)) == [("s1", "e1")]

    @pytest.mark.parametrize("is_draining", [True, False])
    def test_an_engine_that_never_reported_gets_nothing(self, rig: Any, is_draining: bool) -> None:
        rig.push(EngineDrained(engine=EngineId("ghost"), is_draining=is_draining))
        assert rig.arrive("s1") == ()
        assert not rig.scheduler.engines[EngineId("ghost")].is_up

    def test_a_model_that_nobody_has_is_unknown(self, rig: Any) -> None:
        rig.engine(models=("small",))
        assert rejected(rig.arrive("s1", model="large")) == [RejectReason.UNKNOWN_MODEL]
        assert dispatched(rig.arrive("s2", model="small")) == [("s2", "e1")]

    def test_a_model_whose_engine_is_away_is_not_unknown(self, rig: Any) -> None:
        rig.engine("e1", models=("large",))
        rig.engine("e2", models=("small",))
        rig.push(EngineLost(engine=EngineId("e1"), reason="restarting"))
        assert rig.arrive("s1", model="large") == ()
        assert dispatched(rig.engine("e1", models=("large",))) == [("s1", "e1")]

    def test_an_engine_that_joins_late_is_not_flooded(self, make_rig: Any) -> None:
        rig = make_rig(profile="passthrough")
        rig.engine("e1")
        for number in range(4):
            rig.arrive(f"s{number}", program=f"p{number}")
        rig.engine("e2")
        then = [dispatched(rig.arrive(f"s{n}", program=f"p{n}"))[0][1] for n in range(4, 8)]
        assert sorted(then) == ["e1", "e1", "e2", "e2"]


def test_story_tells_what_a_program_saw(make_rig: Any) -> None:
    rig = make_rig(story_entries_max=3)
    rig.engine()
    rig.arrive("other", program="p2")
    rig.arrive("s1")
    rig.start("s1")
    assert [type(e.event).__name__ for e in rig.scheduler.story(StepId("s1"))] == [
        "StepArrived",
        "StepStarted",
    ]
    rig.finish("s1")
    rig.push(ToolFinished(program=ProgramId("p1"), call_id=CallId("c"), tool=ToolName("t")))
    story = rig.scheduler.story(ProgramId("p1"))
    assert [e.seq for e in story] == [3, 4, 5]
    assert rig.scheduler.story(ProgramId("nobody")) == ()


def test_story_has_the_decision_that_another_programs_event_brought(rig: Any) -> None:
    rig.policy.admission = lambda step, engine: Held(reason="wait")
    rig.engine()
    rig.arrive("s1")
    rig.policy.admission = type(rig.policy)().admission
    rig.arrive("s2", program="p2")
    assert [len(e.commands) for e in rig.scheduler.story(ProgramId("p1"))] == [0, 2]


@dataclass
class Graph:
    seen: int = 0

    def observe(self, event: Any, *, now: Instant) -> None:
        self.seen += 1

    def view(self, program: ProgramId) -> None:
        return None


def test_the_graph_sees_every_event(make_rig: Any) -> None:
    graph = Graph()
    rig = make_rig(graph=graph)
    rig.engine()
    rig.arrive("s1")
    assert graph.seen == 2


def test_a_step_that_comes_back_is_let_in_beyond_the_limit_of_the_queue(make_rig: Any) -> None:
    rig = make_rig(ready_steps_max=1, running_steps_per_engine_max=1)
    rig.engine()
    rig.arrive("s1")
    rig.arrive("s2")
    rig.push(EngineLost(engine=EngineId("e1"), reason="crash"))
    assert rig.push(StepFailed(step=StepId("s1"), reason="crash", is_retryable=True)) == ()
    assert rig.scheduler.statistics().waiting_steps == 2
    assert rejected(rig.arrive("s3")) == [RejectReason.QUEUE_FULL]


def test_a_retry_keeps_the_place_of_the_step_that_it_replaces(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=60 * SECOND, engine_wait_ns_max=10 * SECOND)
    rig.engine()
    rig.policy.admission = lambda step, engine: Held(reason="not yet")
    rig.arrive("first", program="p1", at=0)
    rig.arrive("other", program="p2", at=10)
    rig.push(StepCancelled(step=StepId("first"), reason="client went away"), at=20)
    rig.arrive("again", program="p1", at=30, retries=StepId("first"))
    assert [step for step, _ in dispatched(rig.push(TimerFired(), at=60))] == ["again"]
    assert [step for step, _ in dispatched(rig.push(TimerFired(), at=70))] == ["other"]


def test_a_retry_of_what_was_turned_away_goes_first_and_may_wait_a_little(make_rig: Any) -> None:
    rig = make_rig(
        wait_ns_max=60 * SECOND, engine_wait_ns_max=10 * SECOND, running_steps_per_engine_max=1
    )
    rig.engine()
    rig.arrive("busy", program="p0", at=0)
    rig.arrive("first", program="p1", at=1)
    rig.arrive("other", program="p2", at=40)
    assert rejected(rig.push(TimerFired(), at=61)) == [RejectReason.WAIT_BOUND]
    assert rig.arrive("again", program="p1", at=66, retries=StepId("first")) == ()
    assert dispatched(rig.finish("busy", at=70)) == [("again", "e1")]


def test_a_retry_of_what_was_overtaken_too_often_is_not_told_no_at_once(make_rig: Any) -> None:
    rig = make_rig(bypasses_max=2, wait_ns_max=60 * SECOND, engine_wait_ns_max=10 * SECOND)

    def admit(step: Any, engine: Any) -> Any:
        if step.program != "p1":
            return Admitted()
        is_due = step.bypassed >= 2
        held = Held(reason="programs", blocks_others=False)
        return TurnedAway(reason="programs") if is_due else held

    rig.policy.admission = admit
    rig.engine()
    rig.arrive("first", program="p1", at=0)
    rig.arrive("s1", program="p2", at=1)
    assert rejected(rig.arrive("s2", program="p3", at=2)) == [RejectReason.WAIT_BOUND]
    assert rig.arrive("again", program="p1", at=3, retries=StepId("first")) == ()
    assert rejected(rig.arrive("s3", program="p4", at=4)) == [RejectReason.WAIT_BOUND]


def test_a_retry_takes_the_place_of_a_step_that_still_waits(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=60 * SECOND)
    rig.arrive("first", program="p1", at=0)
    rig.arrive("again", program="p1", at=5, retries=StepId("first"))
    rig.arrive("stranger", program="p2", at=5, retries=StepId("first"))
    steps = rig.scheduler.steps
    assert steps[StepId("again")].arrived_at == steps[StepId("first")].arrived_at
    assert steps[StepId("stranger")].arrived_at == 5 * SECOND
