"""Headlines are judged by what was simulated: ratios, programs in time, parts taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from agentsched.model import ConfigError
from agentsched_bench.sim.arms import parse_arm
from agentsched_bench.sim.results import SimRow, TenantRow
from agentsched_bench.sim.specs import fleet_of
from agentsched_bench.study.__main__ import (
    capacity_ratio,
    go_on,
    in_time,
    print_study,
    run,
    verdict,
)
from agentsched_bench.study.setups import LOADS, Bound, Carried, Cell, Setup, Study, read_setups
from agentsched_bench.workload.generate import sample_path
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
        assert set(LOADS) <= set(setup.loads)
        assert all(arrivals.value > 0 for arrivals in setup.loads.values())
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


def by_rate(scores: dict[str, tuple[float, float, float, float]]) -> tuple[Study, Setup]:
    """A study of a capacity: mean completion times of arms at 1, 2, 3 and 6 programs a second."""
    setup = msgspec.structs.replace(
        SETUP, more_rates=(6.0,), capacity=Bound(metric="jct_mean", most=10.0), ratio=(1.2, 4.0)
    )
    cells = [
        Cell(system="saga", load=load, row=row(arm, jct_s))
        for arm, times in scores.items()
        for load, jct_s in zip(setup.loads, times, strict=True)
    ]
    made = Study(
        command=[], programs=4, steps=2, block_size=64, seeds=[1], setups=[setup], cells=cells
    )
    return made, setup


def test_a_capacity_lies_on_the_line_between_two_rates() -> None:
    made, setup = by_rate(
        {
            "passthrough": (5.0, 15.0, 30.0, 60.0),
            "saga": (5.0, 8.0, 9.0, 12.0),
            "agentsched": (4.0, 4.0, 4.0, 9.0),
            "unlimited": (20.0, 30.0, 40.0, 50.0),
        }
    )

    assert made.carried(setup, "passthrough") == Carried(rate=1.5, is_limit=True)
    assert made.carried(setup, "saga") == Carried(rate=4.0, is_limit=True)
    assert made.carried(setup, "agentsched") == Carried(rate=6.0, is_limit=False)
    assert made.carried(setup, "unlimited") == Carried(rate=0.5, is_limit=True)
    assert made.carried(setup, "saga,pin=never") is None
    assert capacity_ratio(made, setup, "saga") == pytest.approx(4.0 / 1.5)
    assert "within the claimed range (2.67x)" in verdict(made, setup)
    console = Console(record=True, width=160)
    print_study(made, console=console)
    assert "over 6/s, 4.00x" in console.export_text()


def test_a_claim_of_another_kind_has_no_capacity() -> None:
    made = study(baseline=10.0, theirs=8.0)
    assert made.carried(SETUP, "saga") is None
    assert capacity_ratio(made, SETUP, "saga") is None


def test_a_rate_at_which_programs_gave_up_is_not_carried() -> None:
    """Those that did not may be as fast as they like; and where nobody did, nobody was slow."""
    made, setup = by_rate({"passthrough": (5.0, 15.0, 30.0, 60.0), "saga": (5.0, 0.0, 4.0, 0.0)})
    for cell in made.cells:
        if cell.row.arm == "saga" and cell.load in ("busy", "6/s"):
            cell.row.programs, cell.row.failed = 0, 4

    assert made.carried(setup, "saga") == Carried(rate=1.0, is_limit=True)
    assert capacity_ratio(made, setup, "saga") == pytest.approx(1 / 1.5)
    assert verdict(made, setup).endswith("; programs gave up when busy")
    # At the lowest rate: it carries none of them, and nothing can be said over that.
    made.cells[0].row.failed = 1
    assert made.carried(setup, "passthrough") == Carried(rate=0.0, is_limit=True)
    assert capacity_ratio(made, setup, "saga") is None


def test_who_gave_up_does_not_improve_an_arms_number() -> None:
    made = study(baseline=10.0, theirs=2.0)
    theirs = [cell for cell in made.cells if cell.row.arm == "saga"]
    theirs[-1].row.failed = 1  # of one seed

    console = Console(record=True, width=160)
    print_study(made, console=console)

    table = console.export_text()
    line = next(
        line for line in table.splitlines() if line.split()[:3] == ["saga", "jct_mean", "saga"]
    )
    assert line.split()[3:] == ["5.00", "5.00", "gave", "up"]
    assert "; programs gave up when thrash" in table
    for cell in theirs:
        cell.row.failed = 1
    assert verdict(made, SETUP) == "cannot be said: programs gave up when calm, busy, thrash"


def test_seeds_that_are_not_asked_for_are_in_no_mean() -> None:
    made = study(baseline=10.0, theirs=8.0)
    for cell in made.cells:
        if cell.row.seed == 2:
            cell.row.jct_s = spread([100.0])
            cell.row.in_time = 0.0
    made.seeds = [1]

    assert made.score(SETUP, "busy", "saga") == 8.0
    assert in_time(made, SETUP, "busy", "saga") == 0.5


@pytest.mark.parametrize(
    "changed", [{"steps": 3}, {"version": "2"}, {"traces": {"t.jsonl.gz": "b"}}]
)
def test_what_another_study_has_played_is_not_taken_over(changed: dict[str, Any]) -> None:
    old, path = study(baseline=10.0, theirs=8.0), Path("study.json")
    now = {"version": "1", "traces": {"t.jsonl.gz": "a"}}
    fresh = msgspec.structs.replace(study(), **now)
    go_on(fresh, old, path)
    assert fresh.cells == old.cells, "an older file says neither"
    go_on(fresh, msgspec.structs.replace(old, **now), path)

    other = msgspec.structs.replace(old, **(now | changed))
    with pytest.raises(ConfigError, match=r"study\.json is of another study"):
        go_on(fresh, other, path)


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


@pytest.mark.slow
def test_what_was_played_is_written_as_a_whole(tmp_path: Path) -> None:
    """Hours go on from this file: whoever writes into it may be killed half-way."""
    sample = sample_path()
    setup = msgspec.structs.replace(
        SETUP, profile="fcfs", trace=sample.name, engines=["h100-8b"], tenants="", ablation=()
    )
    made = Study(command=[], programs=4, steps=2, block_size=64, seeds=[1], setups=[setup])
    out, before = tmp_path / "study.json", tmp_path / "before.json"
    out.write_bytes(b"{}")
    before.hardlink_to(out)

    run(made, sample.parent, only=(), out=out)

    assert before.read_bytes() == b"{}"
    assert len(msgspec.json.decode(out.read_bytes(), type=Study).cells) == 3 * len(setup.arms)
