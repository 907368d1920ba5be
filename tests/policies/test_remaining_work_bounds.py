"""The default order's one parameter is a share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentsched.model import Instant, StepClass
from agentsched_policies.order.remaining_work import RemainingWork


@pytest.mark.parametrize("ageing", [0.0, -0.1, 1.01, 2.0])
def test_what_is_no_share_is_refused(ageing: float) -> None:
    with pytest.raises(ValueError, match="ageing"):
        RemainingWork(ageing=ageing)


@pytest.mark.parametrize("ageing", [0.01, 1.0])
def test_a_share_is_taken(ageing: float) -> None:
    RemainingWork(ageing=ageing)


@pytest.mark.parametrize(
    ("step_class", "is_waiting", "fan_out", "goes_first"),
    [
        (StepClass.SUBAGENT, True, 1, True),
        (StepClass.SUBAGENT, True, 0, True),
        (StepClass.SUBAGENT, True, 2, False),
        (StepClass.SUBAGENT, False, 1, False),
        (StepClass.STEP, True, 1, False),
    ],
)
def test_the_last_that_a_join_waits_for_goes_first(
    step_class: StepClass, is_waiting: bool, fan_out: int, goes_first: bool
) -> None:
    """Alone means one at most: with two, neither ends the wait by itself."""
    graph = SimpleNamespace(
        steps_left=lambda: 2.0,
        is_waiting_for_children=lambda: is_waiting,
        fan_out=lambda: fan_out,
    )
    program = SimpleNamespace(
        deadline=None, parent=None, conversations={"c": SimpleNamespace(is_resident=True)}
    )
    world: Any = SimpleNamespace(
        programs={"p": program}, wait_ns_max=1_000, graph=lambda program: graph
    )
    step: Any = SimpleNamespace(
        program="p",
        conversation="c",
        arrived_at=Instant(0),
        prompt_tokens=100,
        deadline=None,
        step_class=step_class,
    )
    work = RemainingWork().rank(step, world, now=Instant(0))[-1]
    assert (work < 2.0 * 100) == goes_first
