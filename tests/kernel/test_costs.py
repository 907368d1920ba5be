from __future__ import annotations

import random

import pytest

from agentsched.kernel.costs import EngineCost
from agentsched.model import SECOND, Nanos


def teach(cost: EngineCost, *, ns: float, given_up: int = 0, steps: int = 1) -> None:
    for _ in range(steps):
        cost.learn(
            uncached_tokens=1_000,
            given_up_tokens=given_up,
            output_tokens=11,
            to_first_token=Nanos(round(1_000 * ns)),
            to_last_token=Nanos(50_000_000),
        )


def test_the_first_sample_replaces_the_guess() -> None:
    cost = EngineCost()
    teach(cost, ns=7_000)
    assert cost.samples == 1
    assert cost.prefill_ns_per_token == pytest.approx(7_000)
    assert cost.decode_ns_per_token == pytest.approx(5_000_000)
    assert cost.prefill(100) == 700_000
    assert cost.patience(100) == 2 * cost.prefill(100)


def test_queues_in_the_engine_hardly_raise_the_price() -> None:
    cost = EngineCost()
    rng = random.Random(3)
    for _ in range(600):
        teach(cost, ns=60_000 * (1.0 if rng.random() < 0.5 else rng.uniform(1.5, 20)))
    assert cost.prefill_ns_per_token == pytest.approx(60_000, rel=0.1)


def test_a_faster_engine_is_noticed() -> None:
    cost = EngineCost()
    teach(cost, ns=60_000, steps=50)
    teach(cost, ns=20_000, steps=200)
    assert cost.prefill_ns_per_token == pytest.approx(20_000, rel=0.1)


def test_an_engine_that_was_known_for_long_is_followed_still() -> None:
    cost = EngineCost()
    teach(cost, ns=60_000, steps=2_000)
    teach(cost, ns=20_000, steps=200)
    assert cost.prefill_ns_per_token == pytest.approx(20_000, rel=0.1)


def test_short_steps_teach_nothing() -> None:
    cost = EngineCost()
    before = (cost.prefill_ns_per_token, cost.decode_ns_per_token)
    cost.learn(
        uncached_tokens=100, output_tokens=3, to_first_token=Nanos(10), to_last_token=Nanos(10)
    )
    assert (cost.prefill_ns_per_token, cost.decode_ns_per_token) == before
    assert cost.samples == 0


def comes_back(cost: EngineCost, *, given_up: int, ns: int, steps: int) -> None:
    """Conversations return with 100 new tokens; each token given up costs `ns`, a new one 60 us."""
    for _ in range(steps):
        cost.learn(
            uncached_tokens=100 + (given_up if ns >= 60_000 else 0),
            given_up_tokens=given_up,
            fresh_tokens=100,
            prompt_tokens=given_up + 100,
            output_tokens=1,
            to_first_token=Nanos(100 * 60_000 + given_up * ns),
            to_last_token=Nanos(0),
        )


def computes(cost: EngineCost) -> None:
    """Prompts of several lengths that nobody has computed before, 60 us a token."""
    for number in range(60):
        tokens = 500 + 250 * (number % 8)
        cost.learn(
            uncached_tokens=tokens,
            prompt_tokens=tokens,
            output_tokens=1,
            to_first_token=Nanos(tokens * 60_000),
            to_last_token=Nanos(0),
        )


def test_coming_back_over_a_tier_costs_a_quarter_of_computing_until_its_price_is_known() -> None:
    cost = EngineCost()
    computes(cost)
    assert cost.reload_ns_per_token == cost.prefill_ns_per_token
    cost.has_tier = True
    comes_back(cost, given_up=2_000, ns=10_000, steps=7)
    assert cost.reload_ns_per_token == cost.prefill_ns_per_token / 4
    comes_back(cost, given_up=2_000, ns=10_000, steps=50)
    assert cost.reload_ns_per_token == pytest.approx(10_000, rel=0.2)


def test_a_tier_slower_than_computing_is_soon_taken_for_none() -> None:
    cost = EngineCost()
    cost.has_tier = True
    computes(cost)
    comes_back(cost, given_up=2_000, ns=500_000, steps=8)
    assert cost.reload_ns_per_token == cost.prefill_ns_per_token


def test_without_a_tier_what_came_back_cheaply_had_not_been_dropped_yet() -> None:
    # Seen on a real vLLM: the price fell to 2 % within 12 returns of a burst, everybody was let in,
    # and then every prompt was computed again.
    cost = EngineCost()
    computes(cost)
    comes_back(cost, given_up=2_000, ns=1_000, steps=50)
    assert cost.reload_ns_per_token == cost.prefill_ns_per_token


def test_what_a_full_tier_lost_is_computed_again_however_fast_that_seemed() -> None:
    cost = EngineCost()
    cost.has_tier = True
    computes(cost)
    for _ in range(50):
        cost.learn(
            uncached_tokens=1_100,
            given_up_tokens=2_000,
            fresh_tokens=100,
            prompt_tokens=2_100,
            output_tokens=1,
            to_first_token=Nanos(SECOND // 100),
            to_last_token=Nanos(0),
        )
    assert cost.reload_ns_per_token == pytest.approx(0.5 * cost.prefill_ns_per_token, rel=0.05)


def test_coming_back_to_an_engine_that_computes_it_again_costs_that() -> None:
    cost = EngineCost()
    computes(cost)
    comes_back(cost, given_up=2_000, ns=60_000, steps=50)
    assert cost.reload_ns_per_token == pytest.approx(60_000, rel=0.1)


def test_coming_back_never_costs_more_than_computing() -> None:
    cost = EngineCost()
    teach(cost, ns=60_000, given_up=200, steps=50)
    assert cost.reload_ns_per_token == cost.prefill_ns_per_token
