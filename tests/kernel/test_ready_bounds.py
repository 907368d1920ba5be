"""A promise that changes while steps wait holds for those that wait already, to the step."""

from __future__ import annotations

import pytest

from agentsched.kernel.ready import ReadySteps
from agentsched.kernel.records import StepRecord
from agentsched.model import (
    ConversationId,
    Instant,
    Nanos,
    ProgramId,
    StepArrived,
    StepId,
    TenantId,
)


def waiting(name: str, *, bypassed: int) -> StepRecord:
    arrived = StepArrived(
        step=StepId(name),
        program=ProgramId("p"),
        conversation=ConversationId("c"),
        tenant=TenantId("t"),
        prompt_tokens=1,
    )
    record = StepRecord(
        arrived=arrived,
        tenant=TenantId("t"),
        arrived_at=Instant(0),
        waiting_since=Instant(0),
    )
    record.bypassed = bypassed
    return record


@pytest.mark.parametrize(("bypassed", "is_due"), [(2, False), (3, True), (4, True)])
def test_a_new_bypass_bound_counts_what_passed_already(bypassed: int, is_due: bool) -> None:
    ready = ReadySteps(wait_ns_max=Nanos(1_000), bypasses_max=9)
    step = waiting("s", bypassed=bypassed)
    ready.add(step)
    ready.set_bounds(wait_ns_max=Nanos(1_000), bypasses_max=3)
    due = ready.next_due(now=Instant(1), passing=set())
    assert (due is step) is is_due
