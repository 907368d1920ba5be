"""The life of a step, as a table; the diagram in the docs is drawn from it.

Two rules keep this the only place to look: whatever moves a step moves it through `next_state`,
and nothing here knows why. A pair that is not in the table cannot happen to that step: the event
is late or a duplicate, and the scheduler counts and drops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from agentsched.model import (
    Command,
    Dispatch,
    Event,
    Reject,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepStarted,
    StepState,
)

Trigger = type[Event] | type[Command]

TRANSITIONS: Final[Mapping[tuple[StepState, Trigger], StepState]] = MappingProxyType(
    {
        (StepState.WAITING, Dispatch): StepState.DISPATCHED,
        (StepState.WAITING, Reject): StepState.REJECTED,
        (StepState.WAITING, StepCancelled): StepState.CANCELLED,
        (StepState.DISPATCHED, StepStarted): StepState.RUNNING,
        # An answer may come whole, with no first token seen before it.
        (StepState.DISPATCHED, StepFinished): StepState.FINISHED,
        (StepState.DISPATCHED, StepFailed): StepState.FAILED,
        (StepState.DISPATCHED, StepCancelled): StepState.CANCELLED,
        (StepState.RUNNING, StepFinished): StepState.FINISHED,
        (StepState.RUNNING, StepFailed): StepState.FAILED,
        (StepState.RUNNING, StepCancelled): StepState.CANCELLED,
    }
)


def next_state(state: StepState, trigger: Trigger) -> StepState | None:
    """Where `trigger` takes a step from `state`; None when it cannot happen there."""
    return TRANSITIONS.get((state, trigger))


def to_mermaid() -> str:
    """The table as a mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> waiting: StepArrived"]
    for (state, trigger), target in TRANSITIONS.items():
        lines.append(f"    {state.value} --> {target.value}: {trigger.__name__}")
    # A step that failed before a byte reached its client is asked for again, as the same step.
    lines.append("    failed --> waiting: StepFailed is retryable")
    lines += [f"    {state.value} --> [*]" for state in StepState if state.is_final]
    return "\n".join(lines) + "\n"


def to_page() -> str:
    """The page of the docs that shows the diagram."""
    return (
        "# The life of a step\n\n"
        "Drawn by `to_page()` from the table in `agentsched/kernel/transitions.py`; do not edit.\n"
        "A test says how to draw it again when it is stale.\n\n"
        f"```mermaid\n{to_mermaid()}```\n\n"
        "A pair of state and event that has no arrow cannot happen: the event is late or a\n"
        "duplicate; the scheduler counts it and changes nothing.\n"
    )
