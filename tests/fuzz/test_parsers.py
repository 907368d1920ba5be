"""Parsers under twisted inputs: a few of each here, long runs by the command."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agentsched_bench.fuzz.parsers import Dice, fire, targets

#: Inputs of each target, and an end that a twisted input should come to, lest nothing be tried.
TRIED = {
    "splicing": (150, "spliced"),
    "streams": (150, "complete"),
    "answers": (150, "complete"),
    "recognition": (150, "prefix"),
    "turns": (150, "learnt"),
    "messages": (150, "a topic, a message"),
    "journals": (150, "read"),
    "traces": (40, "nothing"),
}


@pytest.mark.parametrize("name", TRIED)
def test_no_input_does_harm(name: str, tmp_path: Path) -> None:
    found = targets(tmp_path)
    assert set(found) == set(TRIED)
    inputs, end = TRIED[name]
    ends = fire(name, found[name], seed=0, inputs=inputs, until=time.monotonic() + 60)
    assert ends[end] > 0, ends
    assert len(ends) > 1, ends


def test_a_finding_is_told_with_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    def fragile(dice: Dice) -> str:
        if dice.random() < 0.1:
            raise KeyError("x")
        return "fine"

    with pytest.raises(KeyError):
        fire("fragile", fragile, seed=5, inputs=1_000, until=time.monotonic() + 60)
    assert capsys.readouterr().out.startswith("fragile with seed ")


def test_a_seed_gives_the_same_input_again() -> None:
    value = {"a": [1, {"b": "c"}], "d": None}
    assert [Dice(n).json(value) for n in range(50)] == [Dice(n).json(value) for n in range(50)]
    assert len({Dice(n).json(value) for n in range(50)}) > 20


@pytest.mark.parametrize(("name", "seed"), [("journals", 42), ("traces", 73), ("traces", 1037)])
def test_what_was_found_stays_found(name: str, seed: int, tmp_path: Path) -> None:
    """A journal that is no text; `true` among a recording's blocks; a type that is an object."""
    fire(name, targets(tmp_path)[name], seed=seed, inputs=1, until=time.monotonic() + 60)
