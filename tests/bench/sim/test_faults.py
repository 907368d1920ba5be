"""Faults: read, drawn from a seed, and survived."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import ConfigError, Instant, Limits, Nanos, after, seconds
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Scenario, parse_arm, run_arm, starts_of
from agentsched_bench.sim.clients import Start
from agentsched_bench.sim.faults import (
    Faults,
    Outage,
    apart,
    draw_faults,
    outage,
    restart,
    slowdown,
    stall,
)
from agentsched_bench.sim.host import SimHost
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs


def scenario(*, engines: int = 2, faults: Faults | None = None) -> Scenario:
    rows = list(generate(programs=8, seed=3, interarrival_s=1.0, steps_max=6))
    shape = ShapeOptions(scale_tokens=4, steps_max=6, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    config = EngineConfig.from_preset(preset("cpu-2core"))
    config = replace(config, blocks=240, max_model_len=239 * config.block_size)
    made = Scenario(plans=plans, engines=[config] * engines, arrivals=parse_arrivals("burst:4/s"))
    return made if faults is None else replace(made, faults=faults)


def drawn(seed: int) -> Faults:
    return draw_faults(seed, engines=2, length=seconds(60), rate=40.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("arm", ["direct", "agentsched"])
def test_every_program_ends_whatever_goes_wrong(arm: str, seed: int) -> None:
    faults = drawn(seed)
    assert faults.outages
    assert faults.slowdowns
    outcome = run_arm(parse_arm(arm), scenario(faults=faults), seed=seed)
    assert all(run.ended_at is not None for run in outcome.runs)
    served = [run for run in outcome.runs if not run.is_failed]
    assert [run.calls for run in served] == [run.plan.calls for run in served]
    assert len(served) >= len(outcome.runs) - 1


@pytest.mark.parametrize(
    ("kind", "whole", "parts"),
    [
        ("stalls", ["0@1+6"], ["0@1+6", "0@2+1"]),
        ("outages", ["0@1+6"], ["0@1+6", "0@2+1", "0@3+4"]),
        ("restarts", ["1+6"], ["1+3", "2+5"]),
    ],
)
def test_a_fault_lasts_though_another_of_its_kind_ends_inside(
    kind: str, whole: list[str], parts: list[str]
) -> None:
    read = {"stalls": stall, "outages": outage, "restarts": restart}[kind]
    outcomes = []
    for texts in (whole, parts):
        faults = Faults(**{kind: tuple(read(text) for text in texts)})  # type: ignore[arg-type]
        outcomes.append(run_arm(parse_arm("direct"), scenario(engines=1, faults=faults), seed=1))

    one, two = outcomes
    assert (two.makespan_ns, two.tally) == (one.makespan_ns, one.tally)
    plain = run_arm(parse_arm("direct"), scenario(engines=1), seed=1)
    assert one.makespan_ns > plain.makespan_ns


def test_faults_that_only_touch_stay_as_they_are() -> None:
    faults = Faults(
        outages=(outage("1@9+1"), outage("0@4+2"), outage("0@1+3")), restarts=(restart("1+1"),)
    )
    assert apart(faults) == faults


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("stalls", ["0@1+3", "0@4+3"]),
        ("outages", ["0@1+3", "0@4+3"]),
        ("restarts", ["1+3", "4+3"]),
    ],
)
def test_a_fault_that_begins_as_another_ends_is_one_in_any_order(
    kind: str, parts: list[str]
) -> None:
    """Given the later one first, its beginning came before the end of the other, which undid it."""
    read = {"stalls": stall, "outages": outage, "restarts": restart}[kind]
    outcomes = []
    for texts in (parts, parts[::-1]):
        faults = Faults(**{kind: tuple(read(text) for text in texts)})  # type: ignore[arg-type]
        outcomes.append(run_arm(parse_arm("direct"), scenario(engines=1, faults=faults), seed=1))

    one, two = outcomes
    assert (two.makespan_ns, two.tally) == (one.makespan_ns, one.tally)


def test_a_call_that_was_tried_again_waited_once() -> None:
    faults = Faults(outages=(outage("0@1+2"), outage("1@4+2")))
    outcome = run_arm(parse_arm("agentsched"), scenario(faults=faults), seed=1)
    tally = outcome.tally
    assert tally.failed > 0
    assert not any(run.is_failed for run in outcome.runs)
    assert len(tally.held) == len(tally.first_token_waits) == tally.calls


def test_an_engine_may_be_back_before_calls_reach_it() -> None:
    """What was on its way to it when it was lost never arrives, and is tried again once."""
    blinks = tuple(outage(f"0@{0.3 * number + 0.5}+0.001") for number in range(30))
    made = scenario(engines=1, faults=Faults(outages=blinks))
    assert made.engines[0].cost.per_call_ns > seconds(0.002)

    outcome = run_arm(parse_arm("direct"), made, seed=1)

    assert outcome.tally.failed > 0
    assert not any(run.is_failed for run in outcome.runs)
    assert [run.calls for run in outcome.runs] == [run.plan.calls for run in outcome.runs]


def test_an_answer_that_was_on_its_way_is_lost_with_its_engine() -> None:
    made = scenario(engines=1)
    plan = made.plans[0]
    call = replace(plan.main.calls[0], output_tokens=1)
    plan = replace(plan, main=replace(plan.main, calls=(call,)), children=())

    def took(*outages: Outage) -> int:
        scheduler = build_scheduler(SchedulerConfig(profile="passthrough"))
        host = SimHost(scheduler, engines=made.engines)
        (run,) = host.run([Start(plan=plan, at=Instant(0))], outages=outages)
        assert not run.is_failed
        return host.now

    plain = took()
    way = made.engines[0].cost.per_call_ns / 2
    at = Instant(round(plain - way / 2))
    assert took(Outage(engine=0, at=at, back_at=after(at, Nanos(1)))) > plain + way


@pytest.mark.parametrize("arm", ["direct", "agentsched"])
def test_a_call_that_is_too_long_for_one_engine_goes_to_another(arm: str) -> None:
    made = scenario(engines=1)
    (large,) = made.engines
    small = replace(large, blocks=30, max_model_len=29 * large.block_size)

    outcome = run_arm(parse_arm(arm), replace(made, engines=[large, small]), seed=1)

    assert outcome.tally.failed > 0
    assert not any(run.is_failed for run in outcome.runs)


def test_a_restart_loses_what_was_under_way_and_nothing_else() -> None:
    outcome = run_arm(
        parse_arm("agentsched"), scenario(faults=Faults(restarts=(restart("2+1.5"),))), seed=1
    )
    assert outcome.tally.lost > 0
    assert not any(run.is_failed for run in outcome.runs)


def test_a_slow_engine_takes_longer() -> None:
    plain = run_arm(parse_arm("direct"), scenario(engines=1), seed=1)
    faults = Faults(slowdowns=(slowdown("0@0+100000x3"),))
    slow = run_arm(parse_arm("direct"), scenario(engines=1, faults=faults), seed=1)
    assert slow.busy_ns > 2 * plain.busy_ns


@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("kind", ["lost", "late", "twice"])
def test_books_hold_when_news_is_late_lost_or_repeated(kind: str, share: float) -> None:
    made = scenario(faults=Faults(**{kind: share, "seed": 5}))
    limits = Limits(wait_ns_max=seconds(15))
    scheduler = build_scheduler(SchedulerConfig(profile="agentsched", limits=limits))
    host = SimHost(
        scheduler,
        engines=made.engines,
        on_turn=lambda entry: scheduler.check() if entry.seq % 7 == 0 else None,
    )
    runs = host.run(starts_of(made, seed=1), faults=made.faults)
    assert all(run.ended_at is not None and not run.is_failed for run in runs)


def test_one_seed_one_misfortune_on_every_hash_seed() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from agentsched_bench.sim.faults import draw_faults\n"
        "from agentsched.model import seconds\n"
        "f = draw_faults(7, engines=3, length=seconds(900))\n"
        "print(f, [f.strikes('late', str(i), 0.3) for i in range(50)])\n"
    )
    told = set()
    for seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", script, os.getcwd()],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        told.add(done.stdout)
    assert len(told) == 1


@pytest.mark.parametrize("text", ["", "1", "0@1", "0@1+0x2", "0@1+2x0", "0@1+2xq", "a@1+2x2"])
def test_a_slowdown_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        slowdown(text)


@pytest.mark.parametrize("text", ["", "1", "0@1", "0@1+0", "0@2+q", "a@1+2", "-1@1+2"])
def test_a_stall_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        stall(text)


def test_an_engine_that_stands_still_loses_nothing_and_computes_nothing() -> None:
    plain = run_arm(parse_arm("direct"), scenario(engines=1), seed=1)
    faults = Faults(stalls=(stall("0@2+30"),))
    stalled = run_arm(parse_arm("direct"), scenario(engines=1, faults=faults), seed=1)
    assert not any(run.is_failed for run in stalled.runs)
    assert stalled.makespan_ns >= plain.makespan_ns + seconds(20)
    assert stalled.busy_ns <= 1.5 * plain.busy_ns
