from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from agentsched.kernel.transitions import TRANSITIONS, next_state, to_mermaid, to_page
from agentsched.model import Command, Event, StepState

PAGE = Path(__file__).parents[2] / "docs" / "kernel-steps.md"

WANTED = {
    ("waiting", "Dispatch"): "dispatched",
    ("waiting", "Reject"): "rejected",
    ("waiting", "StepCancelled"): "cancelled",
    ("dispatched", "StepStarted"): "running",
    ("dispatched", "StepFinished"): "finished",
    ("dispatched", "StepFailed"): "failed",
    ("dispatched", "StepCancelled"): "cancelled",
    ("running", "StepFinished"): "finished",
    ("running", "StepFailed"): "failed",
    ("running", "StepCancelled"): "cancelled",
}


@pytest.mark.parametrize("trigger", [*get_args(Event), *get_args(Command)])
@pytest.mark.parametrize("state", StepState)
def test_every_pair(state: StepState, trigger: type) -> None:
    wanted = WANTED.get((state.value, trigger.__name__))
    assert next_state(state, trigger) == (StepState(wanted) if wanted else None)


def test_final_states_are_final_and_the_others_are_not() -> None:
    leaving = {state for state, _ in TRANSITIONS}
    assert leaving == {state for state in StepState if not state.is_final}


def test_every_state_can_be_reached() -> None:
    assert {StepState.WAITING, *TRANSITIONS.values()} == set(StepState)


def test_the_page_in_the_docs_is_fresh() -> None:
    assert to_mermaid() in to_page()
    code = "from agentsched.kernel.transitions import to_page; print(to_page(), end='')"
    assert PAGE.read_text() == to_page(), f'stale: python -c "{code}" > docs/kernel-steps.md'
