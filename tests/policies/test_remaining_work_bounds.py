"""The default order: its parameter is a share, and its work is steps, tokens and time left."""

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
    ("step_class", "parent", "subagents", "subprograms", "goes_first"),
    [
        (StepClass.SUBAGENT, None, 0, None, True),
        (StepClass.SUBAGENT, None, 1, None, False),
        (StepClass.SUBAGENT, None, None, None, False),
        (StepClass.STEP, None, 0, 0, False),
        (StepClass.STEP, "e", None, 0, True),
        (StepClass.STEP, "e", None, 1, False),
        (StepClass.STEP, "e", None, None, False),
        # A client that calls its sub-program's steps those of a sub-agent; and a sub-agent's own.
        (StepClass.SUBAGENT, "e", None, 0, True),
        (StepClass.SUBAGENT, "e", 1, 0, False),
        (StepClass.SUBAGENT, "e", 0, 1, True),
    ],
)
def test_the_last_that_a_join_waits_for_goes_first(
    step_class: StepClass,
    parent: str | None,
    subagents: int | None,
    subprograms: int | None,
    goes_first: bool,
) -> None:
    """Alone: with one beside it, whether that runs or not, neither ends the wait by itself."""
    graph = SimpleNamespace(
        steps_left=lambda: 2.0,
        subagents_beside=lambda conversation: subagents,
        subprograms_beside=lambda program: subprograms,
    )
    work = ranked(graph, step_class=step_class, parent=parent)
    assert work == pytest.approx(2.0 * 100 * (0.1 if goes_first else 1.0))


@pytest.mark.parametrize(
    ("forecast", "steps"), [(None, 10.0), (0.25, 1.0), (3.0, 3.0)], ids=["none", "under one", "3"]
)
def test_the_forecast_counts_and_a_step_that_waits_is_one_at_least(
    forecast: float | None, steps: float
) -> None:
    graph = SimpleNamespace(steps_left=lambda: forecast)
    assert ranked(graph) == pytest.approx(100 * steps)
    assert ranked(None) == pytest.approx(100 * 10.0)


@pytest.mark.parametrize(
    ("of_program", "of_step", "factor"),
    [(None, None, 1.0), (100, None, 0.6), (None, 100, 0.6), (100, 1_000, 0.6)],
)
def test_a_deadline_counts_whoever_has_it(
    of_program: int | None, of_step: int | None, factor: float
) -> None:
    """36 of 100 are left, of which the root is taken; where both have one, the program's counts."""
    work = ranked(None, of_program=of_program, of_step=of_step, now=64, wait_ns_max=10**12)
    assert work == pytest.approx(100 * 10.0 * factor, rel=1e-6)


def ranked(
    graph: Any,
    *,
    step_class: StepClass = StepClass.STEP,
    parent: str | None = None,
    of_program: int | None = None,
    of_step: int | None = None,
    now: int = 0,
    wait_ns_max: int = 1_000,
) -> float:
    """The work that a step of 100 tokens stands for, its program's one conversation being resident.

    `of_program` and `of_step` are their deadlines; both came at 0.
    """
    program = SimpleNamespace(
        deadline=of_program,
        opened_at=Instant(0),
        parent=parent,
        conversations={"c": SimpleNamespace(is_resident=True)},
    )
    world: Any = SimpleNamespace(
        programs={"p": program}, wait_ns_max=wait_ns_max, graph=lambda program: graph
    )
    step: Any = SimpleNamespace(
        program="p",
        conversation="c",
        arrived_at=Instant(0),
        prompt_tokens=100,
        deadline=of_step,
        step_class=step_class,
    )
    return RemainingWork().rank(step, world, now=Instant(now))[-1]
