"""Least squares that forget: exact on a law, steady under outliers, quick to follow a change."""

from __future__ import annotations

from random import Random

import pytest

from agentsched.kernel.regression import Regression


def law(rng: Random, *, slope: float = 3.0) -> tuple[tuple[float, float, float], float]:
    x, z = rng.uniform(0, 10), rng.uniform(0, 2)
    return (1.0, x, z), 0.5 + slope * x + 2.0 * z


def test_it_finds_a_law() -> None:
    rng, found = Random(1), Regression((0.0, 0.0, 0.0))
    for _ in range(100):
        found.learn(*law(rng))
    assert found.coefficients == pytest.approx([0.5, 3.0, 2.0], rel=1e-3)
    assert found.confidence > 0.85


def test_a_feature_that_was_not_seen_learns_nothing() -> None:
    found = Regression((0.0, 0.0))
    found.learn((2.0, 0.0), 10.0)
    assert found.coefficients[0] == pytest.approx(5.0, rel=1e-3)
    assert found.coefficients[1] == 0.0


def test_noise_and_outliers_hardly_bend_it() -> None:
    rng, found = Random(2), Regression((0.0, 0.0, 0.0))
    for number in range(600):
        features, outcome = law(rng)
        outcome *= 1.0 + rng.gauss(0.0, 0.05)
        found.learn(features, outcome * 20.0 if number % 50 == 49 else outcome)
    assert found.predict((1.0, 5.0, 1.0)) == pytest.approx(17.5, rel=0.05)


def test_a_change_that_stays_is_followed() -> None:
    rng, found = Random(3), Regression((0.0, 0.0, 0.0), forgetting=0.98)
    for slope in (3.0, 9.0):
        for _ in range(400):
            found.learn(*law(rng, slope=slope))
    assert found.coefficients[1] == pytest.approx(9.0, rel=0.1)


def test_confidence_starts_at_nothing_and_falls_with_noise() -> None:
    rng, exact, noisy = Random(4), Regression((0.0, 0.0, 0.0)), Regression((0.0, 0.0, 0.0))
    assert exact.confidence == 0.0
    for _ in range(200):
        features, outcome = law(rng)
        exact.learn(features, outcome)
        noisy.learn(features, outcome * rng.uniform(0.2, 1.8))
    assert noisy.confidence < 0.8 < exact.confidence


def test_features_that_never_vary_do_no_harm() -> None:
    found = Regression((0.0, 0.0), forgetting=0.9)
    for _ in range(5_000):
        found.learn((1.0, 2.0), 4.0)
    assert found.predict((1.0, 2.0)) == pytest.approx(4.0)
