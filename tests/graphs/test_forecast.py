"""Forecasts of live programs, whatever comes in whatever order: who is under way, who counts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthand import answered, arrived, at

from agentsched.model import (
    ContinuedElsewhere,
    ConversationId,
    Event,
    ProgramClosed,
    ProgramId,
    StepCancelled,
    StepFailed,
    StepId,
)
from agentsched_graphs.forecast import Forecasts

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["arrive", "again", "answer", "end", "cancel", "fail", "retry", "close", "move", "wait"]
        ),
        st.integers(0, 2),
    ),
    max_size=60,
)


def event_of(action: str, program: str, step: str, running: list[str]) -> Event | None:
    """What happens, where it can; `running` are the program's steps under way."""
    name = ProgramId(program)
    if action == "arrive":
        return arrived(step, program, agent="a")
    if action == "close":
        return ProgramClosed(program=name, reason="said so")
    if action == "move":
        return ContinuedElsewhere(program=name, conversation=ConversationId(program))
    if not running or action == "wait":
        return None
    first = running[0]
    if action == "again":
        return arrived(first, program, agent="a")
    if action in ("answer", "end"):
        return answered(first, is_last=action == "end", prompt=9)
    if action == "cancel":
        return StepCancelled(step=StepId(first), reason="left")
    return StepFailed(step=StepId(first), reason="x", is_retryable=action == "retry")


@settings(deadline=None, max_examples=40)
@given(ACTIONS)
def test_whatever_happens_the_books_say_what_is_under_way(actions: list[tuple[str, int]]) -> None:
    forecasts = Forecasts()
    running: dict[str, list[str]] = {"p0": [], "p1": [], "p2": []}
    now = 0.0
    for number, (action, which) in enumerate(actions):
        program = f"p{which}"
        now += 40.0 if action == "wait" else 0.1
        event = event_of(action, program, f"s{number}", running[program])
        if event is None:
            continue
        if action == "arrive":
            running[program].append(f"s{number}")
        elif action in ("answer", "end", "cancel", "fail"):
            running[program].pop(0)
        forecasts.observe(event, now=at(now))
        programs = forecasts._programs
        assert forecasts._open.keys() <= programs.keys()
        assert set(forecasts._steps) == {step for steps in running.values() for step in steps}
        for key, progress in programs.items():
            assert progress.active <= len(running[key])
            assert progress.counted in (None, progress.steps_done)
        counted = [p.steps_done for p in programs.values() if p.counted is not None]
        samples = list(forecasts._remaining._all._recent)
        for steps in counted:
            samples.remove(steps)
    for steps in running.values():
        for step in steps:
            forecasts.observe(StepCancelled(step=StepId(step), reason="left"), now=at(now))
    for program in running:
        closed = ProgramClosed(program=ProgramId(program), reason="done")
        forecasts.observe(closed, now=at(now))
    assert not forecasts._steps
    assert not forecasts._programs
    assert not forecasts._open


@pytest.mark.parametrize("is_last", [True, False])
def test_a_last_word_beside_a_step_that_still_runs_is_not_the_programs(*, is_last: bool) -> None:
    forecasts = Forecasts()
    for step in ("s0", "s1"):
        forecasts.observe(arrived(step, agent="a"), now=at(0))
    forecasts.observe(answered("s0", is_last=True), now=at(1))
    forecasts.observe(answered("s1", is_last=is_last), now=at(2))
    # It was over after two steps, or is not over at all.
    assert list(forecasts._remaining._all._recent) == ([2] if is_last else [])
