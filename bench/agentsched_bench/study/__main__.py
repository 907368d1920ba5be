"""`python -m agentsched_bench.study TRACES`: published headlines at their set-ups, ours beside.

A set-up (`agentsched_bench.study.setups`) is played at three loads and more under its baseline,
the published profile, the default profile and an unlimited cache. A headline *reproduces* when the
baseline's number over the profile's (or the profile's capacity over the baseline's, where the claim
is about that) reaches the lower end of the claim at some load; below 1 the profile loses. The study
goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from math import inf
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from agentsched.model import ConfigError, seconds
from agentsched_bench.sim.arms import Scenario, alone, parse_arm, run_arm
from agentsched_bench.sim.cli import load
from agentsched_bench.sim.results import row_of
from agentsched_bench.sim.specs import fleet_of
from agentsched_bench.study.setups import LOADS, Cell, Setup, Study, read_setups
from agentsched_bench.whole_file import write_whole
from agentsched_bench.workload.shape import ShapeOptions
from agentsched_bench.workload.trace import sha256_of

#: Differences below this are called none.
_NOISE: Final = 0.05


def scenario_of(
    setup: Setup, load_name: str, traces: Path, *, programs: int, steps: int, block_size: int
) -> Scenario:
    """A set-up at a load."""
    fleet = fleet_of(
        setup.engines,
        block_size=block_size,
        pins=setup.pins,
        warm=setup.warm,
        priority=setup.priority,
        # Sizes are of blocks of 16 tokens; the pool stays the same.
    )
    count = programs * setup.times
    shape = ShapeOptions(
        scale_tokens=1.0,
        scale_time=1.0,
        gap_cap_s=30.0,
        steps_max=steps,
        context_tokens_max=min(one.max_model_len for one in fleet.engines),
    )
    plans, _ = load(traces / setup.trace, shape, sessions=count)
    tenants = dict(part.partition("=")[::2] for part in setup.tenants.split(",") if part)
    return Scenario(
        plans=plans,
        engines=fleet.engines,
        traits=fleet.traits,
        arrivals=setup.loads[load_name],
        programs=count,
        wait_ns_max=seconds(setup.max_wait_s),
        tenants={name: float(share) for name, share in tenants.items()},
    )


def go_on(study: Study, old: Study, path: Path) -> None:
    """Take over what `old` has played. Raises ConfigError if it asked something else."""
    is_same = (old.programs, old.steps, old.block_size) == (
        study.programs,
        study.steps,
        study.block_size,
    )
    # Older files do not say which version and traces they are of.
    is_same = is_same and old.version in ("", study.version)
    known = old.traces.keys() & study.traces.keys()
    if not is_same or any(old.traces[name] != study.traces[name] for name in known):
        raise ConfigError(f"{path} is of another study: choose another file")
    same = {setup.system for setup in study.setups if setup in old.setups}
    study.cells = [cell for cell in old.cells if cell.system in same]
    study.traces = old.traces | study.traces


def run(study: Study, traces: Path, *, only: Sequence[str], out: Path | None) -> None:
    """Play what is missing; the file is written after every set-up and load."""
    done = {(cell.system, cell.load, cell.row.arm, cell.row.seed) for cell in study.cells}
    console = Console(stderr=True)
    for setup in study.setups:
        if only and setup.system not in only:
            continue
        alone_s: dict[str, float] = {}
        for load_name in setup.loads:
            wanted = [
                (arm, seed)
                for seed in study.seeds
                for arm in setup.arms
                if (setup.system, load_name, arm, seed) not in done
            ]
            if not wanted:
                continue
            scenario = scenario_of(
                setup,
                load_name,
                traces,
                programs=study.programs,
                steps=study.steps,
                block_size=study.block_size,
            )
            alone_s = alone_s or alone(scenario)
            for arm, seed in wanted:
                outcome = run_arm(parse_arm(arm), scenario, seed=seed)
                row = row_of(arm, seed, outcome, alone_s=alone_s)
                study.cells.append(Cell(system=setup.system, load=load_name, row=row))
            if out is not None:
                data = msgspec.json.format(msgspec.json.encode(study), indent=1)
                write_whole(out, data + b"\n")
            console.print(f"{setup.system}, {load_name}: done", highlight=False)


def in_time(study: Study, setup: Setup, load_name: str, arm: str, tenant: str = "") -> float | None:
    """The share of programs that took at most twice their time alone, over seeds; of one tenant."""
    rows = study.rows(setup, load_name, arm)
    parts = [row.tenants[tenant] for row in rows if tenant in row.tenants] if tenant else rows
    return sum(part.in_time for part in parts) / len(parts) if parts else None


def verdict(study: Study, setup: Setup) -> str:
    """What is to be said about a headline."""
    ratios = _ratios(study, setup, setup.profile)
    gave_up = _gave_up(study, setup, setup.profile)
    if not ratios and not gave_up:
        return "not run"
    if not ratios and capacity_ratio(study, setup, setup.profile) is None:
        return f"cannot be said: programs gave up when {', '.join(gave_up)}"
    best = _headline(study, setup, setup.profile)
    loses = [name for name, ratio in ratios.items() if ratio < 1 - _NOISE]
    least, most = setup.ratio
    room = _headline(study, setup, setup.unlimited)
    if best > most * (1 + _NOISE):
        text = f"wins by more than claimed ({best:.2f}x): the baseline is weaker than theirs"
    elif best >= max(least, 1 + _NOISE):
        text = f"within the claimed range ({best:.2f}x)"
    elif room < 1 + _NOISE:
        text = f"nothing to win for a cache at these loads ({best:.2f}x; unlimited {room:.2f}x)"
    elif best > 1 + _NOISE:
        text = f"wins, but by less than claimed ({best:.2f}x)"
    else:
        text = f"does not reproduce here ({best:.2f}x at best)"
    text += f"; loses when {', '.join(loses)}" if loses else ""
    return text + (f"; programs gave up when {', '.join(gave_up)}" if gave_up else "")


def capacity_ratio(study: Study, setup: Setup, arm: str) -> float | None:
    """What the arm carries over what the baseline carries; None where the claim is another.

    At least so much where the arm's limit was not reached, at most so much where the baseline's
    was not.
    """
    before, after = study.carried(setup, setup.baseline), study.carried(setup, arm)
    if before is None or after is None or not before.rate:
        return None
    return after.rate / before.rate


def _headline(study: Study, setup: Setup, arm: str) -> float:
    """The number to hold against the claim: of capacities, or the best of the loads."""
    carried = capacity_ratio(study, setup, arm)
    if carried is not None:
        return carried
    return max(_ratios(study, setup, arm).values(), default=1.0)


def _ratios(study: Study, setup: Setup, arm: str, *, metric: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for load_name in LOADS:
        before = study.score(setup, load_name, setup.baseline, metric=metric)
        after = study.score(setup, load_name, arm, metric=metric)
        if before is not None and after and max(before, after) < inf:
            found[load_name] = before / after
    return found


def _gave_up(study: Study, setup: Setup, arm: str) -> list[str]:
    """The loads at which programs gave up, under this arm or the baseline: no number says more."""
    scores = {
        name: [study.score(setup, name, each) for each in (setup.baseline, arm)] for name in LOADS
    }
    return [name for name, (before, after) in scores.items() if inf in (before, after)]


def _details(study: Study, setup: Setup, console: Console) -> None:
    """Where a claim is about more than one number: programs in time, by tenant, and throughput."""
    tenants = ["", *(part.partition("=")[0] for part in setup.tenants.split(",") if part)]
    table = Table(
        box=box.SIMPLE, padding=(0, 1, 0, 0), title=f"{setup.system}: in time; throughput"
    )
    for column in ("arm", "programs", *LOADS):
        table.add_column(column, overflow="fold")
    for arm in setup.arms:
        for tenant in tenants:
            shares = [in_time(study, setup, name, arm, tenant) for name in LOADS]
            cells = ["" if share is None else f"{share:.1%}" for share in shares]
            table.add_row("" if tenant else arm, tenant or "all", *cells)
        faster = _ratios(study, setup, arm, metric="makespan")
        cells = [f"{faster[name]:.2f}x" if name in faster else "" for name in LOADS]
        table.add_row("", "a second, over baseline", *cells)
    console.print(table)


def _carries(study: Study, setup: Setup, arm: str) -> str:
    """An arm's capacity: its own, and over the baseline's."""
    ratio, found = capacity_ratio(study, setup, arm), study.carried(setup, arm)
    if ratio is None or found is None:
        return ""
    return f"{'' if found.is_limit else 'over '}{found.rate:.2g}/s, {ratio:.2f}x"


def print_study(study: Study, *, console: Console) -> None:
    """Baseline over each arm at each load; more than 1 is better than the baseline."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("system", "metric", "arm", *LOADS, "carries"):
        table.add_column(column, overflow="fold")
    for setup in study.setups:
        first = True
        for arm in setup.arms[1:]:
            ratios = _ratios(study, setup, arm)
            told = dict.fromkeys(_gave_up(study, setup, arm), "gave up")
            told |= {name: f"{ratio:.2f}" for name, ratio in ratios.items()}
            cells = [told.get(name, "") for name in LOADS]
            cells.append(_carries(study, setup, arm))
            table.add_row(setup.system if first else "", setup.metric if first else "", arm, *cells)
            first = False
    console.print(table)
    for setup in study.setups:
        console.print(f"{setup.system}: {verdict(study, setup)}", highlight=False)
        console.print(f"  claim: {setup.claim}\n  here: {setup.differs}", highlight=False)
        if setup.ablation and verdict(study, setup) != "not run":
            _details(study, setup, console)


def main(
    traces: Annotated[Path, typer.Argument(help="The folder of the traces.")],
    *,
    only: Annotated[list[str] | None, typer.Option(help="Only these systems.")] = None,
    programs: Annotated[int, typer.Option(min=4, help="Programs of each simulation.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Calls of a conversation at most.")] = 30,
    block_size: Annotated[int, typer.Option(min=16, help="Tokens per block.")] = 64,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "1,2,3",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Kept and resumed here.")] = None,
) -> None:
    """Published headlines at their own set-ups, in the simulator."""
    study = Study(
        command=["python", "-m", "agentsched_bench.study", *sys.argv[1:]],
        programs=programs,
        steps=steps,
        block_size=block_size,
        seeds=[int(seed) for seed in seeds.split(",")],
        setups=read_setups(),
        version=metadata.version("agentsched"),
    )
    wanted = {setup.trace for setup in study.setups if not only or setup.system in only}
    there = (name for name in sorted(wanted) if (traces / name).exists())
    study.traces = {name: sha256_of(traces / name) for name in there}
    if out is not None and out.exists():
        go_on(study, msgspec.json.decode(out.read_bytes(), type=Study), out)
    run(study, traces, only=only or (), out=out)
    print_study(study, console=Console())


if __name__ == "__main__":
    typer.run(main)
