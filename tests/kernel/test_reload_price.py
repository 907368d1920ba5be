"""What a conversation's reload costs: by the law while it is believed, and that does not flap."""

from __future__ import annotations

import random

import pytest

from agentsched.kernel.costs import EngineCost
from agentsched.model import Nanos


def teach_law(cost: EngineCost, *, steps: int, noise: float = 0.0, seed: int = 1) -> None:
    """0.1 s for each request, 0.1 s a thousand tokens, and 2 ms for each pair of thousands."""
    rng = random.Random(seed)
    for _ in range(steps):
        k = rng.uniform(0.5, 40.0)
        took = 0.1 + 0.1 * k + 0.002 * k * k / 2
        took *= 1.0 + rng.uniform(-noise, noise)
        cost.learn(
            uncached_tokens=round(k * 1_000),
            prompt_tokens=round(k * 1_000),
            output_tokens=1,
            to_first_token=Nanos(round(took * 1e9)),
            to_last_token=Nanos(0),
        )


def test_a_reload_costs_what_the_law_says_once_it_is_believed() -> None:
    cost = EngineCost()
    assert not cost.believes_law
    assert cost.reload(1_000) == round(1_000 * cost.reload_ns_per_token)
    teach_law(cost, steps=200)
    assert cost.believes_law
    # The tenth of a second is paid with or without a cache.
    assert cost.reload(2_000) / 1e9 == pytest.approx(0.2 + 0.004, rel=0.1)
    assert cost.reload(40_000) / 1e9 == pytest.approx(4.0 + 1.6, rel=0.1)
    # A token of a long context is dearer.
    assert cost.reload(40_000) > 1.2 * 20 * cost.reload(2_000)


def test_the_first_token_costs_what_the_next_ones_do() -> None:
    cost = EngineCost()
    teach_law(cost, steps=200)
    assert cost.reload(1) == pytest.approx(cost.reload(100) / 100, rel=0.02)


def test_what_the_law_never_saw_stays_near_the_price_per_token() -> None:
    cost = EngineCost()
    teach_law(cost, steps=200)
    assert cost.reload(10_000_000) == round(4 * 10_000_000 * cost.reload_ns_per_token)
    assert cost.reload(0) == 0


def test_belief_comes_and_goes_once_and_not_with_single_samples() -> None:
    cost = EngineCost()
    turns = 0
    before = cost.believes_law
    for seed in range(400):
        # Wild from the 200th on: the law is worth nothing there.
        teach_law(cost, steps=1, noise=0.1 if seed < 200 else 0.99, seed=seed)
        turns += cost.believes_law != before
        before = cost.believes_law
    assert turns == 2
    assert not cost.believes_law


def test_within_the_band_nothing_changes() -> None:
    cost = EngineCost()
    teach_law(cost, steps=200)
    assert cost.believes_law
    law = cost.law._first
    for error, believed in ((0.35, True), (0.45, True), (0.6, False), (0.45, False), (0.2, True)):
        law.error = error
        confidence = law.confidence
        cost.learn(  # what teaches the law nothing: only belief is looked at
            uncached_tokens=0, output_tokens=1, to_first_token=Nanos(0), to_last_token=Nanos(0)
        )
        assert law.confidence == confidence
        assert cost.believes_law is believed
