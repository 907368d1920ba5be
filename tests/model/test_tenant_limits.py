"""Ceilings of a tenant: what makes no sense is refused, and priorities stay within theirs."""

from __future__ import annotations

import pytest

from agentsched.model import ConfigError, Nanos, TenantLimits


@pytest.mark.parametrize(
    "limits",
    [
        TenantLimits(held_steps_max=-1),
        TenantLimits(pins_max=-1),
        TenantLimits(deadline_ns=Nanos(-1)),
        TenantLimits(priority_min=3, priority_max=2),
    ],
)
def test_what_makes_no_sense_is_refused(limits: TenantLimits) -> None:
    with pytest.raises(ConfigError):
        limits.check()


@pytest.mark.parametrize(
    "limits",
    [TenantLimits(), TenantLimits(pins_max=0), TenantLimits(priority_min=-5, priority_max=-5)],
)
def test_what_makes_sense_is_taken(limits: TenantLimits) -> None:
    limits.check()


@pytest.mark.parametrize(("asked", "given"), [(-9, -2), (-2, -2), (0, 0), (3, 3), (4, 3)])
def test_a_priority_beyond_is_the_nearer_one(asked: int, given: int) -> None:
    assert TenantLimits(priority_min=-2, priority_max=3).priority(asked) == given
