"""Sums of the default admission: who is one too many, and what a cold start is worth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shorthand import answered, arrived

from agentsched.model import SECOND, Instant
from agentsched_policies.admit.working_set import WorkingSet

_TOKENS = st.integers(0, 12_000)


@given(
    live=st.lists(_TOKENS, max_size=4),
    final=_TOKENS,
    pools=st.lists(st.integers(1, 60_000), min_size=1, max_size=3),
)
def test_shut_out_is_whom_each_engine_by_itself_finds_one_too_many(
    live: list[int], final: int, pools: list[int]
) -> None:
    """The short answer for all newcomers is the long one for each, in both directions.

    All have one model, and the newcomer will be as large as the mean of those that ended.
    """
    admit = WorkingSet()
    for number, tokens in enumerate(live):
        program = f"p{number}"
        admit.observe(arrived(program, program, tokens=tokens), now=Instant(0))
        admit.observe(answered(program, prompt=tokens), now=Instant(0))
    for step in ("first", "last"):
        admit.observe(arrived(step, "ended", tokens=final), now=Instant(0))
        admit.observe(answered(step, prompt=final, is_last=step == "last"), now=Instant(0))
    engines: Any = [
        SimpleNamespace(
            engine=f"e{number}",
            is_up=True,
            capabilities=SimpleNamespace(kv_tokens=pool, models=()),
            running_steps=1,
            peer_steps=0,
            reload_ns=100_000.0,
            prefill_ns=100_000.0,
        )
        for number, pool in enumerate(pools)
    ]
    by_name = {engine.engine: engine for engine in engines}
    new = {"new": SimpleNamespace(was_served=False, parent=None)}
    world: Any = SimpleNamespace(wait_ns_max=SECOND // 10, engines=by_name, programs=new)
    newcomer: Any = SimpleNamespace(program="new", tenant="t", model="", prefixes=())
    crowded = [
        admit._is_crowded(newcomer, e, world, e.capabilities.kv_tokens, 0.0, now=Instant(0))
        for e in engines
    ]
    assert (admit.shuts_out(engines, world, now=Instant(0)) is not None) == all(crowded)


@pytest.mark.parametrize(
    ("steps_done", "home", "work"), [(3, "e", 500), (3, "f", 2_000), (0, "e", 2_000)]
)
def test_a_cold_start_is_as_much_as_it_takes_to_bring_back(
    steps_done: int, home: str, work: float
) -> None:
    """Over a tier that brings a token back in a quarter of the time that computing it takes."""
    engine: Any = SimpleNamespace(engine="e", reload_ns=25_000.0, prefill_ns=100_000.0)
    talk = SimpleNamespace(steps_done=steps_done, engine=home)
    world: Any = SimpleNamespace(conversation=lambda step: talk)
    step: Any = SimpleNamespace()
    assert WorkingSet()._work(2_000, step, engine, world) == work
