"""The simulation as a whole: what goes in comes out, the same for the same seed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from agentsched.compose import SchedulerConfig, build_policies, build_scheduler
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.kernel.journal import encode
from agentsched.model import (
    SECOND,
    ConfigError,
    EngineReported,
    Instant,
    Limits,
    PolicyError,
    Reject,
    StepArrived,
    seconds,
)
from agentsched.policy import StepView, World
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.tier import TierConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import (
    Outcome,
    Scenario,
    alone,
    outage,
    parse_arm,
    run_arm,
    starts_of,
)
from agentsched_bench.sim.clients import Endings
from agentsched_bench.sim.faults import Faults, restart
from agentsched_bench.sim.host import SimHost
from agentsched_bench.sim.results import row_of
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.trace import group_programs
from agentsched_policies.order.fcfs import Fcfs

ARMS = ("direct", "unlimited", "fcfs", "agentsched")


def plans(count: int = 8, *, steps: int = 6) -> list[PlannedProgram]:
    rows = list(generate(programs=count, seed=3, interarrival_s=1.0, steps_max=steps))
    shape = ShapeOptions(scale_tokens=4, steps_max=steps, context_tokens_max=6_000)
    return plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))


def engine(blocks: int = 240) -> EngineConfig:
    chosen = EngineConfig.from_preset(preset("cpu-2core"))
    return replace(chosen, blocks=blocks, max_model_len=(blocks - 1) * chosen.block_size)


def scenario(*, engines: int = 1, blocks: int = 240, **changes: object) -> Scenario:
    made = Scenario(
        plans=plans(), engines=[engine(blocks)] * engines, arrivals=parse_arrivals("burst:4/s")
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def check(outcome: Outcome, made: Scenario) -> None:
    """Every program came to its end, and every call was answered once."""
    assert all(run.ended_at is not None and not run.is_failed for run in outcome.runs)
    planned = [run.plan.calls for run in outcome.runs]
    assert [run.calls for run in outcome.runs] == planned
    talks = [talk for run in outcome.runs for talk in run.plan.conversations]
    output = sum(call.output_tokens for talk in talks for call in talk.calls)
    assert outcome.tally.calls == sum(planned)
    assert outcome.tally.output_tokens == output
    assert 0 < outcome.busy_ns <= outcome.makespan_ns * outcome.engines


@pytest.mark.parametrize("arm", ARMS)
def test_every_program_is_served(arm: str) -> None:
    made = scenario()
    check(run_arm(parse_arm(arm), made, seed=1), made)


@pytest.mark.parametrize(
    "changes",
    [
        {"endings": Endings.SILENT},
        {"endings": Endings.DECLARED},
        {"endings": Endings.RECORDED},
        {"streams": False},
        {"token_error": 0.3},
        {"wait_ns_max": seconds(1)},
        {"programs": 20},
    ],
)
def test_whatever_the_clients_are_like(changes: dict[str, object]) -> None:
    made = scenario(**changes)
    outcome = run_arm(parse_arm("agentsched"), made, seed=2)
    check(outcome, made)
    assert len(outcome.runs) == (made.programs or len(made.plans))


def test_waits_of_those_that_continue_are_told_apart() -> None:
    """Newcomers wait for room; that somebody who was served waits as long is another matter."""
    made = scenario()
    outcome = run_arm(parse_arm("agentsched"), made, seed=1)
    talks = sum(len(run.plan.conversations) for run in outcome.runs)
    alone = {plan.program: 1.0 for plan in made.plans}
    row = row_of("agentsched", 1, outcome, alone_s=alone)
    assert row.continuing_wait_s is not None
    assert row.continuing_wait_s.count == row.calls - talks
    assert row.continuing_wait_s.max < row.first_token_wait_s.max  # of a newcomer, in this burst


def test_a_program_that_ends_with_its_sub_agent_ends_once() -> None:
    """Counted twice it would take the place of another one, whose last calls nobody played."""
    made = plans()
    grown = []
    for main, other in zip(made[:4], made[4:], strict=True):
        helper = replace(
            other.main,
            parent=main.main.conversation,
            parent_call=len(main.main.calls) - 1,
            joins=True,
        )
        grown.append(replace(main, children=(helper,)))
    both = scenario(plans=[*grown, *made[4:]], engines=2)
    check(run_arm(parse_arm("agentsched"), both, seed=1), both)


def test_engines_share_the_work_and_may_die() -> None:
    made = scenario(engines=3, outages=[outage("0@1+4"), outage("1@2.5+3")])
    outcome = run_arm(parse_arm("agentsched"), made, seed=1)
    check(outcome, made)
    assert outcome.tally.failed > 0


def test_a_tier_below_saves_what_was_evicted() -> None:
    small = scenario(blocks=190)
    tier = TierConfig(blocks=5_000, tokens_per_second=1e6)
    tiered = replace(small, engines=[replace(small.engines[0], tier=tier)])
    direct = parse_arm("direct")
    without, beside = (run_arm(direct, s, seed=1) for s in (small, tiered))
    assert without.tally.again_tokens > 4 * beside.tally.again_tokens
    assert without.makespan_ns > beside.makespan_ns


def test_an_unlimited_cache_computes_nothing_again() -> None:
    outcome = run_arm(parse_arm("unlimited"), scenario(blocks=190), seed=1)
    assert outcome.tally.again_tokens == 0


def test_alone_is_the_fastest() -> None:
    made = scenario()
    quiet = alone(made)
    for run in run_arm(parse_arm("direct"), made, seed=1).runs:
        assert run.ended_at is not None
        # Another program's shared prompt may be in the cache, which alone it is not.
        assert (run.ended_at - run.started_at) / SECOND > 0.8 * quiet[run.plan.program]


class Broken(Fcfs):
    """An order that cannot rank."""

    def rank(self, step: StepView, world: World, *, now: Instant) -> tuple[float, ...]:
        raise RuntimeError("cannot rank")


def broken() -> Scheduler:
    policies = build_policies(SchedulerConfig(profile="agentsched"))
    return Scheduler(policies=replace(policies, order=Broken()), limits=Limits())


@pytest.mark.parametrize("faults", [Faults(), Faults(restarts=(restart("4+1"),))])
def test_a_policy_that_failed_gives_no_result(faults: Faults) -> None:
    host = SimHost(broken(), engines=scenario().engines, renew=broken)
    with pytest.raises(PolicyError, match=r"order\.rank \d+x.*cannot rank"):
        host.run(starts_of(scenario(), seed=1), faults=faults)


def test_a_retry_says_what_it_repeats() -> None:
    """Clients send the same request again, by which the proxy knows it: it keeps its place."""
    entries: list[JournalEntry] = []
    limits = Limits(wait_ns_max=seconds(1), ready_steps_max=2)
    host = SimHost(
        build_scheduler(SchedulerConfig(profile="agentsched", limits=limits)),
        engines=scenario(blocks=190).engines,
        on_turn=entries.append,
    )
    host.run(starts_of(scenario(blocks=190), seed=1))
    arrived = [e.event for e in entries if isinstance(e.event, StepArrived)]
    refused = {c.step for e in entries for c in e.commands if isinstance(c, Reject)}
    assert refused
    assert {event.retries for event in arrived if event.retries is not None} == refused


@pytest.mark.parametrize(("arm", "is_shown"), [("concur", True), ("agentsched", False)])
def test_a_policy_that_reads_gauges_is_shown_them_as_the_proxy_is(arm: str, is_shown: bool) -> None:
    """Without them CONCUR took prompts under way for use, and was half as fast as live."""
    entries: list[JournalEntry] = []
    made = scenario(blocks=190)
    run_arm(parse_arm(arm), made, seed=1, on_turn=entries.append)
    shown = [
        entry.now
        for entry in entries
        if isinstance(entry.event, EngineReported) and entry.event.load.kv_usage is not None
    ]
    assert shown == ([*range(seconds(2), entries[-1].now + 1, seconds(2))] if is_shown else [])


def journal(made: Scenario, arm: str = "agentsched") -> bytes:
    lines: list[bytes] = []
    chosen = parse_arm(arm)
    limits = Limits(wait_ns_max=made.wait_ns_max)
    host = SimHost(
        build_scheduler(SchedulerConfig(profile=chosen.profile, limits=limits)),
        engines=made.engines,
        on_turn=lambda entry: lines.append(encode(entry)),
    )
    host.run(starts_of(made, seed=1))
    return b"".join(lines)


def test_the_same_seed_gives_the_same_journal() -> None:
    assert journal(scenario(engines=2)) == journal(scenario(engines=2))


@pytest.mark.slow
def test_hashing_does_not_matter() -> None:
    code = (
        f"import importlib.util as u, hashlib; s = u.spec_from_file_location('t', {__file__!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "print(hashlib.sha256(m.journal(m.scenario(engines=2))).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=100,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_books_hold_all_the_way() -> None:
    made = scenario(engines=2, blocks=190)
    scheduler = build_scheduler(SchedulerConfig(profile="agentsched"))
    host = SimHost(scheduler, engines=made.engines, on_turn=lambda _: scheduler.check())
    host.run(starts_of(made, seed=1))
    assert scheduler.policy_errors == {}


def test_more_programs_than_plans_are_told_apart() -> None:
    starts = starts_of(scenario(programs=20), seed=1)
    assert len({(start.plan.program, start.copy) for start in starts}) == 20
    assert starts_of(scenario(programs=20), seed=1) == starts
    assert starts_of(scenario(programs=20), seed=2) != starts


def test_arms_are_read() -> None:
    arm = parse_arm("agentsched,admit.patience=4,order=fcfs")
    assert arm.profile == "agentsched"
    assert arm.choices["admit"].params == {"patience": 4}
    assert arm.choices["admit"].name == "working-set"
    assert arm.choices["order"].name == "fcfs"
    assert parse_arm("unlimited").is_unlimited


@pytest.mark.parametrize("text", ["agentsched,patience=4", "agentsched,admit", "nothing-like-it"])
def test_arms_that_make_no_sense(text: str) -> None:
    from agentsched.model import AgentschedError

    with pytest.raises(AgentschedError):
        parse_arm(text)


def test_outages_are_read() -> None:
    found = outage("1@2.5+3")
    assert (found.engine, found.at, found.back_at) == (1, Instant(2_500_000_000), 5_500_000_000)
    with pytest.raises(ConfigError, match="ENGINE@START"):
        outage("soon")


def test_a_closed_loop_has_so_many_programs_at_a_time() -> None:
    made = scenario(arrivals=parse_arrivals("closed:3"))
    outcome = run_arm(parse_arm("agentsched"), made, seed=1)
    check(outcome, made)
    edges: list[tuple[Instant, int]] = []
    for run in outcome.runs:
        assert run.ended_at is not None
        edges += [(run.started_at, 1), (run.ended_at, -1)]
    together = most = 0
    for _, change in sorted(edges):
        together += change
        most = max(most, together)
    assert most == 3
    # The room of one that ended is taken at once, by the one that has waited longest.
    ends = sorted(run.ended_at for run in outcome.runs if run.ended_at is not None)
    starts = [run.started_at for run in outcome.runs]
    assert starts == sorted(starts)
    assert starts[:3] == [Instant(0)] * 3
    assert starts[3:] == ends[: len(starts) - 3]
