"""Placement where engines are unlike each other, or not all of them may be given work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from agentsched.model import EngineDrained, EngineId, EngineUnanswered
from agentsched.policy import Choice

Floors = Callable[..., Any]


def place(name: str, **params: object) -> Choice:
    return Choice(name=name, params=params)


def teach(f: Any, engine: str, *, took_s: float, said_s: float, **more: Any) -> None:
    """A program that was there for one step, alone in the house: 2,000 tokens, and 10 for them."""
    step, now = f"teaches-{engine}", f.now
    assert f.ask(step, step, 2_000, head=step, **more) == {step: engine}
    f.start(step, at=now + took_s)
    f.answer(step, at=now + took_s + said_s, prompt=2_000)
    f.close(step)


@pytest.mark.parametrize("roomy", [0.0, 0.8])
def test_a_prompt_goes_to_an_engine_that_takes_its_length(floor: Floors, roomy: float) -> None:
    f = floor(engines=0, place=place("rendezvous", spread=0.0, roomy=roomy))
    f.report("e1", kv_tokens=400_000, context_max=8_192)
    f.report("e2", kv_tokens=400_000, context_max=131_072)
    assert f.ask("a", "pa", 8_000) == {"a": "e1"}
    f.answer("a", prompt=8_000)
    # It has grown out of the engine where it is at home.
    assert f.ask("a2", "pa", 9_000) == {"a2": "e2"}
    assert f.ask("b", "pb", 20_000) == {"b": "e2"}
    assert f.score("b", "e1") < f.score("b", "e2")
    # Which takes what none does is a guess: least runs there.
    assert f.ask("c", "pc", 200_000, head="c") == {"c": "e1"}


def test_those_of_a_silent_engine_spread_also_after_a_loss(floor: Floors) -> None:
    """Nobody is kept by an engine that may be given nothing."""
    f = floor(engines=5, place=place("rendezvous", roomy=0.0))
    homes: dict[str, str] = {}
    while list(homes.values()).count("e2") < 13:
        name = f"p{len(homes)}"
        homes |= {name: f.ask(name, name)[name]}
        f.answer(name)
    f.lose("e5", at=1)
    inside, *others = [program for program, home in homes.items() if home == "e2"]
    assert f.ask("inside", inside) == {"inside": "e2"}
    silent = EngineUnanswered(engine=EngineId("e2"), since=f.instant, reason="x", heard_at=None)
    f.feed(silent, at=10)
    assert f.scheduler.engines["e2"].silent_since is not None
    spread = Counter(f.ask(f"{p}/2", p, 1_300)[f"{p}/2"] for p in others)
    assert set(spread) == {"e1", "e3", "e4"}
    # Whose engine is well stays there.
    [well] = [p for p, home in homes.items() if home == "e3"][:1]
    assert f.ask("well", well, 1_300) == {"well": "e3"}


def test_engines_of_other_models_are_no_candidates(floor: Floors) -> None:
    """Else a beginning that maps to two of them goes to whoever is called first."""

    def homes(*others: str) -> list[str]:
        f = floor(engines=0, place=place("dualmap"))
        for name in ("e1", "e2", "e3", "e4"):
            f.report(name, kv_tokens=100_000, models=("m",))
        for name in others:
            f.report(name, kv_tokens=100_000, models=("other",))
        asked = [f.ask(f"s{n}", f"p{n}", head=f"h{n}", model="m")[f"s{n}"] for n in range(20)]
        return asked

    assert homes(*(f"z{n}" for n in range(12))) == homes()


@pytest.mark.parametrize("other", ["of another model", "drained"])
def test_quanta_where_it_cannot_go_are_not_waited_for(floor: Floors, other: str) -> None:
    f = floor(engines=1, place=place("dlpm", quantum=1_000), capabilities={"models": ("m",)})
    f.report("e2", models=("m",) if other == "drained" else ("another",))
    if other == "drained":
        f.feed(EngineDrained(engine=EngineId("e2"), is_draining=True))
    used = f.scheduler.policies.place._used
    assert f.ask("a", "pa", 2_500, model="m") == {"a": "e1"}
    assert used.get("t") == {"e1": 500.0}
    if other == "drained":
        # It is back, and "everywhere" are both again.
        f.feed(EngineDrained(engine=EngineId("e2"), is_draining=False))
        assert f.ask("b", "pb", 2_500, head="b", model="m") == {"b": "e2"}
        assert used.get("t") == {"e1": 500.0, "e2": 2_500.0}


@pytest.mark.parametrize(
    "choice",
    [
        place("session-affinity", speed=True),
        place("rendezvous", spread=0.0, roomy=1.0),
        place("rendezvous", spread=0.0, roomy=0.0),
    ],
)
def test_what_engines_of_other_models_cost_is_no_matter(floor: Floors, choice: Choice) -> None:
    """Of two that are nearly equally fast, both would be unlike the mean with much slower ones."""

    def homes(*others: str) -> list[str]:
        f = floor(engines=0, place=choice)
        spans = {"e1": (0.04, 1.0), "e2": (0.06, 1.1), **dict.fromkeys(others, (4.0, 5.0))}
        for name, (took_s, said_s) in spans.items():
            f.report(name, kv_tokens=100_000, models=("other" if name in others else "m", name))
            teach(f, name, took_s=took_s, said_s=said_s, model=name)
        asked = [f.ask(f"s{n}", f"p{n}", 2_000, head=f"h{n}", model="m") for n in range(16)]
        return [engine for one in asked for engine in one.values()]

    assert homes("z1", "z2", "z3", "z4") == homes()
    assert min(Counter(homes()).values()) >= 4
