"""Which values of which parameters, on which programs, and what came of it.

Programs are split by a hash of their id, so the halves do not depend on order or seed. Every
candidate is simulated on the tuning half under every seed; only the best of them, and the default,
are then judged on the held-out half. The best is said to be *within noise* when the confidence
interval of its ratio to the default there, paired by seed, holds 1.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import exp, inf, log, sqrt
from typing import Final

import msgspec
import xxhash

from agentsched.model import ConfigError, PolicyError
from agentsched.policy import load
from agentsched_bench.sim.arms import Scenario, alone, parse_arm, run_arm
from agentsched_bench.sim.results import SimRow, row_of
from agentsched_bench.workload.shape import PlannedProgram

SCHEMA: Final = "agentsched.tuning/1"

_TINY: Final = 1e-9
#: The 97.5 % quantile of Student's t, by degrees of freedom from 1 on.
_T_QUANTILES: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
)  # fmt: skip
_CANDIDATES_MAX: Final = 10_000


class Trial(msgspec.Struct, kw_only=True):
    """One candidate under one seed on one half of the programs: `tune` or `held-out`.

    `score` is None where programs gave up: the others alone would make their arm look fast.
    """

    arm: str
    half: str
    seed: int
    score: float | None
    row: SimRow


class Verdict(msgspec.Struct, kw_only=True):
    """The best candidate against the default, on programs that neither was chosen on.

    `ratio` is the geometric mean over the seeds asked for of best / default; below 1 the best is
    better. The interval is its 95 % confidence interval by Student's t. Seeds under which programs
    gave up have no ratio; with no other it is 1.
    """

    best: str
    default: str
    ratio: float
    ratio_low: float
    ratio_high: float
    is_within_noise: bool
    text: str


class Tuning(msgspec.Struct, kw_only=True):
    """A sweep as it lies in its file; with `trials` in it, it goes on where it stopped.

    `seeds` are those of the latest call; what earlier ones tried besides is kept.
    """

    schema: str = SCHEMA
    command: list[str]
    options: dict[str, object]
    metric: str
    candidates: list[str]
    seeds: list[int] = []
    trials: list[Trial] = []
    verdict: Verdict | None = None

    def done(self) -> set[tuple[str, str, int]]:
        """What needs not be simulated again."""
        return {(trial.arm, trial.half, trial.seed) for trial in self.trials}

    def has_all(self, arm: str, half: str) -> bool:
        """Whether an arm was tried under every seed, so that its mean is comparable."""
        done = self.done()
        tried = [trial for trial in self.trials if (trial.arm, trial.half) == (arm, half)]
        return bool(tried) and all((arm, half, seed) in done for seed in self.seeds)

    def mean(self, arm: str, half: str) -> float:
        """An arm's mean score over the seeds, the same for all; infinite if programs gave up."""
        scores = [
            inf if t.score is None else t.score
            for t in self.trials
            if (t.arm, t.half) == (arm, half) and (not self.seeds or t.seed in self.seeds)
        ]
        return sum(scores) / len(scores)


METRICS: Final = ("jct_mean", "jct_p95", "slowdown_p95", "wait_max", "computed", "makespan")


def score_of(row: SimRow, metric: str) -> float:
    """One number to be made small."""
    match metric:
        case "jct_mean":
            return row.jct_s.mean
        case "jct_p95":
            return row.jct_s.p95
        case "slowdown_p95":
            return row.slowdown.p95
        case "wait_max":
            return row.first_token_wait_s.max
        case "computed":
            return row.computed_of_bound
        case "makespan":
            return row.makespan_s
        case _:
            raise ConfigError(f"no metric {metric!r} (there are: {', '.join(METRICS)})")


def candidates(profile: str, sweeps: Sequence[str], *, sample: int | None, seed: int) -> list[str]:
    """The default first, then each combination of the values, or so many of them by lot.

    A sweep is written `POINT.PARAMETER=V1|V2|...` or `POINT=NAME|NAME`.

    Raises:
        ConfigError: a sweep is not of that form, or there are too many combinations.
        PolicyError: a name is unknown, or a policy refuses its parameters.
    """
    axes: list[list[str]] = []
    for sweep in sweeps:
        key, found, values = sweep.partition("=")
        if not found or not values:
            raise ConfigError(f"not a sweep: {sweep!r} (write POINT.PARAMETER=V1|V2)")
        axes.append([f"{key}={value}" for value in values.split("|")])
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > _CANDIDATES_MAX and sample is None:
        raise ConfigError(f"{count} combinations: take some of them with --sample")
    if sample is not None and sample < count:
        rng = random.Random(f"tune/{seed}")
        drawn = {",".join(rng.choice(axis) for axis in axes) for _ in range(4 * sample)}
        combined: Iterable[str] = sorted(drawn, key=lambda text: _hash(text, seed))[:sample]
    else:
        combined = (",".join(chosen) for chosen in itertools.product(*axes))
    arms = [profile, *(f"{profile},{changes}" for changes in combined if changes)]
    changed = {
        f"{point}={choice}": (point, choice)
        for arm in arms
        for point, choice in parse_arm(arm).choices.items()
    }
    # A policy that refuses its parameters when its turn comes costs all that was tried before it.
    for point, choice in changed.values():
        load(point, choice.name, choice.params)
    return list(dict.fromkeys(arms))


def split_programs(
    plans: Sequence[PlannedProgram],
) -> tuple[list[PlannedProgram], list[PlannedProgram]]:
    """The tuning half and the held-out half, by a hash of the program's id.

    Raises:
        ConfigError: one of them is empty.
    """
    tune = [plan for plan in plans if _hash(plan.program, 0) % 2 == 0]
    held = [plan for plan in plans if _hash(plan.program, 0) % 2 == 1]
    if not tune or not held:
        raise ConfigError("too few programs to keep some aside")
    return tune, held


def _hash(text: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(), seed=seed) >> 7


def try_arm(
    arm: str,
    half: str,
    seed: int,
    scenario: Scenario,
    alone_s: dict[str, float],
    metric: str,
) -> Trial:
    """Simulate one candidate under one seed.

    Raises:
        PolicyError: one of its policies failed, or refuses its parameters.
    """
    try:
        outcome = run_arm(parse_arm(arm), scenario, seed=seed)
    except PolicyError as error:
        raise PolicyError(f"{arm} under seed {seed}: {error}") from error
    row = row_of(arm, seed, outcome, alone_s=alone_s)
    return Trial(arm=arm, half=half, seed=seed, score=judged_score(row, metric), row=row)


def judged_score(row: SimRow, metric: str) -> float | None:
    """The score that counts; None where programs gave up."""
    return None if row.failed else score_of(row, metric)


def halves(scenario: Scenario) -> dict[str, tuple[Scenario, dict[str, float]]]:
    """Both halves of a scenario, with the times that their programs take alone."""
    tune, held = split_programs(scenario.plans)
    found = {}
    for name, plans in (("tune", tune), ("held-out", held)):
        half = replace(scenario, plans=plans)
        found[name] = (half, alone(half))
    return found


def judge(tuning: Tuning, best: str, default: str) -> Verdict:
    """Compare both on the held-out half, paired by seed, under the seeds of the latest call."""
    scores: dict[int, dict[str, float | None]] = {}
    for trial in tuning.trials:
        # What an earlier call judged besides is kept, and is no part of what is asked now.
        if trial.half == "held-out" and (not tuning.seeds or trial.seed in tuning.seeds):
            scores.setdefault(trial.seed, {})[trial.arm] = trial.score
    # An earlier call may have judged others.
    pairs = [
        (own[best], own[default])
        for _, own in sorted(scores.items())
        if best in own and default in own
    ]
    ratios = [mine / max(_TINY, its) for mine, its in pairs if mine is not None and its is not None]
    mean, low, high = _interval(ratios)
    # One seed says nothing about spread.
    noise = best == default or len(ratios) < 3 or low <= 1.0 <= high
    if best == default:
        is_any = not tuning.has_all(best, "tune") or tuning.mean(best, "tune") < inf
        text = "the default is best" if is_any else "programs gave up under every candidate"
    elif any(mine is None for mine, _ in pairs):
        noise, text = True, f"under {best} programs gave up that were kept aside"
    elif noise:
        text = f"{best} is within noise of the default on programs kept aside"
    elif mean < 1:
        text = f"{best} is {1 - mean:.1%} better than the default on programs kept aside"
    else:
        text = f"{best} is {mean - 1:.1%} worse than the default on programs kept aside"
    if best != default and any(its is None for _, its in pairs):
        text += "; under the default, programs gave up"
    return Verdict(
        best=best,
        default=default,
        ratio=mean,
        ratio_low=low,
        ratio_high=high,
        is_within_noise=noise,
        text=text,
    )


def _interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Their geometric mean, and its 95 % interval; none has a mean of 1."""
    if not ratios:
        return 1.0, 1.0, 1.0
    logs = [log(max(_TINY, ratio)) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return exp(mean), exp(mean), exp(mean)
    # Seeds are few, and resampling a few claims far too much: Student's t, as for repeats.
    half = _t_quantile(len(logs) - 1) * statistics.stdev(logs) / sqrt(len(logs))
    return exp(mean), exp(mean - half), exp(mean + half)


def _t_quantile(freedom: int) -> float:
    """What 97.5 % of Student's t lie below."""
    if freedom <= len(_T_QUANTILES):
        return _T_QUANTILES[freedom - 1]
    z = 1.959964
    # Cornish and Fisher's expansion, right to three digits from here on.
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
