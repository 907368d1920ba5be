"""What a tenant is charged for a step that got no answer: as much as its time allows."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import MILLISECOND, StepCancelled, StepClass, StepFailed, StepId
from agentsched.policy import Held

#: First guesses of an engine's prices: 100 us a prompt token, 20 ms an output token.
PROMPT = 1_000


@pytest.mark.parametrize(
    ("started_ms", "ended_ms", "most", "uncached", "output"),
    [
        (None, 0, None, 0, 0),
        (None, 30, None, 300, 0),
        (None, 5_000, None, PROMPT, 0),  # it stood in the engine's queue, or was stuck
        (40, 40, None, PROMPT, 0),
        (40, 1_040, None, PROMPT, 50),
        (40, 1_040, 64, PROMPT, 50),
        (40, 1_040, 8, PROMPT, 8),
    ],
)
@pytest.mark.parametrize("is_failed", [True, False])
def test_who_hangs_up_is_charged_what_was_computed_by_then(
    rig: Any,
    started_ms: int | None,
    ended_ms: int,
    most: int | None,
    uncached: int,
    output: int,
    is_failed: bool,
) -> None:
    rig.engine()
    rig.arrive("s1", tokens=PROMPT, output_tokens_max=most)
    if started_ms is not None:
        rig.now = started_ms * MILLISECOND
        rig.start("s1")
    rig.now = ended_ms * MILLISECOND
    step = StepId("s1")
    if is_failed:
        rig.push(StepFailed(step=step, reason="x", is_retryable=False))
    else:
        rig.push(StepCancelled(step=step, reason="left"))
    account = rig.scheduler._books.shares.accounts()["t1"]
    assert (account.uncached_tokens, account.output_tokens) == (uncached, output)
    assert (account.running_steps, account.pending_uncached, account.pending_output) == (0, 0, 0)


@pytest.mark.parametrize("end", ["hangs up while it waits", "hangs up", "fails", "is aside"])
def test_what_is_kept_is_charged_on_after_a_step_that_adds_nothing(rig: Any, end: str) -> None:
    rig.engine()
    rig.arrive("s1", tokens=PROMPT)
    rig.finish("s1", prompt=PROMPT, output=10)
    account = rig.scheduler._books.shares.accounts()["t1"]
    assert account.idle_tokens == PROMPT + 10
    if end == "hangs up while it waits":
        rig.policy.admission = lambda step, engine: Held(reason="never")
    aside = {"step_class": StepClass.AUXILIARY} if end == "is aside" else {}
    rig.arrive("s2", tokens=PROMPT, **aside)
    assert account.idle_tokens == 0
    if end == "is aside":
        rig.finish("s2", prompt=PROMPT)
    elif end == "fails":
        rig.push(StepFailed(step=StepId("s2"), reason="x", is_retryable=False))
    else:
        rig.push(StepCancelled(step=StepId("s2"), reason="left"))
    assert account.idle_tokens == PROMPT + 10
    rig.arrive("s3", tokens=PROMPT + 10)
    assert account.idle_tokens == 0


def test_what_was_cached_is_computed_for_nobody(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1", tokens=PROMPT)
    rig.finish("s1", prompt=PROMPT, output=10)
    account = rig.scheduler._books.shares.accounts()["t1"]
    before = account.uncached_tokens
    rig.arrive("s2", tokens=PROMPT + 110)
    rig.now += 1_000 * MILLISECOND
    rig.push(StepCancelled(step=StepId("s2"), reason="left"))
    assert account.uncached_tokens - before == 100
