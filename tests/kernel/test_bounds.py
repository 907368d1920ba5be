"""The sensible wait bound, and newcomers that it cannot be kept for."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import arrived

from agentsched.kernel.bounds import newcomers_wait
from agentsched.model import (
    SECOND,
    EngineId,
    EngineLost,
    Nanos,
    ProgramId,
    Reject,
    RejectReason,
    StepClass,
    TenantConfigured,
    TenantId,
    TenantLimits,
)
from agentsched.policy import Held

BATCH = StepClass.BATCH


def test_nothing_is_said_while_nothing_is_known(rig: Any) -> None:
    assert rig.scheduler.sensible_wait() is None
    rig.engine()
    rig.arrive("s1")
    rig.finish("s1", at=1)
    assert rig.scheduler.sensible_wait() is None, "the engine's capacity is unknown"


def test_a_sensible_bound_lets_all_that_fit_come_in_once(rig: Any) -> None:
    rig.engine(kv_tokens=10_000)
    for number in range(9):
        rig.arrive(f"s{number}", program=f"p{number}", at=2 * number, tokens=990)
        assert rig.scheduler.sensible_wait() is None, "all fits, so nobody takes turns"
        rig.finish(f"s{number}", at=2 * number + 2, prompt=990, output=10)
    # Ten programs of 1,000 tokens fit; each costs 0.1 s of prefill at the first guess, and a turn.
    assert rig.scheduler.sensible_wait() == pytest.approx(2 * 10 * 2.1 * SECOND)


def test_a_newcomer_that_could_not_be_served_in_time_is_told_so(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=Nanos(3 * SECOND), ready_steps_max=1_000)
    rig.engine()
    rig.policy.admission = lambda step, engine: Held(reason="never")
    # Forced in one after the other, at their bounds: one each second.
    for number in range(12):
        rig.arrive(f"s{number}", program=f"p{number}", at=number)
        while (at := rig.scheduler.next_deadline()) is not None and at <= number * SECOND:
            rig.timer()
    for number in range(12, 40):
        [*_, last] = rig.arrive(f"s{number}", program=f"p{number}", at=12) or [None]
        if isinstance(last, Reject):
            break
    assert last.reason is RejectReason.WAIT_BOUND
    waiting = rig.scheduler.statistics().waiting_steps
    pace = rig.scheduler._books.pace.ns_per_step
    assert waiting * pace > 2 * 3 * SECOND
    assert SECOND <= last.retry_after <= 60 * SECOND
    # A program that is known is never told this.
    assert not [c for c in rig.arrive("more", program="p0") if isinstance(c, Reject)]


@pytest.mark.parametrize(
    ("tenant", "ahead"),
    [
        ("alone", 2),  # a turn of each of the two that wait
        ("few", 5),  # two of its own, and three of the other tenant's turns
        ("many", 9),  # no more than all that wait
    ],
)
def test_a_newcomer_waits_for_its_tenants_turns_and_not_for_the_whole_queue(
    rig: Any, tenant: str, ahead: int
) -> None:
    for number in range(7):
        rig.arrive(f"m{number}", program=f"m{number}", tenant="many")
    for number in range(2):
        rig.arrive(f"f{number}", program=f"f{number}", tenant="few")
    books = rig.scheduler._books
    newcomer = arrived("s", "new", tenant=tenant)
    assert newcomers_wait(newcomer, books) == round(ahead * books.pace.ns_per_step)


def test_a_newcomer_waits_for_those_alone_that_want_the_same_engines(rig: Any) -> None:
    rig.policy.admission = lambda step, engine: Held(reason="never")
    rig.engine("large", models=("large", "tuned"))
    rig.engine("small", models=("small",))
    for number, model in enumerate(("large",) * 5 + ("tuned",) * 3 + ("small",)):
        rig.arrive(f"s{number}", program=f"p{number}", model=model)
    books = rig.scheduler._books

    def waits(model: str) -> float:
        newcomer = arrived("s", "new", tenant="t1", model=model)
        return newcomers_wait(newcomer, books) / books.pace.ns_per_step

    assert [waits(model) for model in ("small", "large", "tuned", "")] == [1, 8, 8, 9]
    rig.push(EngineLost(engine=EngineId("small"), reason="crash"))
    assert waits("small") == 9, "nobody knows where it will go"


def test_batch_work_keeps_no_other_newcomer_out(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=Nanos(3 * SECOND))
    rig.policy.admission = lambda step, engine: Held(reason="never")
    rig.engine()
    for number in range(40):
        rig.arrive(f"b{number}", program="night", conversation=f"c{number % 9}", step_class=BATCH)
    assert 40 * rig.scheduler._books.pace.ns_per_step > 2 * 3 * SECOND
    assert rig.arrive("s", program="new") == ()
    [reject] = rig.arrive("b", program="more", step_class=BATCH)
    assert reject.reason is RejectReason.WAIT_BOUND


def test_tenants_with_batch_work_alone_take_no_turns_of_others(rig: Any) -> None:
    for number in range(7):
        rig.arrive(f"b{number}", program=f"b{number}", tenant=f"t{number}", step_class=BATCH)
    for number in range(2):
        rig.arrive(f"s{number}", program=f"s{number}", tenant="few")
    books = rig.scheduler._books
    for tenant, ahead in (("few", 2), ("t1", 1), ("other", 1)):
        newcomer = arrived("s", "new", tenant=tenant)
        assert newcomers_wait(newcomer, books) == round(ahead * books.pace.ns_per_step)


def test_a_child_of_whoever_was_served_is_let_in(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=Nanos(3 * SECOND))
    rig.engine()
    rig.arrive("s", program="parent")
    rig.finish("s")
    rig.policy.admission = lambda step, engine: Held(reason="never")
    for number in range(40):
        rig.arrive(f"s{number}", program="parent", conversation=f"c{number % 9}")
    [reject] = rig.arrive("stranger", program="stranger")
    assert reject.reason is RejectReason.WAIT_BOUND
    assert rig.arrive("kid", program="kid", parent=ProgramId("parent")) == ()


@pytest.mark.parametrize("step_class", StepClass)
def test_the_last_tenth_of_the_queue_is_for_programs_whose_work_was_answered_also_batch(
    make_rig: Any, step_class: StepClass
) -> None:
    """A title or a probe begins nothing."""
    rig = make_rig(ready_steps_max=10)
    rig.engine()
    rig.arrive("s", program="begun", step_class=step_class)
    rig.finish("s")
    rig.policy.admission = lambda step, engine: Held(reason="never")
    for number in range(9):
        rig.arrive(f"s{number}", program="busy", conversation=f"c{number}")
    [reject] = rig.arrive("new", program="new", step_class=step_class)
    assert reject.reason is RejectReason.QUEUE_FULL
    refused = rig.arrive("more", program="begun", step_class=step_class)
    begins = step_class in (StepClass.STEP, StepClass.SUBAGENT, BATCH)
    assert [reject.reason for reject in refused] == [RejectReason.QUEUE_FULL] * (not begins)


@pytest.fixture
def capped(make_rig: Any) -> Any:
    rig = make_rig()
    limits = TenantLimits(held_steps_max=2, programs_max=3, pins_max=1, priority_max=5)
    rig.push(TenantConfigured(tenant=TenantId("t1"), weight=2.0, limits=limits))
    return rig


def test_a_tenants_queue_is_its_own(capped: Any) -> None:
    for number in range(2):
        assert capped.arrive(f"s{number}", program=f"p{number}") == ()
    [reject] = capped.arrive("s2", program="p2")
    assert reject.reason is RejectReason.TENANT_QUEUE
    assert SECOND <= reject.retry_after <= 60 * SECOND
    assert capped.arrive("s3", program="p3", tenant="t2") == ()


def test_a_childs_queue_is_its_parents_tenants(capped: Any) -> None:
    for number in range(2):
        capped.arrive(f"s{number}", program=f"p{number}")
    [reject] = capped.arrive("kid", program="kid", tenant="t2", parent=ProgramId("p0"))
    assert reject.reason is RejectReason.TENANT_QUEUE


def test_a_tenants_programs_are_counted(capped: Any) -> None:
    capped.engine()
    for number in range(3):
        capped.arrive(f"s{number}", program=f"p{number}")
        capped.finish(f"s{number}")
    [reject] = capped.arrive("s3", program="p3")
    assert reject.reason is RejectReason.TENANT_PROGRAMS
    assert reject.retry_after == SECOND, "nobody waits: as soon as may be"
    assert not isinstance(capped.arrive("s4", program="p0")[0], Reject)


def test_what_a_program_begins_is_no_further_one(make_rig: Any) -> None:
    """It could not end before its sub-agents do, and these not begin before it ended."""
    rig = make_rig(conversations_per_program_max=2)
    limits = TenantLimits(programs_max=2)
    rig.push(TenantConfigured(tenant=TenantId("t1"), limits=limits))
    rig.engine()
    rig.arrive("s", program="agent")
    for number in range(4):
        kid = f"kid{number}"
        [sent] = rig.arrive(kid, program=kid, parent=ProgramId("agent"))
        assert not isinstance(sent, Reject)
    # Nor has whoever names a parent no ceiling: as many as these programs' conversations may be.
    [reject] = rig.arrive("kid4", program="kid4", parent=ProgramId("agent"))
    assert (reject.reason, reject.detail) == (
        RejectReason.TENANT_PROGRAMS,
        "4 sub-programs of this tenant are live",
    )
    [sent] = rig.arrive("s2", program="another")
    assert not isinstance(sent, Reject)
    [reject] = rig.arrive("s3", program="third")
    assert (reject.reason, reject.detail) == (
        RejectReason.TENANT_PROGRAMS,
        "2 programs of this tenant are live",
    )


def test_a_child_that_is_over_makes_room_for_another(make_rig: Any) -> None:
    rig = make_rig(conversations_per_program_max=1)
    rig.push(TenantConfigured(tenant=TenantId("t1"), limits=TenantLimits(programs_max=1)))
    rig.engine()
    rig.arrive("s", program="agent")
    for number in range(3):
        kid = f"kid{number}"
        [sent] = rig.arrive(kid, program=kid, parent=ProgramId("agent"), is_last=True)
        assert not isinstance(sent, Reject)
        rig.finish(kid)
    # One that names a parent which is not there is one like any other.
    [reject] = rig.arrive("orphan", program="orphan", parent=ProgramId("gone"))
    assert reject.reason is RejectReason.TENANT_PROGRAMS


def test_a_tenant_with_too_many_programs_comes_back_when_its_queue_has_moved(rig: Any) -> None:
    limits = TenantLimits(programs_max=4)
    rig.push(TenantConfigured(tenant=TenantId("t1"), weight=1.0, limits=limits))
    for number in range(4):
        rig.arrive(f"a{number}", program=f"a{number}")
    for other in ("t2", "t3"):
        rig.arrive(f"s-{other}", program=f"p-{other}", tenant=other)
    [reject] = rig.arrive("s", program="one-more")
    assert reject.reason is RejectReason.TENANT_PROGRAMS
    # Four of its own wait, and after each of them one of each of the other two tenants.
    assert reject.retry_after == 4 * 3 * rig.scheduler._books.pace.ns_per_step


@pytest.mark.parametrize(("asked", "granted"), [(-3, 0), (2, 2), (9, 5)])
def test_a_priority_is_clipped(capped: Any, asked: int, granted: int) -> None:
    capped.arrive("s1", priority=asked)
    assert capped.scheduler.steps["s1"].priority == granted


def test_priorities_order_what_waits(rig: Any) -> None:
    rig.arrive("s1", program="p1", at=0, priority=1)
    rig.arrive("s2", program="p2", at=1)
    assert [c.step for c in rig.engine()] == ["s2", "s1"]


def test_whom_another_replica_served_is_no_newcomer_here(make_rig: Any) -> None:
    rig = make_rig(wait_ns_max=Nanos(3 * SECOND), ready_steps_max=45)
    rig.engine()
    rig.arrive("s", program="busy")
    rig.finish("s")
    rig.policy.admission = lambda step, engine: Held(reason="never")
    for number in range(40):
        rig.arrive(f"s{number}", program="busy", conversation=f"c{number % 9}")
    home = {"home": EngineId("e1"), "home_tokens": 90}
    for number in range(5):
        # The last tenth of the queue is for those that were served, too.
        [reject] = rig.arrive("s-new", program="new")
        assert reject.reason is (RejectReason.QUEUE_FULL if number else RejectReason.WAIT_BOUND)
        assert rig.arrive(f"moved{number}", program=f"moved{number}", **home) == ()
    [reject] = rig.arrive("more", program="more", **home)
    assert reject.reason is RejectReason.QUEUE_FULL
