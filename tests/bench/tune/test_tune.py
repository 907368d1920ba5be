"""Sweeps: what is tried, on which programs, and what is said about the best."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from agentsched.model import AgentschedError, ConfigError, PolicyError
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Scenario
from agentsched_bench.sim.specs import digest_of
from agentsched_bench.tune import cli
from agentsched_bench.tune.sweep import (
    Trial,
    Tuning,
    Verdict,
    candidates,
    halves,
    judge,
    split_programs,
    try_arm,
)
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs


def scenario() -> Scenario:
    rows = list(generate(programs=12, seed=3, interarrival_s=1.0, steps_max=4))
    shape = ShapeOptions(scale_tokens=4, steps_max=4, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    config = EngineConfig.from_preset(preset("cpu-2core"))
    config = replace(config, blocks=190, max_model_len=189 * config.block_size)
    return Scenario(plans=plans, engines=[config], arrivals=parse_arrivals("burst:3/s"))


def tuning(*arms: str) -> Tuning:
    return Tuning(command=[], options={}, metric="jct_mean", candidates=list(arms))


def test_every_combination_once_and_the_default_first() -> None:
    found = candidates(
        "agentsched", ["admit.patience=1|2", "admit.fill=0.8|0.9"], sample=None, seed=0
    )
    assert found[0] == "agentsched"
    assert len(found) == 5
    assert "agentsched,admit.patience=2,admit.fill=0.8" in found
    drawn = candidates("agentsched", ["admit.patience=1|2", "admit.fill=0.8|0.9"], sample=2, seed=0)
    assert len(drawn) == 3
    assert set(drawn) < set(found)


@pytest.mark.parametrize("sweep", ["", "admit.patience", "admit.patience=", "nothing.x=1"])
def test_what_is_no_sweep_is_refused(sweep: str) -> None:
    with pytest.raises(ConfigError):
        candidates("agentsched", [sweep], sample=None, seed=0)


def test_halves_share_nothing_and_do_not_depend_on_order() -> None:
    plans = scenario().plans
    tune, held = split_programs(plans)
    assert {p.program for p in tune}.isdisjoint(p.program for p in held)
    assert len(tune) + len(held) == len(plans)
    again = split_programs(list(reversed(plans)))
    assert {p.program for p in again[0]} == {p.program for p in tune}


def test_a_sweep_is_judged_on_programs_kept_aside(tmp_path: Path) -> None:
    out = tmp_path / "tuning.json"
    sweep = tuning("passthrough", "agentsched")
    assert not cli.run(sweep, scenario(), [1, 2, 3], out=out)
    assert len(sweep.trials) == 3 * 2 + 3 * len({sweep.verdict.best, "passthrough"})  # type: ignore[union-attr]
    kept = msgspec.json.decode(out.read_bytes(), type=Tuning)
    assert kept.verdict == sweep.verdict
    # Called again, it has nothing left to do.
    before = list(kept.trials)
    cli.run(kept, scenario(), [1, 2, 3], out=out)
    assert kept.trials == before


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = tuning("passthrough", "agentsched")
    cli.run(whole, scenario(), [1, 2])
    half = tuning("passthrough", "agentsched")
    half.trials = [t for t in whole.trials if t.half == "tune" and t.seed == 1]
    cli.run(half, scenario(), [1, 2])
    key = lambda t: (t.half, t.arm, t.seed)  # noqa: E731 - a sort key used twice
    assert sorted(half.trials, key=key) == sorted(whole.trials, key=key)


def test_processes_change_nothing() -> None:
    one, two = tuning("passthrough", "agentsched"), tuning("passthrough", "agentsched")
    cli.run(one, scenario(), [1])
    cli.run(two, scenario(), [1], jobs=2)
    scores = [{(t.arm, t.half): t.score for t in found.trials} for found in (one, two)]
    assert scores[0] == scores[1]


def test_what_one_cannot_tell_apart_is_noise() -> None:
    made = halves(scenario())["held-out"]
    trial = try_arm("passthrough", "held-out", 1, made[0], made[1], "jct_mean")
    sweep = tuning("a", "b")
    for seed, (best, default) in enumerate([(0.9, 1.0), (1.1, 1.0), (1.0, 1.02)]):
        for arm, score in (("b", best), ("a", default)):
            sweep.trials.append(
                msgspec.structs.replace(trial, arm=arm, seed=seed, score=score, half="held-out")
            )
    assert judge(sweep, "b", "a").is_within_noise
    for one in sweep.trials:
        one.score = 0.5 if one.arm == "b" else 1.0 + one.seed / 100
    verdict = judge(sweep, "b", "a")
    assert not verdict.is_within_noise
    assert verdict.ratio_high < 0.51
    assert "better" in verdict.text


def test_no_difference_is_seldom_called_one() -> None:
    """With three seeds, too: a bootstrap of three ratios said so of one sweep in four."""
    rng = random.Random(5)
    rows = held(*((arm, seed, 1.0) for seed in range(5) for arm in "ab"))
    for seeds in (3, 5):
        sweep, wrong = tuning("a", "b"), 0
        sweep.trials = [trial for trial in rows if trial.seed < seeds]
        for _ in range(400):
            for trial in sweep.trials:
                trial.score = 10 * math.exp(rng.gauss(0, 0.1))
            wrong += not judge(sweep, "b", "a").is_within_noise
        assert wrong <= 0.08 * 400, f"{seeds} seeds"


def test_how_much_ratios_differ_from_each_other_is_what_counts() -> None:
    sweep = tuning("a", "b")

    def judged(*ratios: float) -> Verdict:
        pairs = [
            pair for n, ratio in enumerate(ratios) for pair in (("a", n, 1.0), ("b", n, ratio))
        ]
        sweep.trials = held(*pairs)
        return judge(sweep, "b", "a")

    assert judged(0.80, 0.99, 0.98).is_within_noise
    near = judged(0.97, 0.975, 0.98)
    assert not near.is_within_noise
    assert near.text == "b is 2.5% better than the default on programs kept aside"
    assert (near.ratio_low, near.ratio_high) == pytest.approx((0.9626, 0.9875), abs=1e-4)


def held(*rows: tuple[str, int, float | None], half: str = "held-out") -> list[Trial]:
    """Trials by arm, seed and score; None: programs gave up."""
    made = halves(scenario())["held-out"]
    trial = try_arm("passthrough", "held-out", 1, made[0], made[1], "jct_mean")
    return [
        msgspec.structs.replace(
            trial, arm=arm, seed=seed, score=score, half=half,
            row=msgspec.structs.replace(trial.row, failed=int(score is None)),
        )
        for arm, seed, score in rows
    ]  # fmt: skip


def test_a_sweep_in_which_programs_gave_up_goes_on_as_well(tmp_path: Path) -> None:
    out = tmp_path / "tuning.json"
    sweep = tuning("passthrough", "agentsched")
    sweep.trials = held(("agentsched", 1, None), half="tune")

    cli.run(sweep, scenario(), [1], out=out)

    again = cli._resumed(tuning("passthrough", "agentsched"), out)
    assert [t.score for t in again.trials if (t.arm, t.half) == ("agentsched", "tune")] == [None]
    assert sweep.verdict is not None
    assert sweep.verdict.best == "passthrough", "who gave up is not fast"


def test_what_another_sweep_tried_is_kept(tmp_path: Path) -> None:
    """It is there when that sweep is asked again, and is no candidate meanwhile."""
    out = tmp_path / "tuning.json"
    old = tuning("passthrough", "b")
    old.trials = held(("b", 1, 1.0), half="tune")
    cli._save(old, out)

    other = cli._resumed(tuning("passthrough", "agentsched"), out)
    cli.run(other, scenario(), [1], out=out)

    assert other.verdict is not None
    assert other.verdict.best != "b"
    again = cli._resumed(tuning("passthrough", "b"), out)
    assert ("b", "tune", 1) in again.done()


def test_the_best_is_that_of_the_same_seeds(tmp_path: Path) -> None:
    """A candidate that an earlier call tried under an easier seed is not better for it."""
    sweep = tuning("a", "b")
    sweep.trials = held(("a", 1, 1.0), ("a", 2, 9.0), ("b", 2, 8.0), half="tune")
    sweep.seeds = [2]

    assert (sweep.mean("a", "tune"), sweep.mean("b", "tune")) == (9.0, 8.0)


def test_what_an_earlier_call_judged_is_no_matter() -> None:
    sweep = tuning("a", "b", "c")
    pairs = [("a", 1, 1.0), ("b", 1, 0.5)]
    later = [(arm, seed, score) for seed in (2, 3, 4) for arm, score in (("a", 1.0), ("c", 0.8))]
    sweep.trials = held(*pairs, *later)

    verdict = judge(sweep, "c", "a")

    assert verdict.ratio == pytest.approx(0.8)
    assert verdict.text.startswith("c is 20.0% better")


def test_who_gave_up_is_not_better() -> None:
    sweep = tuning("a", "b")
    sweep.trials = held(*((arm, seed, 1.0) for seed in (1, 2, 3) for arm in "ab"))
    sweep.trials += held(("a", 4, None), ("b", 4, None))

    verdict = judge(sweep, "b", "a")

    assert verdict.ratio == verdict.ratio_low == verdict.ratio_high == 1.0
    assert verdict.is_within_noise
    assert verdict.text == (
        "under b programs gave up that were kept aside; under the default, programs gave up"
    )


def test_a_disk_that_is_full_leaves_nothing_beside(tmp_path: Path) -> None:
    out = tmp_path / "tuning.json"
    out.mkdir()

    with pytest.raises(OSError, match=r"tuning\.json"):
        cli._save(tuning("a"), out)

    assert [path.name for path in tmp_path.iterdir()] == ["tuning.json"]


def test_a_sweep_on_other_engines_is_another(tmp_path: Path) -> None:
    """A file of `agentsched calibrate` may have been written again under its name."""
    out = tmp_path / "tuning.json"
    fresh = tuning("a")
    fresh.options = {"engines": ["m.json"], "engines_sha256": "b"}
    for before in ({}, {"engines_sha256": "b"}):
        old = tuning("a")
        old.options = {"engines": ["m.json"]} | before
        cli._save(old, out)
        assert cli._resumed(fresh, out).candidates == ["a"]
    for before in ({"engines_sha256": "a"}, {"profile": "fcfs"}):
        old = tuning("a")
        old.options = {"engines": ["m.json"]} | before
        cli._save(old, out)
        with pytest.raises(ConfigError, match="another sweep"):
            cli._resumed(fresh, out)


def test_a_sweep_of_another_version_is_another(tmp_path: Path) -> None:
    """A policy may be another one by now: candidates of two are not compared."""
    out = tmp_path / "tuning.json"
    old, fresh = tuning("a"), tuning("a")
    old.options, fresh.options = {"agentsched": "0.1.0"}, {"agentsched": "0.2.0"}
    cli._save(old, out)

    with pytest.raises(ConfigError, match="another sweep"):
        cli._resumed(fresh, out)
    cli._save(tuning("a"), out)
    assert cli._resumed(fresh, out).candidates == ["a"], "an older file does not say"


def test_engines_are_told_apart_by_what_they_are() -> None:
    (engine,) = scenario().engines

    assert digest_of([engine]) == digest_of([replace(engine)])
    assert digest_of([engine]) != digest_of([replace(engine, cost=engine.cost.slower(2.0))])
    assert digest_of([engine]) != digest_of([engine, engine])


def test_the_verdict_is_over_the_seeds_that_are_asked_for() -> None:
    """What an earlier call judged under others is kept in the file, and is not asked about now."""
    sweep = tuning("a", "b")
    pairs = [(arm, seed, score) for seed in (1, 2, 3) for arm, score in (("a", 1.0), ("b", 0.5))]
    sweep.trials = held(*pairs, ("a", 4, None), ("b", 4, 0.5), ("a", 5, 1.0), ("b", 5, 0.5))

    sweep.seeds = [5]
    assert judge(sweep, "b", "a").is_within_noise, "one seed says nothing about spread"
    sweep.seeds = [1, 2, 3]
    verdict = judge(sweep, "b", "a")
    assert verdict.text == "b is 50.0% better than the default on programs kept aside"


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("admit.low=0.1|0.9", "bad parameters"),
        ("admit.lo=0.1|0.2", "bad parameters"),
        ("order=fcfs|nobody", "no order policy is called 'nobody'"),
    ],
)
def test_what_no_policy_takes_is_refused_before_anything_is_tried(sweep: str, said: str) -> None:
    """Its turn may come after hours."""
    with pytest.raises(PolicyError, match=said):
        candidates("concur", [sweep], sample=None, seed=0)


def test_where_programs_gave_up_under_all_none_is_best() -> None:
    sweep = tuning("a", "b")
    rows = [("a", 1, None), ("a", 2, None), ("b", 1, None), ("b", 2, 1.0)]
    sweep.trials = [*held(*rows, half="tune"), *held(("a", 1, None), ("a", 2, 3.0))]
    sweep.seeds = [1, 2]

    assert judge(sweep, "a", "a").text == "programs gave up under every candidate"
    sweep.trials[0].score = sweep.trials[1].score = 2.0
    assert judge(sweep, "a", "a").text == "the default is best"


def test_one_seed_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tuning("a", "b")
    rows = [(arm, seed, score) for seed in (1, 2, 3) for arm, score in (("a", 1.0), ("b", 0.5))]
    for seeds, said in ((1, "(ratio 0.500)"), (3, "(ratio 0.497, 95 % between")):
        sweep.trials = held(*(row for row in rows if row[1] <= seeds))
        sweep.trials[-1].score = 0.49 if seeds > 1 else 0.5
        sweep.verdict = judge(sweep, "b", "a")
        cli.print_tuning(sweep, console=Console(width=200))
        assert said in capsys.readouterr().out


def test_after_an_error_nothing_begins_and_what_had_begun_is_kept() -> None:
    trials = held(*(("a", seed, 1.0) for seed in range(5)))
    begun: list[Future[Trial]] = []
    kept: list[Trial] = []

    def begin() -> Iterator[Future[Trial]]:
        for number, trial in enumerate(trials):
            begun.append(Future())
            if number == 1:
                begun[-1].set_exception(PolicyError("it broke"))
            else:
                begun[-1].set_result(trial)
            yield begun[-1]

    with pytest.raises(PolicyError, match="it broke"):
        cli.keep_all(begin(), kept.append, at_once=3)

    assert len(begun) == 3
    assert sorted(trial.seed for trial in kept) == [0, 2]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_names_its_candidate_and_what_is_done_stays(jobs: int, tmp_path: Path) -> None:
    out = tmp_path / "tuning.json"
    sweep = tuning("passthrough", "agentsched,admit.low=9")

    with pytest.raises(PolicyError, match=r"agentsched,admit.low=9 under seed 1: .*bad parameters"):
        cli.run(sweep, scenario(), [1, 2, 3], jobs=jobs, out=out)

    done = [(t.arm, t.seed) for t in msgspec.json.decode(out.read_bytes(), type=Tuning).trials]
    assert done[0] == ("passthrough", 1)
    assert len(done) <= jobs


def test_a_process_that_was_ended_is_said_in_words() -> None:
    ended: Future[Trial] = Future()
    ended.set_exception(BrokenProcessPool("abruptly"))

    with pytest.raises(AgentschedError, match="a process of the sweep was ended from outside"):
        cli.keep_all(iter([ended]), lambda _trial: None, at_once=2)
