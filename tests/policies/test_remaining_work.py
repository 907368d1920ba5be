"""The default order's rank: background last, then memory that is held anyway, then work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentsched.model import Instant, StepClass
from agentsched_policies.order.remaining_work import RemainingWork


def rank(
    *,
    step_class: StepClass = StepClass.STEP,
    is_resident: bool = True,
    deadline: int | None = None,
    now: int = 0,
    wait_ns_max: int = 10**12,
) -> tuple[float, ...]:
    """That of a step of 100 tokens which came at 0, and of which no graph knows anything."""
    program = SimpleNamespace(
        deadline=deadline,
        opened_at=Instant(0),
        parent=None,
        conversations={"c": SimpleNamespace(is_resident=is_resident)},
    )
    world: Any = SimpleNamespace(
        programs={"p": program}, wait_ns_max=wait_ns_max, graph=lambda program: None
    )
    step: Any = SimpleNamespace(
        program="p",
        conversation="c",
        arrived_at=Instant(0),
        prompt_tokens=100,
        deadline=None,
        step_class=step_class,
    )
    return tuple(RemainingWork().rank(step, world, now=Instant(now)))


@pytest.mark.parametrize(
    ("step_class", "place"),
    [
        (StepClass.AUXILIARY, (0, 0.5)),
        (StepClass.PROBE, (0, 0.5)),
        (StepClass.TOKEN_COUNT, (0, 0.5)),
        (StepClass.STEP, (0, 1)),
        (StepClass.SUBAGENT, (0, 1)),
        (StepClass.COMPACTION, (0, 1)),
        (StepClass.BATCH, (1, 1)),
    ],
)
def test_what_is_cheap_goes_before_what_needs_room_and_background_work_last(
    step_class: StepClass, place: tuple[float, float]
) -> None:
    assert rank(step_class=step_class, is_resident=False)[:2] == place


@pytest.mark.parametrize("step_class", StepClass)
def test_whoever_holds_memory_goes_before_all_others_but_background_work(
    step_class: StepClass,
) -> None:
    assert rank(step_class=step_class)[:2] == (step_class is StepClass.BATCH, 0)


def test_work_does_not_fall_below_nothing_however_long_a_step_waits() -> None:
    assert [rank(now=now, wait_ns_max=1_000)[2] for now in (1_000, 5_000)] == [0, 0]


@pytest.mark.parametrize("left", [1, 50, 100])
def test_the_last_hundredth_of_the_time_is_as_urgent_as_it_gets(left: int) -> None:
    """So that the order among the urgent is still that of their work."""
    work = rank(deadline=10_000, now=10_000 - left)[2]
    assert work == pytest.approx(10 * 100 * 0.1, rel=1e-6)


def test_a_deadline_at_the_beginning_is_none() -> None:
    assert rank(deadline=0, now=0)[2] == 10 * 100
