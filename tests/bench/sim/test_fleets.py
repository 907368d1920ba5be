"""Fleets that are not all alike, engines that keep prefixes, several tenants and models."""

from __future__ import annotations

from dataclasses import replace

from agentsched.model import EngineId, Instant
from agentsched_bench.engine.cost import CPU_2CORE, preset
from agentsched_bench.engine.model import EngineModel
from agentsched_bench.engine.requests import EngineConfig, Generation
from agentsched_bench.engine.tokens import Run, RunChain
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Scenario, alone, parse_arm, run_arm
from agentsched_bench.sim.engines import EngineTraits, SimEngine
from agentsched_bench.sim.results import row_of
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs


def engine(blocks: int = 240) -> EngineConfig:
    config = EngineConfig.from_preset(preset("cpu-2core"))
    return replace(config, blocks=blocks, max_model_len=(blocks - 1) * config.block_size)


def scenario(*engines: EngineConfig, traits: list[EngineTraits] | None = None) -> Scenario:
    rows = list(generate(programs=12, seed=3, interarrival_s=1.0, steps_max=5))
    shape = ShapeOptions(scale_tokens=4, steps_max=5, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    return Scenario(
        plans=plans, engines=engines, traits=traits or [], arrivals=parse_arrivals("burst:3/s")
    )


def generation(name: str, chain: RunChain, *, output: int = 1) -> Generation:
    return Generation(
        id=name, chain=chain, prompt_tokens=chain.tokens - output, output_tokens=output
    )


def run_all(model: EngineModel, at: int = 0) -> None:
    now = Instant(at)
    while len(model):
        now = model.run_until(now=now, until=Instant(now + 10**12)).at
        model.check()


def test_what_is_pinned_stays_until_room_is_needed() -> None:
    model = EngineModel(replace(engine(blocks=41), max_model_len=1_280))
    kept = RunChain([Run(content=1, tokens=640)], block_size=32)
    other = RunChain([Run(content=2, tokens=640)], block_size=32)
    third = RunChain([Run(content=3, tokens=320)], block_size=32)
    model.add(generation("kept", kept), now=Instant(0))
    run_all(model)
    assert model.pin("pin", kept.hashes(20), tokens=640) > 500
    for name, chain in (("other", other), ("third", third)):
        model.add(generation(name, chain), now=Instant(0))
        run_all(model)
    # Without the pin the oldest content would have gone for the third.
    assert model.cache.resident(kept.hashes(20)[15])
    large = RunChain([Run(content=4, tokens=1_248)], block_size=32)
    model.add(generation("large", large), now=Instant(0))
    run_all(model)
    assert not model.cache.resident(kept.hashes(20)[15])
    assert not model.unpin("pin"), "it had given way"


def test_a_pinning_policy_pins_where_engines_can() -> None:
    able = scenario(engine(), traits=[EngineTraits(pins=True)])
    assert run_arm(parse_arm("continuum"), able, seed=1).tally.pins > 0
    assert run_arm(parse_arm("continuum"), scenario(engine()), seed=1).tally.pins == 0


def test_unlike_engines_share_unlike_loads() -> None:
    slow = replace(engine(), cost=CPU_2CORE.slower(4))
    made = scenario(slow, engine(), engine(480))
    outcome = run_arm(parse_arm("agentsched"), made, seed=1)
    assert all(run.ended_at is not None and not run.is_failed for run in outcome.runs)
    assert outcome.engines == 3


def test_a_program_is_served_by_engines_of_its_model() -> None:
    traits = [EngineTraits(models=("small",)), EngineTraits(models=("large",))]
    outcome = run_arm(parse_arm("agentsched"), scenario(engine(), engine(), traits=traits), seed=1)
    assert {run.model for run in outcome.runs} == {"small", "large"}
    assert not any(run.is_failed for run in outcome.runs)


def test_an_engine_that_was_lost_has_preempted_and_computed_what_it_had() -> None:
    config = engine(blocks=21)
    one = SimEngine(EngineId("e0"), config)
    for number in range(3):
        chain = RunChain([Run(content=number, tokens=600)], block_size=config.block_size)
        one.add(generation(f"g{number}", chain, output=400), now=Instant(0))
    while one.advance(until=Instant(10**15)) is not None:
        pass
    before = one.preemptions, one.busy_ns
    assert min(before) > 0

    one.lose()

    assert (one.preemptions, one.busy_ns) == before
    assert one.look().load.preemptions == 0, "what the proxy is told begins anew, as in vLLM"


def test_tenants_have_rows_of_their_own() -> None:
    made = replace(scenario(engine()), tenants={"heavy": 3.0, "light": 1.0})
    row = row_of(
        "agentsched", 1, run_arm(parse_arm("agentsched"), made, seed=1), alone_s=alone(made)
    )
    assert set(row.tenants) == {"heavy", "light"}
    assert sum(tenant.programs for tenant in row.tenants.values()) == 12
    assert row.jct_of_bound >= 1
    assert row.computed_of_bound >= 1


def test_a_tenant_whose_programs_all_gave_up_has_a_row_and_nobody_beats_the_bound() -> None:
    made = replace(scenario(engine()), tenants={"heavy": 3.0, "light": 1.0})
    outcome = run_arm(parse_arm("agentsched"), made, seed=1)
    for run in outcome.runs:
        run.is_failed = run.tenant == "light"

    row = row_of("agentsched", 1, outcome, alone_s=alone(made))

    assert set(row.tenants) == {"heavy", "light"}
    light = row.tenants["light"]
    assert (light.programs, light.jct_mean_s, light.in_time) == (0, 0.0, 0.0)
    assert row.tenants["heavy"].programs == row.programs > 0
    assert row.computed_of_bound == row.makespan_of_bound == 0.0


def test_what_a_program_said_is_forgotten_when_it_is_over() -> None:
    outcome = run_arm(parse_arm("agentsched"), scenario(engine()), seed=1)
    assert not any(run.talks for run in outcome.runs)
