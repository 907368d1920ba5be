"""Parents and children: what a child inherits, and what is let go at the join."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import (
    SECOND,
    Instant,
    Lineage,
    Nanos,
    ProgramId,
    TenantConfigured,
    TenantId,
    TenantLimits,
    Unpin,
    UnpinReason,
)
from agentsched.policy import Retention


def test_a_child_inherits_tenant_deadline_and_place(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1", tenant="blue", deadline=Instant(90 * SECOND))
    rig.arrive("s2", program="other", tenant="red")
    rig.arrive("s3", program="child", tenant="red", parent=ProgramId("p1"))
    parent, child = rig.scheduler.programs["p1"], rig.scheduler.programs["child"]
    assert (child.tenant, child.deadline, child.ordinal) == ("blue", 90 * SECOND, parent.ordinal)
    assert rig.scheduler.steps["s3"].deadline == 90 * SECOND
    assert list(parent.children) == ["child"]


def test_a_program_without_a_deadline_has_its_tenants(rig: Any) -> None:
    limits = TenantLimits(deadline_ns=Nanos(7 * SECOND))
    rig.push(TenantConfigured(tenant=TenantId("t1"), limits=limits), at=0)
    rig.arrive("s1", at=1)
    assert rig.scheduler.steps["s1"].deadline == 8 * SECOND


def spawn(rig: Any, *, child: str = "p1/sub") -> Any:
    rig.engine()
    rig.arrive("s1")
    rig.finish("s1", tools={"k": "task"})
    more = {"lineage": Lineage.SPAWNED, "parent_conversation": "p1/main"}
    rig.arrive("c1", conversation=child, **more)
    return rig.scheduler.programs["p1"].conversations[child]


def test_at_the_join_the_childrens_kv_is_let_go(rig: Any) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(100 * SECOND))
    child = spawn(rig)
    [pin] = rig.finish("c1", finish_reason="stop")
    assert child.is_resident
    commands = rig.arrive("s2", answers=("k",))
    ended = [c for c in commands if isinstance(c, Unpin)]
    assert [(c.pin, c.reason) for c in ended if c.pin == pin.pin] == [
        (pin.pin, UnpinReason.SUPERSEDED)
    ]
    assert not child.is_resident


def test_a_child_that_goes_on_keeps_its_kv(rig: Any) -> None:
    child = spawn(rig)
    rig.finish("c1", tools={"c": "bash"})
    rig.arrive("s2", answers=("k",))
    assert child.is_resident


def test_child_programs_are_let_go_as_well(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1")
    rig.finish("s1", tools={"k": "task"})
    rig.arrive("c1", program="child", parent=ProgramId("p1"))
    rig.finish("c1", finish_reason="stop")
    child = rig.scheduler.programs["child"].conversations["child/main"]
    assert child.is_resident
    rig.arrive("s2", answers=("k",))
    assert not child.is_resident


@pytest.mark.parametrize(
    ("lineage", "parent"),
    [(Lineage.SPAWNED, "p1/side"), (Lineage.FORKS, "p1/main")],
    ids=["somebody else's sub-agent", "a branch of its own"],
)
def test_only_a_conversations_own_sub_agents_are_let_go(
    rig: Any, lineage: Lineage, parent: str
) -> None:
    rig.engine()
    rig.arrive("s1")
    rig.finish("s1", tools={"k": "task"})
    rig.arrive("c1", conversation="p1/c", lineage=lineage, parent_conversation=parent)
    rig.finish("c1", finish_reason="stop")
    other = rig.scheduler.programs["p1"].conversations["p1/c"]
    assert other.is_over
    rig.arrive("s2", answers=("k",))
    assert other.is_resident
