"""Headlines are judged by what was simulated: ratios, programs in time, parts taken away."""

from __future__ import annotations

import msgspec
import pytest
from rich.console import Console

from agentsched_bench.sim.arms import parse_arm
from agentsched_bench.sim.results import SimRow, TenantRow
from agentsched_bench.sim.specs import fleet_of
from agentsched_bench.study.__main__ import (
    LOADS,
    Cell,
    Setup,
    Study,
    in_time,
    print_study,
    read_setups,
    verdict,
)
from agentsched_bench.workload.statistics import spread

SETUP = Setup(
    system="saga",
    claim="1.64x",
    ratio=(1.64, 1.64),
    metric="jct_mean",
    baseline="passthrough",
    profile="saga",
    trace="t.jsonl.gz",
    engines=["cpu-2core"],
    rates=(1.0, 2.0, 3.0),
    differs="everything",
    tenants="heavy=2,light=1",
    ablation=("saga,pin=never",),
)


def row(arm: str, jct_s: float, *, seed: int = 1, share: float = 0.5) -> SimRow:
    none = spread([])
    tenant = TenantRow(programs=2, jct_mean_s=jct_s, slowdown=none, in_time=share / 2)
    return SimRow(
        arm=arm, seed=seed, programs=4, failed=0, calls=8, jct_s=spread([jct_s]), slowdown=none,
        first_token_wait_s=none, held_s=none, prompt_tokens=1, cached_share=0.5, again_tokens=0,
        output_tokens=1, busy_share=0.5, makespan_s=jct_s * 10, forced=0, rejected=0,
        in_time=share, tenants={"heavy": tenant, "light": tenant},
    )  # fmt: skip


def study(**jct_s: float) -> Study:
    names = {"baseline": "passthrough", "theirs": "saga", "ours": "agentsched"}
    names |= {"room": "unlimited", "less": "saga,pin=never"}
    cells = [
        Cell(system="saga", load=load, row=row(names[key], value, seed=seed))
        for key, value in jct_s.items()
        for load in LOADS
        for seed in (1, 2)
    ]
    return Study(
        command=[], programs=4, steps=2, block_size=64, seeds=[1, 2], setups=[SETUP], cells=cells
    )


def test_every_set_up_can_be_played() -> None:
    setups = read_setups()
    assert {"saga", "continuum", "autellix", "kvflow", "thunderagent"} <= {s.system for s in setups}
    for setup in setups:
        assert fleet_of(setup.engines, block_size=64).engines
        for load in LOADS:
            assert setup.arrivals(load).value > 0
        for arm in setup.arms:
            assert parse_arm(arm).text == arm
    saga = next(setup for setup in setups if setup.system == "saga")
    assert all(arm.startswith("saga,") for arm in saga.ablation)


@pytest.mark.parametrize(
    ("theirs", "room", "said"),
    [
        (6.0, 5.0, "within the claimed range"),
        (8.0, 5.0, "wins, but by less"),
        (10.0, 5.0, "does not reproduce here"),
        (12.0, 5.0, "loses when calm, busy, thrash"),
        (10.0, 9.9, "nothing to win"),
        (3.0, 2.5, "wins by more than claimed"),
    ],
)
def test_a_verdict_says_what_was_found(theirs: float, room: float, said: str) -> None:
    made = study(baseline=10.0, theirs=theirs, room=room)
    made.setups[0] = msgspec.structs.replace(SETUP, ratio=(1.64, 1.7))
    assert said in verdict(made, made.setups[0])


def test_what_was_not_played_has_no_verdict() -> None:
    assert verdict(study(), SETUP) == "not run"


def test_programs_in_time_are_told_by_tenant() -> None:
    made = study(baseline=10.0, theirs=8.0, less=9.0)
    assert in_time(made, SETUP, "busy", "saga") == 0.5
    assert in_time(made, SETUP, "busy", "saga", "light") == 0.25
    assert in_time(made, SETUP, "busy", "agentsched") is None


def test_the_ablation_is_shown_with_throughput() -> None:
    console = Console(record=True, width=160)
    print_study(study(baseline=10.0, theirs=8.0, less=9.0), console=console)
    text = console.export_text()
    assert "saga,pin=never" in text
    assert "1.25x" in text  # as many programs in 80 s as in 100
    assert "50.0%" in text
