"""A scenario in the simulator is the scenario: its loops, tenants, engines and losses."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from agentsched.model import (
    ConfigError,
    EngineLost,
    EngineReported,
    StepArrived,
    StepFinished,
    TenantConfigured,
)
from agentsched_bench.compare.arms import parse_side
from agentsched_bench.compare.cli import new_result
from agentsched_bench.compare.fleet import engines_of, faults_of
from agentsched_bench.compare.load import Load, make_load
from agentsched_bench.compare.results import Run
from agentsched_bench.compare.scenario import Scenario, load_scenario
from agentsched_bench.compare.simulated import (
    alone_seconds,
    journal_of,
    simulate_run,
    simulated_sides,
)
from agentsched_bench.workload.shape import Piece

SHIPPED = sorted((Path(__file__).parents[3] / "bench/scenarios").glob("*.toml"))


def simulated(path: Path, *changes: str, arm: str = "agentsched") -> tuple[Run, Load, Scenario]:
    scenario = load_scenario(path, changes=changes)
    load = make_load(scenario.workload, seed=0, beside=path.parent)
    side = parse_side(arm, engine=scenario.engine)
    run = simulate_run(side, load, scenario, repeat=0, on_call=lambda _done: None)
    return run, load, scenario


def test_a_closed_loop_keeps_so_many_running(small: Path) -> None:
    run, load, _ = simulated(
        small,
        'workload.arrivals={ process = "closed", concurrency = 2 }',
        "workload.programs=7",
    )

    assert load.pools == {"main": 2}
    edges: list[tuple[float, int]] = []
    for program in run.programs:
        assert program.jct_s is not None
        edges += [(program.started_s, 1), (program.started_s + program.jct_s, -1)]
    # Floats of one instant: an end comes before the start that it made room for.
    rounded = sorted((round(at, 6), change) for at, change in edges)
    together = list(itertools.accumulate(change for _, change in rounded))
    assert len(run.programs) == 7
    assert max(together) == 2
    assert {program.outcome for program in run.programs} == {"completed"}


def test_what_was_made_smaller_is_noted(small: Path) -> None:
    def notes(*changes: str) -> list[str]:
        scenario = load_scenario(small, changes=changes)
        load = make_load(scenario.workload, seed=0, beside=small.parent)
        sides = [parse_side("direct", engine=scenario.engine)]
        return new_result(scenario, sides, [load], how="simulated", alone_s={}).notes

    assert notes() == [
        "The load is not as recorded: tokens / 8, pauses / 2 (of at most 2 s), at most 3 steps, "
        "contexts up to 7,936 tokens. --set workload.scale_tokens=1 and so on change that."
    ]
    whole = ("workload.scale_tokens=1", "workload.scale_time=1")
    assert notes(*whole)[0].startswith("The load is not as recorded: pauses of at most 2 s, at")


@pytest.mark.parametrize(("how", "is_noted"), [("live", True), ("simulated", False)])
def test_slow_spells_that_nothing_live_has_are_noted(how: str, is_noted: bool, small: Path) -> None:
    scenario = load_scenario(small, changes=('engine.slowdowns=["0@1+1x4"]',))
    load = make_load(scenario.workload, seed=0, beside=small.parent)
    sides = [parse_side("direct", engine=scenario.engine)]

    made = new_result(scenario, sides, [load], how=how, alone_s={})

    assert ("No engine was slow: `slowdowns` are the simulator's alone." in made.notes) is is_noted


def test_programs_that_are_left_out_are_noted(small: Path) -> None:
    scenario = load_scenario(small, changes=("workload.programs=7", "workload.scale_tokens=8"))
    longest = max(plan.main.calls[0].prompt_tokens for plan in load_of(scenario, small).plans)
    fewer = scenario.workload.model_copy(update={"context_tokens_max": longest - 1})
    scenario = scenario.model_copy(update={"workload": fewer})
    load = load_of(scenario, small)
    sides = [parse_side("direct", engine=scenario.engine)]
    noted = new_result(scenario, sides, [load], how="simulated", alone_s={}).notes[-1]
    assert noted == (
        f"{7 - len(load.plans)} of 7 programs are left out: their first call is longer than "
        f"{longest - 1:,} tokens (workload.context_tokens_max)."
    )
    assert 0 < len(load.plans) < 7


def load_of(scenario: Scenario, small: Path) -> Load:
    return make_load(scenario.workload, seed=0, beside=small.parent)


def test_nobody_is_compared_with_the_time_alone_of_a_program_of_another_repeat(
    small: Path,
) -> None:
    chat = '[{ traffic = "chat", programs = 8, arrivals = { process = "poisson", rate = 4 } }]'
    scenario = load_scenario(small, changes=[f"workload.background={chat}"])
    loads = [make_load(scenario.workload, seed=n, beside=small.parent) for n in range(2)]
    found = alone_seconds(loads, scenario.engine)

    assert alone_seconds(loads[1:], scenario.engine).items() <= found.items()
    side = parse_side("direct", engine=scenario.engine)
    run = simulate_run(side, loads[1], scenario, repeat=1, on_call=lambda _done: None)
    assert min((p.jct_s or 0.0) / found[p.program] for p in run.programs) >= 1 - 1e-9
    # Nor is it silently, should a name ever stand for two programs.
    last = loads[0].plans[-1]
    other = replace(last, main=replace(last.main, calls=2 * last.main.calls))
    with pytest.raises(ConfigError, match="another program in another repeat"):
        alone_seconds([loads[0], replace(loads[1], plans=[other])], scenario.engine)


def test_what_was_written_anew_is_not_computed_again(small: Path) -> None:
    """A conversation that was compacted: little of its prompt had been there before."""
    scenario = load_scenario(small)
    load = make_load(scenario.workload, seed=0, beside=small.parent)
    plans = []
    for plan in load.plans:
        first, second, *rest = plan.main.calls
        kept = second.keep_tokens + second.echo_tokens
        fresh = Piece(stream=f"own/{plan.program}/anew", tokens=second.prompt_tokens - 40)
        assert kept > 40
        second = replace(second, keep_tokens=40, echo_tokens=0, pieces=(fresh,))
        plans.append(replace(plan, main=replace(plan.main, calls=(first, second, *rest))))
    load = replace(load, plans=plans)
    side = parse_side("unlimited", engine=scenario.engine)

    run = simulate_run(side, load, scenario, repeat=0, on_call=lambda _done: None)

    planned = {
        (plan.program, index): call.keep_tokens + call.echo_tokens
        for plan in load.plans
        for index, call in enumerate(plan.main.calls)
    }
    assert {(call.program, call.step): call.known_tokens for call in run.calls} == planned
    # Whatever is computed again then is the rest of a block.
    assert all(call.known_tokens - (call.cached_tokens or 0) <= 32 for call in run.calls)


def test_tenants_and_their_weights_are_the_schedulers(small: Path) -> None:
    tenants = 'workload.tenants=[{ name = "a", weight = 4.0 }, { name = "b", load = 2.0 }]'
    run, load, scenario = simulated(small, tenants, "workload.programs=8")

    assert scenario.weights == {"a": 4.0}
    assert {program.tenant for program in run.programs} == {"a", "b"}
    events = [entry.event for entry in journal_of("agentsched", load, scenario)]
    told = [event for event in events if isinstance(event, TenantConfigured)]
    assert [(event.tenant, event.weight) for event in told] == [("a", 4.0)]
    arrived = {event.tenant for event in events if isinstance(event, StepArrived)}
    assert arrived == {"a", "b"}


@pytest.mark.parametrize(("ids", "tells"), [("none", False), ("session", False), ("dynamo", True)])
def test_programs_end_as_those_of_a_replay_do(ids: str, tells: bool, small: Path) -> None:
    """Answers of an exact length end with `length`; only some conventions say that it was all."""
    scenario = load_scenario(small)
    load = make_load(scenario.workload, seed=0, beside=small.parent)

    events = [entry.event for entry in journal_of(f"agentsched@{ids}", load, scenario)]

    assert any(isinstance(event, StepArrived) and event.is_last for event in events) is tells
    ends = [event for event in events if isinstance(event, StepFinished)]
    assert len(ends) == load.calls
    assert any(event.is_last_word for event in ends) is tells


def test_who_sends_no_ids_does_not_say_that_it_is_over(small: Path) -> None:
    """Chats beside agents kept their places under CONCUR live, and left them in the model."""
    chats = (
        'workload.background=[{ traffic = "chat", programs = 3, '
        'arrivals = { process = "poisson", rate = 1.0 } }]'
    )
    scenario = load_scenario(small, changes=[chats])
    load = make_load(scenario.workload, seed=0, beside=small.parent)
    assert len(load.without_ids) == 3

    events = [entry.event for entry in journal_of("agentsched@dynamo", load, scenario)]

    arrived = [event for event in events if isinstance(event, StepArrived)]
    assert sum(event.is_last for event in arrived) == len(load.plans) - 3
    ends = [event for event in events if isinstance(event, StepFinished)]
    assert sum(event.is_last_word for event in ends) == len(load.plans) - 3


@pytest.mark.parametrize(
    ("arm", "told", "tells"),
    [
        ("agentsched", False, False),
        ("agentsched@dynamo", False, False),
        ("agentsched", True, True),
        ("agentsched@dynamo", True, True),
        ("direct", True, False),
    ],
)
def test_tools_are_told_where_a_replay_tells_them(
    arm: str, told: bool, tells: bool, small: Path
) -> None:
    """Beside the answers, whose lengths are exact; whoever says when programs end says no more."""
    scenario = load_scenario(small, changes=[f"measure.tells_tools={str(told).lower()}"])
    load = make_load(scenario.workload, seed=0, beside=small.parent)

    events = [entry.event for entry in journal_of(arm, load, scenario)]

    ends = [event for event in events if isinstance(event, StepFinished)]
    named = sum(bool(event.tool_calls) for event in ends)
    assert named == (load.calls - len(load.plans) if tells else 0)
    brought = any(isinstance(event, StepArrived) and event.answers for event in events)
    assert brought is tells


def test_a_client_is_as_patient_as_the_file_says(small: Path) -> None:
    """No engine is up for a minute, and the bound on waits is a second: a proxy says 429."""
    gone = ('engine.outages=["0@0.1+60"]', "proxy.max_wait=1s")

    run, _, _ = simulated(small, *gone, "measure.attempts=3", arm="fcfs")

    assert {program.outcome for program in run.programs} == {"failed"}
    assert max(call.attempts for call in run.calls) == 3
    # A real agent is as patient as its own library, whatever a replay is.
    scenario = load_scenario(small, changes=[*gone, "measure.attempts=3"])
    load = make_load(scenario.workload, seed=0, beside=small.parent)
    side = replace(parse_side("fcfs", engine=scenario.engine), client="mini-swe-agent")
    run = simulate_run(side, load, scenario, repeat=0, on_call=lambda _done: None)
    assert max(call.attempts for call in run.calls) > 3


def test_an_agents_last_answer_tells(small: Path) -> None:
    """Who runs a real agent gets its answers: tools are called, and at last none."""
    scenario = load_scenario(small, changes=["measure.client=mini-swe-agent"])
    load = make_load(scenario.workload, seed=0, beside=small.parent)

    events = [entry.event for entry in journal_of("agentsched", load, scenario)]

    ends = [event for event in events if isinstance(event, StepFinished)]
    assert sum(event.is_last_word for event in ends) == len(load.plans)
    assert sum(bool(event.tool_calls) for event in ends) == load.calls - len(load.plans)


def test_an_engine_with_our_plugin_can_pin(small: Path) -> None:
    scenario = load_scenario(small)
    load = make_load(scenario.workload, seed=0, beside=small.parent)

    for arm, pins in (("agentsched", False), ("plugin:agentsched", True)):
        events = [entry.event for entry in journal_of(arm, load, scenario)]
        told = [event.capabilities for event in events if isinstance(event, EngineReported)]
        assert [each.pins for each in told] == [pins]


def test_what_is_not_installed_can_be_simulated_all_the_same(small: Path) -> None:
    scenario = load_scenario(small)
    texts = ("plugin:agentsched", "unlimited", "plugin", "vllm-router")
    sides = [parse_side(text, engine=scenario.engine) for text in texts]

    missing = [side.missing for side in simulated_sides(sides)]

    assert missing == ["", "", "plugin has no model", "vllm-router has no model"]


def test_weights_may_be_kept_from_proxies(small: Path) -> None:
    tenants = 'workload.tenants=[{ name = "a", weight = 4.0 }]'
    scenario = load_scenario(small, changes=[tenants, "proxy.tenant_weights=false"])

    assert scenario.weights == {}


def test_a_mixed_fleet_has_its_own_sizes(small: Path) -> None:
    fleet = 'engine.fleet=["cpu-2core,blocks=300", "2xcpu-2core,blocks=500,slow=3,tier=64@9000"]'
    scenario = load_scenario(small, changes=[fleet])

    engines = engines_of(scenario.engine)

    assert [engine.blocks for engine in engines] == [300, 500, 500]
    assert [engine.tier is not None for engine in engines] == [False, True, True]
    assert engines[1].cost.base_ns == 3 * engines[0].cost.base_ns
    assert all(engine.max_model_len == 8192 for engine in engines)
    run, _, _ = simulated(small, fleet, "workload.programs=6")
    assert len({call.engine for call in run.calls}) > 1
    assert {program.outcome for program in run.programs} == {"completed"}


def test_engines_are_lost_and_slow_as_the_file_says(small: Path) -> None:
    run, load, scenario = simulated(
        small, "engine.count=2", 'engine.outages=["1@0.5+1"]', 'engine.slowdowns=["0@0+2x3"]'
    )

    assert {program.outcome for program in run.programs} == {"completed"}
    events = [entry.event for entry in journal_of("agentsched", load, scenario)]
    assert sum(isinstance(event, EngineLost) for event in events) == 1


def test_a_loss_of_an_engine_that_is_not_there_is_refused(small: Path) -> None:
    scenario = load_scenario(small, changes=['engine.outages=["1@0.5+1"]'])

    with pytest.raises(ConfigError, match="engines 0 to 0"):
        faults_of(scenario.engine)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", [None, "full"])
def test_the_engines_of_every_shipped_scenario_have_a_model(
    path: Path, variant: str | None
) -> None:
    scenario = load_scenario(path, variant=variant)

    assert len(engines_of(scenario.engine)) >= scenario.engine.count
    faults_of(scenario.engine)


def test_a_call_that_no_engine_takes_is_named_with_what_to_change(small: Path) -> None:
    """Before anything runs, live comparisons included: their slowdowns are over the model's."""
    scenario = load_scenario(small, changes=["engine.max_model_len=128"])
    load = make_load(scenario.workload, seed=0, beside=small.parent)
    side = parse_side("direct", engine=scenario.engine)
    said = r"a call of [\d,]+ tokens .* takes 128: change workload.context_tokens_max"

    with pytest.raises(ConfigError, match=said):
        alone_seconds([load], scenario.engine)
    with pytest.raises(ConfigError, match=said):
        simulate_run(side, load, scenario, repeat=0, on_call=lambda _done: None)
