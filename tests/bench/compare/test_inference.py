"""Ratios, intervals and verdicts: known answers, and the interval's coverage by simulation."""

from __future__ import annotations

import math
import random

import pytest

from agentsched_bench.compare.inference import Pair, Verdict, jain, paired_ratio


def test_a_constant_factor_is_found_exactly() -> None:
    base = {(repeat, f"p{n}"): 1.0 + n for repeat in range(3) for n in range(10)}
    halved = {key: value / 2 for key, value in base.items()}

    ratio = paired_ratio(halved, base)

    assert ratio.value == pytest.approx(0.5)
    assert ratio.low == pytest.approx(0.5)
    assert ratio.high == pytest.approx(0.5)
    assert ratio.verdict is Verdict.BETTER
    assert ratio.by_repeat == pytest.approx((0.5, 0.5, 0.5))
    assert (ratio.pairs, ratio.lost, ratio.repeats) == (30, 0, 3)


def test_the_value_is_the_geometric_mean_so_half_and_double_cancel() -> None:
    ratio = paired_ratio({(0, "a"): 2.0, (0, "b"): 0.5}, {(0, "a"): 1.0, (0, "b"): 1.0})

    assert ratio.value == pytest.approx(1.0)
    assert ratio.verdict is Verdict.UNSEEN


def test_turning_the_arms_round_turns_the_interval_round() -> None:
    rng = random.Random(5)
    one = {(r, f"p{n}"): rng.lognormvariate(0, 0.4) for r in range(2) for n in range(8)}
    two = {key: rng.lognormvariate(0.2, 0.4) for key in one}

    ahead, back = paired_ratio(one, two), paired_ratio(two, one)

    assert ahead.value == pytest.approx(1 / back.value)
    # The draws are mirrored only in distribution.
    assert ahead.low == pytest.approx(1 / back.high, rel=0.2)


def test_the_same_input_gives_the_same_interval_whatever_its_order() -> None:
    base = {(r, f"p{n}"): 1.0 for r in range(2) for n in range(6)}
    other = {key: 1.0 + 0.1 * len(key[1]) + key[0] for key in base}

    assert paired_ratio(other, base) == paired_ratio(
        dict(reversed(other.items())), dict(reversed(base.items()))
    )


def test_noise_without_an_effect_is_no_difference_seen() -> None:
    rng = random.Random(11)
    base = {(r, f"p{n}"): rng.lognormvariate(3, 0.5) for r in range(3) for n in range(20)}
    other = {key: value * rng.lognormvariate(0, 0.5) for key, value in base.items()}

    ratio = paired_ratio(other, base)

    assert ratio.verdict is Verdict.UNSEEN
    assert "no difference seen" in ratio.sentence("time", against="direct")


def test_a_tight_interval_around_one_is_the_same_and_not_merely_unseen() -> None:
    base = {(r, f"p{n}"): 10.0 for r in range(3) for n in range(20)}
    other = {key: 10.0 + 0.01 * (hash(key[1][-1]) % 3) for key in base}

    assert paired_ratio(other, base).verdict is Verdict.SAME


def test_an_arm_that_loses_programs_is_not_declared_better() -> None:
    base = {(0, f"p{n}"): 10.0 for n in range(20)}
    survivors = {(0, f"p{n}"): 1.0 for n in range(17)}

    ratio = paired_ratio(survivors, base)

    assert ratio.lost == 3
    assert ratio.verdict is Verdict.UNKNOWN
    assert "3 of 20" in ratio.sentence("time", against="direct")


def test_nothing_in_common_compares_nothing() -> None:
    ratio = paired_ratio({(0, "a"): 1.0}, {(0, "b"): 1.0})

    assert ratio.verdict is Verdict.UNKNOWN
    assert "no program completed on both" in ratio.sentence("time", against="direct")


def test_one_repeat_says_so_and_claims_only_what_is_large() -> None:
    base = {(0, f"p{n}"): 2.0 for n in range(5)}
    slightly = paired_ratio(dict.fromkeys(base, 1.6), base)
    clearly = paired_ratio(dict.fromkeys(base, 1.0), base)

    assert slightly.verdict is Verdict.UNSEEN
    assert clearly.verdict is Verdict.BETTER
    assert "how repeats differ is assumed" in clearly.sentence("t", against="d")


def test_repeats_that_disagree_widen_the_interval_however_many_programs_there_are() -> None:
    base: dict[Pair, float] = {(r, f"p{n}"): 1.0 for r in range(2) for n in range(500)}
    # One burst went well and one badly: a thousand programs do not make two bursts many.
    other = {key: 0.7 if key[0] == 0 else 1.1 for key in base}

    ratio = paired_ratio(other, base)

    assert ratio.low < 0.7
    assert ratio.high > 1.1
    assert ratio.verdict is Verdict.UNSEEN


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [2, 3, 6])
@pytest.mark.parametrize("luck", [0.0, 0.15])
def test_intervals_cover_the_truth_as_often_as_they_say(repeats: int, luck: float) -> None:
    """95 % intervals over experiments with programs, repeats and calls of known spread."""
    rng = random.Random(f"{repeats}/{luck}")
    effect, programs, experiments = math.log(0.8), 16, 200
    covered = 0
    for number in range(experiments):
        own = [rng.gauss(0, 0.25) for _ in range(programs)]
        values: dict[Pair, float] = {}
        for repeat in range(repeats):
            shared = rng.gauss(0, luck)
            for index, bias in enumerate(own):
                log = effect + bias + shared + rng.gauss(0, 0.2)
                values[repeat, f"p{index}"] = math.exp(log)
        ratio = paired_ratio(values, dict.fromkeys(values, 1.0), seed=number)
        covered += ratio.low <= 0.8 <= ratio.high

    # Never far less than said; more is the price of the few repeats.
    assert covered / experiments >= 0.92


@pytest.mark.slow
def test_without_an_effect_few_comparisons_are_called_different() -> None:
    rng = random.Random(3)
    wrong = 0
    for number in range(200):
        keys = [(r, f"p{n}") for r in range(3) for n in range(12)]
        luck = [rng.gauss(0, 0.1) for _ in range(3)]
        values = {k: math.exp(luck[k[0]] + rng.gauss(0, 0.3)) for k in keys}
        ratio = paired_ratio(values, dict.fromkeys(keys, 1.0), seed=number)
        wrong += ratio.verdict in (Verdict.BETTER, Verdict.WORSE)

    assert wrong / 200 <= 0.08


def test_jain_knows_equal_and_unequal_shares() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([]) is None
