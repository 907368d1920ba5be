"""What the scheduler takes to lie in an engine while a step runs there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from shorthand import arrived, prefix

from agentsched.model import (
    SECOND,
    ConversationId,
    EngineId,
    EngineLost,
    Instant,
    Lineage,
    Nanos,
    PeerReported,
    StepId,
)
from agentsched.policy import Retention

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


def test_a_rewritten_prompt_is_missing_but_for_its_beginning(rig: Any) -> None:
    """A compaction goes on under the same id: what it says instead was never computed."""
    rig.engine(kv_tokens=10_000)
    system, long, short = prefix("system", 400), prefix("long", 5_000), prefix("short", 2_000)
    rig.arrive("s1", at=0, tokens=5_000, prefixes=(system, long))
    rig.finish("s1", at=1, prompt=5_000, output=100)
    rewritten = {"tokens": 2_000, "prefixes": (system, short), "lineage": Lineage.COMPACTS}
    rig.arrive("s2", at=2, **rewritten)
    step, engine = rig.scheduler.steps[StepId("s2")], rig.scheduler.engines[HERE]
    assert (step.missing_tokens, step.given_up_tokens) == (1_600, 0)
    assert engine.cold_tokens(now=Instant(2 * SECOND)) == 1_600
    rig.finish("s2", at=3, prompt=2_000, output=50)
    (conversation,) = rig.scheduler._books.conversations.values()
    assert conversation.context_tokens == 2_050
    rig.arrive("s3", at=4, tokens=2_100, prefixes=(system, short))
    assert rig.scheduler.steps[StepId("s3")].missing_tokens == 50
    rig.finish("s3", at=5, prompt=2_100, output=50)
    # Where it was let go, it is no reload either: nothing below the cache has what it says now.
    rig.scheduler._books.evict(conversation)
    rig.arrive(
        "s4", at=6, tokens=900, prefixes=(system, prefix("new", 900)), lineage=Lineage.COMPACTS
    )
    step = rig.scheduler.steps[StepId("s4")]
    assert (step.missing_tokens, step.given_up_tokens) == (900, 0)
    plan = rig.scheduler.plan(
        arrived("s5", "p1", conversation="p1/main", tokens=800, lineage=Lineage.COMPACTS),
        now=Instant(7 * SECOND),
    )
    assert [outlook.missing_tokens for outlook in plan.engines] == [800]


def test_a_full_cache_looks_at_what_it_evicts_alone(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that serve are full, and each step evicts: thousands may rest there."""
    rig.engine(kv_tokens=10_000)
    for number in range(100):
        rig.arrive(f"s{number}", program=f"p{number}", tokens=90)
        rig.finish(f"s{number}", prompt=90, output=10, tools={f"c{number}": "bash"})
    residency = rig.scheduler._books.residency
    assert residency.tokens(HERE) == 10_000
    resting, looked_at = residency.resting, list[ConversationId]()

    def seen(engine: EngineId) -> Iterator[ConversationId]:
        for key in resting(engine):
            looked_at.append(key)
            yield key

    monkeypatch.setattr(residency, "resting", seen)
    rig.scheduler.handle(arrived("next", "next", tokens=250), now=Instant(0))
    assert looked_at == ["p0/main", "p1/main", "p2/main"]
    assert residency.tokens(HERE) == 9_950


def test_engines_that_come_and_go_are_forgotten_in_the_end(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a fleet scales by itself each has a new name, and each is gone through at each turn."""
    monkeypatch.setattr("agentsched.kernel.books._GONE_MAX", 3)
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(60 * SECOND))
    rig.policy.warm = lambda pause: Instant(0)
    rig.engine("down")
    rig.arrive("s", program="p", at=0)
    rig.finish("s", tools={"call": "bash"}, at=0)
    lose(rig, "down", at=1)
    for number in range(8):
        rig.engine(f"pod-{number}", at=2 + number, kv_tokens=10_000)
        rig.arrive(f"s{number}", program=f"p{number}", tokens=500)
        rig.finish(f"s{number}", tools={f"c{number}": "bash"})
        lose(rig, f"pod-{number}", at=2.5 + number)
    books = rig.scheduler._books
    assert list(rig.scheduler.engines) == ["pod-4", "pod-5", "pod-6", "pod-7"]
    homes = [c.engine for c in books.conversations.values()]
    assert homes == [None] * 5 + ["pod-4", "pod-5", "pod-6", "pod-7"]
    # Whoever was there goes on, and an old name is a new engine.
    assert rig.arrive("s9", program="p", at=20) == ()
    [command] = rig.engine("down", at=20)
    assert (command.step, command.engine, command.place) == ("s9", "down", "new")


@pytest.mark.parametrize("serves", [True, False])
def test_an_engine_that_another_replica_names_first_is_forgotten_like_others(
    rig: Any, monkeypatch: pytest.MonkeyPatch, *, serves: bool
) -> None:
    """Replicas see a new engine at different times; one may be gone before it is seen here."""
    monkeypatch.setattr("agentsched.kernel.books._GONE_MAX", 3)
    for number in range(8):
        name = f"pod-{number}"
        hear(rig, name, running=1, at=number)
        if serves:
            rig.engine(name)
            lose(rig, name, at=number + 0.5)
        hear(rig, name, running=0, at=number + 0.5)
    assert list(rig.scheduler.engines) == ["pod-4", "pod-5", "pod-6", "pod-7"]


def test_an_engine_with_a_step_inside_is_not_forgotten(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.kernel.books._GONE_MAX", 0)
    rig.engine("first")
    rig.arrive("s", at=0)
    lose(rig, "first", at=1)
    rig.engine("second", at=2)
    assert list(rig.scheduler.engines) == ["first", "second"]
    rig.finish("s", at=3)
    rig.engine("third", at=4)
    assert list(rig.scheduler.engines) == ["second", "third"]


def lose(rig: Any, name: str, *, at: float) -> None:
    rig.push(EngineLost(engine=EngineId(name), reason="scaled down"), at=at)


def hear(rig: Any, name: str, *, running: int, at: float) -> None:
    said = PeerReported(
        engine=EngineId(name), peer="other", running_steps=running, resident_tokens=0
    )
    rig.push(said, at=at)
