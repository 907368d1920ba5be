"""The default admission at a step's bounds, by numbers: a cache of 10,000 that is nearly full."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentsched.model import SECOND, Instant, Lineage, Nanos, StepClass
from agentsched.policy import Admission, Admitted, Held, TurnedAway
from agentsched_policies.admit.working_set import WorkingSet

NOW = Instant(100 * SECOND)
BOUND = Nanos(10 * SECOND)


def answer(
    *,
    missing: int = 3_000,
    waited: int = 0,
    bypassed: int = 0,
    running: int = 1,
    peers: int = 0,
    steps_done: int = 1,
    parent_done: int | None = None,
) -> Admission:
    """To a step of a program with so many answers, while a conversation of 5,000 has just paused.

    A token takes 0.1 ms to compute. With 8,000 tokens resident and a little set aside for growth,
    3,000 do not fit, and do once that conversation is let go.
    """
    engine: Any = SimpleNamespace(
        engine="e",
        is_up=True,
        capabilities=SimpleNamespace(kv_tokens=10_000, models=()),
        running_steps=running,
        peer_steps=peers,
        reload_ns=1e5,
        prefill_ns=1e5,
        starting_tokens=0,
        cold_tokens=lambda *, now: 0,
    )
    idle = talk(conversation="idle", engine="e", context_tokens=5_000, paused_at=NOW)
    own = talk(conversation="own", steps_done=steps_done)
    program = SimpleNamespace(
        was_served=steps_done > 0, parent="elder" if parent_done is not None else None
    )
    world: Any = SimpleNamespace(
        wait_ns_max=BOUND,
        bypasses_max=9,
        engines={"e": engine},
        programs={
            "p": program,
            "elder": SimpleNamespace(was_served=bool(parent_done), parent=None),
        },
        conversation=lambda step: own,
        missing_tokens=lambda step, engine: missing,
        resident=lambda engine: [idle],
        resident_tokens=lambda engine: 8_000,
        own_tokens=lambda conversation: 5_000,
        graph=lambda program: None,
    )
    step: Any = SimpleNamespace(
        program="p",
        tenant="t",
        model="",
        prefixes=(),
        lineage=Lineage.NEW,
        step_class=StepClass.STEP,
        arrived_at=Instant(NOW - waited),
        bypassed=bypassed,
    )
    return WorkingSet().admit(step, engine, world, now=NOW)


def talk(**known: Any) -> Any:
    usual = {
        "is_resident": False,
        "engine": None,
        "context_tokens": 0,
        "growth_tokens": 0.0,
        "steps_done": 1,
        "paused_at": None,
        "active_steps": 0,
        "is_over": False,
        "program": "other",
        "parent": None,
    }
    return SimpleNamespace(**{**usual, **known})


@pytest.mark.parametrize(
    ("waited", "bypassed", "is_due"),
    [
        (0, 0, False),
        (0, 8, False),
        (0, 9, True),
        (BOUND - 1, 0, False),
        (BOUND, 0, True),
        (BOUND, 9, True),
    ],
)
def test_at_either_bound_whoever_pauses_makes_room_however_short_its_pause(
    waited: int, bypassed: int, is_due: bool
) -> None:
    found = answer(waited=waited, bypassed=bypassed)
    if is_due:
        assert found == Admitted(releases=("idle",))  # type: ignore[arg-type]
    else:
        assert isinstance(found, Held)
        assert found.reason == "memory"


@pytest.mark.parametrize(
    ("running", "peers", "is_alone"),
    [(0, 0, True), (1, 0, False), (0, 1, False), (1, 1, False)],
)
def test_an_engine_on_which_other_replicas_steps_run_is_not_idle(
    running: int, peers: int, is_alone: bool
) -> None:
    assert isinstance(answer(running=running, peers=peers), Admitted if is_alone else Held)


def test_a_new_program_that_is_one_too_many_is_told_so_at_its_bound() -> None:
    """20,000 tokens, where 10,000 fit, and turns of 4 of 10 seconds reload 40,000 more."""
    assert answer(missing=20_000, steps_done=0, waited=BOUND) == Admitted(releases=("idle",))  # type: ignore[arg-type]
    assert answer(missing=60_000, steps_done=0) == Held(reason="programs", blocks_others=False)
    assert answer(missing=60_000, steps_done=0, waited=BOUND) == TurnedAway(
        reason="programs", retry_after=Nanos(BOUND // 4)
    )


@pytest.mark.parametrize(
    ("steps_done", "parent_done", "is_begun"),
    [(0, None, False), (0, 0, False), (0, 1, True), (1, None, True)],
)
def test_whoever_was_served_is_not_one_too_many_nor_are_its_children(
    steps_done: int, parent_done: int | None, is_begun: bool
) -> None:
    found = answer(
        missing=60_000, steps_done=steps_done, parent_done=parent_done, bypassed=9, waited=0
    )
    assert isinstance(found, Admitted if is_begun else TurnedAway)
