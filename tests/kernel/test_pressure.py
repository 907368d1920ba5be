"""The pressure gate: nothing is kept or warmed while the working set fits."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import finished, prefix

from agentsched.model import (
    SECOND,
    EngineId,
    EngineLost,
    Instant,
    Nanos,
    Pin,
    Prefetch,
    ProgramClosed,
    ProgramId,
    Unpin,
)
from agentsched.policy import Retention

HEAD = prefix("head", 400)


@pytest.fixture
def keen(rig: Any) -> Any:
    """A rig whose policies would pin and warm everything at once; the engine holds 1,000 tokens."""
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(10 * SECOND), value=1.0)
    rig.policy.warm = lambda pause: Instant(0)
    rig.engine(kv_tokens=1_000)
    return rig


def turn(rig: Any, name: str, *, tokens: int, head: bool = False, program: str = "") -> Any:
    """One step of a program that pauses with a context of so many tokens."""
    own = prefix(f"x-{name}", tokens - 10)
    prefixes = (HEAD, own) if head else (own,)
    rig.arrive(name, program=program or name, tokens=tokens - 10, prefixes=prefixes)
    return rig.finish(name, tools={f"k-{name}": "bash"}, prompt=tokens - 10, output=10)


def gate(rig: Any) -> tuple[bool, int]:
    engine = rig.scheduler.engines[EngineId("e1")]
    return engine.is_contended, engine.wanted_tokens


def test_nothing_is_asked_for_while_the_working_set_fits(keen: Any) -> None:
    assert turn(keen, "a", tokens=400) == ()
    assert turn(keen, "b", tokens=400) == ()
    assert gate(keen) == (False, 800)
    assert not [c for c in keen.commands if isinstance(c, Pin | Prefetch | Unpin)]


def test_whoever_paused_before_is_asked_when_it_opens(keen: Any) -> None:
    turn(keen, "a", tokens=400)
    turn(keen, "b", tokens=400)
    turn(keen, "c", tokens=150)
    pinned = {c.program for c in keen.commands if isinstance(c, Pin)}
    assert gate(keen) == (True, 950)
    assert pinned == {"a", "b", "c"}


def test_shared_prefixes_count_once(keen: Any) -> None:
    for name in "abcde":
        assert turn(keen, name, tokens=480, head=True) == ()
    assert gate(keen) == (False, 800)


def test_it_does_not_flutter(keen: Any) -> None:
    turn(keen, "a", tokens=400)
    turn(keen, "b", tokens=450)
    turn(keen, "c", tokens=60)
    assert gate(keen) == (True, 910)
    keen.push(ProgramClosed(program=ProgramId("c"), reason="done"))
    assert gate(keen) == (True, 850)
    keen.push(ProgramClosed(program=ProgramId("a"), reason="done"))
    assert gate(keen) == (False, 450)


def test_what_was_evicted_is_still_wanted(keen: Any) -> None:
    for name in "abc":
        turn(keen, name, tokens=600)
    assert gate(keen) == (True, 1_800)


def test_a_last_word_ends_the_claim(keen: Any) -> None:
    keen.arrive("a", program="a", tokens=800)
    assert gate(keen)[1] == 800
    keen.push(finished("a", prompt=800, cached=0, output=10, finish_reason="stop"))
    assert gate(keen)[1] == 0


def test_without_a_known_capacity_the_policies_are_asked(rig: Any) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    rig.engine()
    assert [type(c) for c in turn(rig, "a", tokens=100)] == [Pin]


def test_nothing_is_wanted_of_an_engine_that_was_lost(keen: Any) -> None:
    for name, tokens in (("a", 400), ("b", 400), ("c", 150)):
        turn(keen, name, tokens=tokens)
    assert gate(keen) == (True, 950)
    keen.push(EngineLost(engine=EngineId("e1"), reason="crash"))
    assert gate(keen) == (False, 0)
    keen.engine(kv_tokens=1_000)
    assert gate(keen) == (False, 0)


def test_nothing_is_wanted_any_more_where_a_conversation_went_away(rig: Any) -> None:
    home = {"a": "e1"}
    rig.policy.score_of = lambda step, engine: float(engine.engine == home[step.program])
    rig.engine("e1", kv_tokens=1_000)
    rig.engine("e2", kv_tokens=10_000)
    turn(rig, "a", tokens=950)
    assert gate(rig) == (True, 950)
    home["a"] = "e2"
    turn(rig, "a2", program="a", tokens=960)
    engines = rig.scheduler.engines
    assert [engines[EngineId(name)].wanted_tokens for name in ("e1", "e2")] == [0, 960]


@pytest.mark.parametrize(("tokens", "wanted"), [(600, 600), (300, 400)])
def test_a_step_wants_its_prompt_or_what_its_conversation_had_if_that_is_more(
    keen: Any, tokens: int, wanted: int
) -> None:
    turn(keen, "a", tokens=400)
    keen.arrive("a2", program="a", tokens=tokens)
    assert gate(keen) == (False, wanted)


def test_whoever_is_pinned_already_is_not_asked_again_when_it_opens(keen: Any) -> None:
    for name, tokens in (("a", 400), ("b", 450), ("c", 60)):
        turn(keen, name, tokens=tokens)
    for name in "ca":
        keen.push(ProgramClosed(program=ProgramId(name), reason="done"))
    assert gate(keen) == (False, 450)
    commands = turn(keen, "d", tokens=459)
    assert gate(keen) == (True, 909)
    assert [c.program for c in commands if isinstance(c, Pin)] == ["d"]
    pinned = keen.scheduler._books.pins
    assert {pin.program for pin in pinned} == {"b", "d"}
