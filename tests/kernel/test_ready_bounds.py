"""A promise that changes while steps wait holds for those that wait already, to the step."""

from __future__ import annotations

import pytest
from shorthand import arrived, waiting

from agentsched.kernel.ready import ReadySteps
from agentsched.model import Instant, Nanos


@pytest.mark.parametrize(("bypassed", "is_due"), [(2, False), (3, True), (4, True)])
def test_a_new_bypass_bound_counts_what_passed_already(bypassed: int, is_due: bool) -> None:
    ready = ReadySteps(wait_ns_max=Nanos(1_000), bypasses_max=9)
    step = waiting(arrived("s"))
    step.bypassed = bypassed
    ready.add(step)
    ready.set_bounds(wait_ns_max=Nanos(1_000), bypasses_max=3)
    due = ready.next_due(now=Instant(1), passing=set())
    assert (due is step) is is_due
