"""Least squares that forget: exact on a law, steady under outliers, quick to follow a change."""

from __future__ import annotations

from math import isfinite
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_a_law_is_the_same_in_any_unit() -> None:
    """Seconds or thousandths of them: what is clipped as unusual goes by what is usual."""
    rng, whole, thousandths = Random(4), Regression((0.0,) * 3), Regression((0.0,) * 3)
    for number in range(300):
        features, outcome = law(rng)
        outcome *= (20.0 if number % 50 == 49 else 1.0) * (1.0 + rng.gauss(0.0, 0.05))
        whole.learn(features, outcome)
        thousandths.learn(features, outcome / 1_000)
    small = [1_000 * coefficient for coefficient in thousandths.coefficients]
    assert small == pytest.approx(whole.coefficients, rel=1e-9)
    assert thousandths.confidence == pytest.approx(whole.confidence, rel=1e-9)


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


def test_after_a_thousand_alike_another_one_is_no_disaster() -> None:
    """As where one program's prompts are all of a size, and a longer one comes."""

    def prefill(thousands: float, prompt: float, ahead: float) -> tuple[tuple[float, ...], float]:
        features = (1.0, thousands, thousands * (prompt - thousands / 2), ahead)
        return features, 0.02 + 0.1 * thousands + 0.002 * features[2] + 0.1 * ahead

    rng, found = Random(5), Regression((0.02, 0.1, 0.0, 0.1))
    usual, takes = prefill(0.5, 20.0, 0.0)
    for _ in range(8_000):
        found.learn(usual, takes * rng.gauss(1.0, 0.05))
    assert found.predict(usual) == pytest.approx(takes, rel=0.05)
    for _ in range(100):
        features, outcome = prefill(rng.uniform(0.1, 20.0), rng.uniform(20.0, 40.0), 0.0)
        found.learn(features, outcome * rng.gauss(1.0, 0.05))
        assert 0.2 < found.predict(features) / outcome < 5.0
        assert found.predict(usual) == pytest.approx(takes, rel=0.5)


@pytest.mark.parametrize("thousands", [0.5, 20.0, 200.0, 1_000.0])
def test_a_change_is_followed_where_features_never_vary(thousands: float) -> None:
    """However large they are: of a million tokens no digit is left to tell what is known."""
    rng, found = Random(6), Regression((0.02, 0.1, 0.0, 0.1))
    features = (1.0, thousands, thousands * thousands / 2, 0.0)
    takes = 0.02 + 0.1 * thousands + 0.002 * features[2]
    for times in (1.0, 2.0):
        for _ in range(2_000):
            found.learn(features, times * takes * rng.gauss(1.0, 0.03))
        assert found.predict(features) == pytest.approx(times * takes, rel=0.05)


FEATURES = st.tuples(
    st.just(1.0), st.sampled_from([0.0, 0.5, 40.0]), st.floats(0.0, 100.0), st.floats(0.0, 1e4)
)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(FEATURES, st.floats(1e-6, 1e6), st.integers(1, 40)), max_size=12), FEATURES
)
def test_no_samples_make_it_surer_than_certain(
    samples: list[tuple[tuple[float, ...], float, int]], asked: tuple[float, ...]
) -> None:
    """The uncertainty of a forecast is a variance, and what it says a number."""
    found = Regression((0.0,) * 4, forgetting=0.9)
    for features, outcome, times in samples:
        for _ in range(times):
            found.learn(features, outcome)
    first = spread_of(Regression((0.0,) * 4), asked)
    assert spread_of(found, asked) >= -1e-9 * first
    assert isfinite(found.predict(asked))


def spread_of(found: Regression, features: tuple[float, ...]) -> float:
    rows = zip(features, found._covariance, strict=True)
    return sum(a * b * cell for a, row in rows for b, cell in zip(features, row, strict=True))
