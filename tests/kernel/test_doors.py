"""Who is let in: the last tenth of each queue, and what a tenant may pin."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import (
    SECOND,
    CallId,
    Nanos,
    Pin,
    ProgramId,
    Reject,
    RejectReason,
    TenantConfigured,
    TenantId,
    TenantLimits,
    ToolName,
    ToolStarted,
    Unpin,
)
from agentsched.policy import Held, Retention

T1 = TenantId("t1")


def limit(rig: Any, **limits: Any) -> None:
    rig.push(TenantConfigured(tenant=T1, limits=TenantLimits(**limits)))


def hold_behind_one_that_was_served(rig: Any, *, waiting: int) -> None:
    """The program `served` has an answer; then so many first steps of others wait."""
    rig.engine()
    rig.arrive("s", program="served")
    rig.finish("s")
    rig.policy.admission = lambda step, engine: Held(reason="never")
    for number in range(waiting):
        assert rig.arrive(f"s{number}", program=f"p{number}") == ()


def test_the_last_tenth_of_the_queue_is_for_programs_that_were_served(make_rig: Any) -> None:
    rig = make_rig(ready_steps_max=20)
    hold_behind_one_that_was_served(rig, waiting=18)
    [reject] = rig.arrive("new", program="new")
    assert reject.reason is RejectReason.QUEUE_FULL
    assert reject.retry_after == 18 * rig.scheduler._books.pace.ns_per_step
    # A second step of a program that waits for its first answer is no better.
    [reject] = rig.arrive("second", program="p0", conversation="p0/side")
    assert reject.reason is RejectReason.QUEUE_FULL
    for number in range(2):
        more = f"more{number}"
        assert rig.arrive(more, program="served", conversation=f"served/{number}") == ()
    [reject] = rig.arrive("last", program="served", conversation="served/last")
    assert reject.reason is RejectReason.QUEUE_FULL


@pytest.mark.parametrize("others", [0, 1])
def test_the_last_tenth_of_a_tenants_queue_is_too(rig: Any, others: int) -> None:
    limit(rig, held_steps_max=20)
    hold_behind_one_that_was_served(rig, waiting=18)
    for number in range(others):
        assert rig.arrive(f"o{number}", program=f"o{number}", tenant=f"other {number}") == ()
    pace = rig.scheduler._books.pace.ns_per_step
    [reject] = rig.arrive("new", program="new")
    assert reject.reason is RejectReason.TENANT_QUEUE
    # Its line moves with its turns, and this step would be the nineteenth in it.
    assert reject.retry_after == 19 * (1 + others) * pace
    for number in range(2):
        more = f"more{number}"
        assert rig.arrive(more, program="served", conversation=f"served/{number}") == ()
    [reject] = rig.arrive("last", program="served", conversation="served/last")
    assert (reject.reason, reject.retry_after) == (
        RejectReason.TENANT_QUEUE,
        21 * (1 + others) * pace,
    )


def pause(rig: Any, name: str, *, tenant: str = "t1") -> Any:
    """A program pauses with a context of 110 tokens."""
    rig.arrive(name, program=name, tenant=tenant)
    return rig.finish(name, tools={f"k-{name}": "bash"}, prompt=100, output=10)


@pytest.mark.parametrize(
    ("limits", "asked_for"),
    [
        ({"pinned_tokens_max": 219}, ["a"]),
        ({"pinned_tokens_max": 220}, ["a", "b"]),
        ({"pins_max": 1}, ["a"]),
        ({"pins_max": 2}, ["a", "b"]),
        ({"pins_max": 2, "pinned_tokens_max": 219}, ["a"]),
    ],
)
def test_a_tenant_whose_pins_have_no_room_left_is_not_asked_for(
    rig: Any, limits: dict[str, int], asked_for: list[str]
) -> None:
    limit(rig, **limits)
    asked: list[str] = []
    rig.policy.retention = lambda paused: (
        asked.append(paused.program) or Retention(ttl=Nanos(SECOND), value=float(len(asked)))
    )
    rig.engine()
    for name, tenant in (("other", "t2"), ("a", "t1"), ("b", "t1"), ("more", "t2")):
        pause(rig, name, tenant=tenant)
    assert asked == ["other", *asked_for, "more"]
    assert rig.scheduler.statistics().pins == len(asked)


def test_the_pin_that_a_conversation_has_is_not_in_its_way(rig: Any) -> None:
    limit(rig, pins_max=1)
    rig.policy.retention = lambda paused: Retention(ttl=Nanos(SECOND))
    rig.engine()
    [first] = pause(rig, "a")
    told = ToolStarted(program=ProgramId("a"), call_id=CallId("told"), tool=ToolName("bash"))
    ended, again = rig.push(told)
    assert isinstance(ended, Unpin)
    assert isinstance(again, Pin)
    assert (ended.pin, again.conversation) == (first.pin, first.conversation)
    assert not [c for c in pause(rig, "b") if isinstance(c, Pin | Reject)]
