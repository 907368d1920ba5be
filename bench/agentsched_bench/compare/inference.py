"""What may be concluded from paired measurements: a ratio, its interval, and a verdict in words.

The same programs run on two arms, in several repeats. The measured ratios have two sources of
chance: which programs were taken, and how each repeat went (one burst is chaotic, and all of its
programs share its luck). The interval has a part for each. Programs are many, so they are
resampled (the bootstrap, Efron 1979; programs as a whole, over all repeats, as in Owen, The
pigeonhole bootstrap, 2007). Repeats are few, and resampling two or three of them claims far too
much; their part is drawn from Student's t instead, which is exact for normal errors. All of it
happens on logarithms: half and double are the same distance from no change.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from agentsched_bench.workload.statistics import quantile

CONFIDENCE: Final = 0.95
_DRAWS: Final = 2_000
#: How repeats differ where there is only one to tell (standard deviation of the logarithm): a burst
#: moves by about 15 % from one repeat to the next, on either arm.
_LUCK_ASSUMED: Final = 0.2
#: Beyond this many values in all, fewer draws are as good: the interval is narrow then.
_VALUES_MAX: Final = 400_000
#: An interval inside this share around 1 says that the arms are the same for all that matters.
SAME_WITHIN: Final = 0.05
#: With more of an arm's programs missing than this, those that are left are no fair sample.
LOST_SHARE_MAX: Final = 0.05

#: In place of infinity, which JSON does not have.
_NO_BOUND: Final = 1e9

Pair = tuple[int, str]


class Verdict(StrEnum):
    """What a comparison comes to."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    UNSEEN = "no difference seen"
    UNKNOWN = "cannot be said"


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """One arm over another, over the same programs: the geometric mean of the programs' ratios.

    `low` and `high` bound it with `CONFIDENCE`. `pairs` is how many (repeat, program) pairs both
    arms completed, `lost` how many only one of them did, `repeats` how many repeats they are of.
    `by_repeat` has the ratio of each repeat, for the spread.
    """

    value: float
    low: float
    high: float
    pairs: int
    lost: int
    repeats: int
    by_repeat: tuple[float, ...]

    @property
    def verdict(self) -> Verdict:
        """What may be said, smaller being better."""
        if not self.pairs or self.lost > LOST_SHARE_MAX * (self.pairs + self.lost):
            return Verdict.UNKNOWN
        if self.low >= 1 - SAME_WITHIN and self.high <= 1 + SAME_WITHIN:
            return Verdict.SAME
        if self.high < 1:
            return Verdict.BETTER
        return Verdict.WORSE if self.low > 1 else Verdict.UNSEEN

    def sentence(self, what: str, *, against: str) -> str:
        """The verdict in words, with what it rests on. `what` is as in "job completion time"."""
        if not self.pairs:
            return "cannot be compared: no program completed on both"
        figures = f"{self.value:.2f} x {against}'s {what} [{self.low:.2f}, {self.high:.2f}]"
        rests = f"{self.pairs} pairs in {_count(self.repeats, 'repeat')}"
        match self.verdict:
            case Verdict.UNKNOWN:
                total = self.pairs + self.lost
                text = f"cannot be said: {self.lost} of {total} programs completed on one arm only"
                return f"{text} ({figures} over the others)"
            case Verdict.SAME:
                text = f"the same within {SAME_WITHIN:.0%}"
            case Verdict.UNSEEN:
                text = "no difference seen"
            case Verdict.BETTER | Verdict.WORSE:
                text = "better" if self.verdict is Verdict.BETTER else "worse"
        alone = "" if self.repeats > 1 else "; how repeats differ is assumed, for there is one"
        return f"{text}: {figures}, {rests}{alone}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def paired_ratio(
    values: Mapping[Pair, float], baseline: Mapping[Pair, float], *, seed: int = 0
) -> Ratio:
    """Compare what two arms measured, by (repeat, program); only what both have is compared.

    Values must be above 0. The same input and seed give the same interval.
    """
    common = [key for key in values if key in baseline and values[key] > 0 and baseline[key] > 0]
    logs: dict[int, dict[str, float]] = {}
    for repeat, program in sorted(common):
        key = (repeat, program)
        logs.setdefault(repeat, {})[program] = math.log(values[key] / baseline[key])
    lost = len(values.keys() ^ baseline.keys())
    if not logs:
        return Ratio(
            value=1.0, low=0.0, high=_NO_BOUND, pairs=0, lost=lost, repeats=0, by_repeat=()
        )
    means = [math.fsum(row.values()) / len(row) for row in logs.values()]
    value = math.fsum(log for row in logs.values() for log in row.values()) / len(common)
    low, high = _interval(logs, means, value=value, rng=random.Random(f"ratio/{seed}"))
    return Ratio(
        value=math.exp(value),
        low=math.exp(low),
        high=math.exp(high),
        pairs=len(common),
        lost=lost,
        repeats=len(means),
        by_repeat=tuple(math.exp(mean) for mean in means),
    )


def _nothing(*, lost: int) -> Ratio:
    return Ratio(value=1.0, low=0.0, high=_NO_BOUND, pairs=0, lost=lost, repeats=0, by_repeat=())


def _interval(
    logs: Mapping[int, Mapping[str, float]],
    means: Sequence[float],
    *,
    value: float,
    rng: random.Random,
) -> tuple[float, float]:
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row in logs.values():
        for program, log in row.items():
            sums[program] = sums.get(program, 0.0) + log
            counts[program] = counts.get(program, 0) + 1
    programs = [(sums[name], counts[name]) for name in sorted(sums)]
    spread = _error_of_mean(means)
    number = max(200, min(_DRAWS, _VALUES_MAX // len(programs)))
    # The bootstrap's spread is that of n values about their mean, short by a factor of n / (n - 1).
    widen = math.sqrt(len(programs) / (len(programs) - 1)) if len(programs) > 1 else 1.0
    draws = []
    for _ in range(number):
        taken = rng.choices(programs, k=len(programs))
        mean = math.fsum(part for part, _ in taken) / sum(count for _, count in taken)
        if len(means) > 1:
            shift = spread * _student(len(means) - 1, rng)
        else:
            shift = rng.gauss(0, _LUCK_ASSUMED)
        draws.append(value + widen * (mean - value) + shift)
    draws.sort()
    tail = (1 - CONFIDENCE) / 2
    return quantile(draws, tail), quantile(draws, 1 - tail)


def _error_of_mean(values: Sequence[float]) -> float:
    count = len(values)
    if count < 2:
        return 0.0
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)


def _student(freedom: int, rng: random.Random) -> float:
    """A draw of Student's t."""
    return rng.gauss(0, 1) / math.sqrt(rng.gammavariate(freedom / 2, 2) / freedom)


def jain(values: Sequence[float]) -> float | None:
    """Jain's index of fairness (Jain, Chiu and Hawe 1984): 1 all equal, 1/n one has all."""
    squares = math.fsum(value * value for value in values)
    if not values or not squares:
        return None
    return math.fsum(values) ** 2 / (len(values) * squares)
