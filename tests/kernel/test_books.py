"""What the scheduler takes to lie in an engine while a step runs there."""

from __future__ import annotations

from typing import Any

from shorthand import prefix

from agentsched.model import EngineId

HERE = EngineId("e1")


def test_a_prompt_counts_whole_from_the_moment_it_is_sent(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1", tokens=990, prefixes=(prefix("system", 400),))
    assert rig.scheduler._books.residency.tokens(HERE) == 990


def test_a_turn_that_sends_less_than_is_there_leaves_it_there(rig: Any) -> None:
    """As an agent does that asks aside, or that has shortened its history: nothing is evicted."""
    shared = (prefix("system", 400),)
    rig.engine()
    rig.arrive("s1", tokens=990, prefixes=shared)
    rig.finish("s1", at=1, prompt=990, output=10)
    rig.arrive("s2", at=2, tokens=500, prefixes=shared)
    assert rig.scheduler._books.residency.tokens(HERE) == 1_000
