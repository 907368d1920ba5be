"""`python -m agentsched_bench.fidelity SCENARIO|RESULT`: an engine measured and predicted.

One engine process does all of it: it is probed and fitted, serves every arm of the scenario, and is
probed again. Then the same load is simulated with what was fitted, and once more with costs that
are fitted to the baseline's own calls. See `agentsched_bench.fidelity.report`. A result of
`agentsched compare` is measured already, and only predicted (`agentsched_bench.fidelity.existing`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from agentsched.model import ConfigError, EngineError
from agentsched_bench.calibrate.cli import fit_engine, probe
from agentsched_bench.calibrate.fit import fit_costs
from agentsched_bench.calibrate.model_file import ModelFile, of_config, read_model, write_model
from agentsched_bench.calibrate.probe import sizes_of
from agentsched_bench.compare.arms import Side, sides_of
from agentsched_bench.compare.cli import new_result
from agentsched_bench.compare.load import Load, make_load
from agentsched_bench.compare.results import Run, machine, versions
from agentsched_bench.compare.run import Plan, Store, run_all
from agentsched_bench.compare.scenario import EngineKind, Scenario, load_scenario
from agentsched_bench.compare.show import Estimate, showing
from agentsched_bench.compare.simulated import simulate_run, simulated_sides
from agentsched_bench.compare.stages import Engines, engines_running
from agentsched_bench.fidelity.existing import Measured, fit_to, predict_all, read_measured
from agentsched_bench.fidelity.report import (
    ArmFidelity,
    Fidelity,
    Figures,
    drift_of,
    error,
    figures_of,
    is_order_kept,
    known,
    served_of,
)
from agentsched_bench.live.cli import new_salt
from agentsched_bench.whole_file import refuse_unwritable, write_whole

_METRICS: Final = (
    ("JCT mean s", "jct_mean_s"),
    ("JCT p95 s", "jct_p95_s"),
    ("first mean s", "ttft_mean_s"),
    ("first p95 s", "ttft_p95_s"),
    ("cached", "cached_share"),
)
#: The arms of a scenario that have a model and need no engine of their own.
_ARMS: Final = ("direct", "agentsched")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One comparison of the simulator with an engine."""

    scenario: Scenario
    sides: list[Side]
    loads: list[Load]
    out: Path
    repeats: int
    peers: Path

    @property
    def logs(self) -> Path:
        return self.out.with_suffix(".logs")

    def on(self, engines: Engines, model: Path) -> Scenario:
        """The scenario on engines that run already, modelled by this file."""
        engine = self.scenario.engine.model_copy(
            update={
                "kind": EngineKind.URL,
                "urls": engines.urls,
                "reset_path": engines.reset_path,
                "preset": str(model),
                "blocks": None,
                "block_size": None,
                "fleet": (),
                "outages": (),
                "slowdowns": (),
            }
        )
        return self.scenario.model_copy(update={"engine": engine})


async def _measure(work: _Work, found: Fidelity) -> tuple[Scenario, list[Run]]:
    """Calibrate, serve all arms, and probe again."""
    spec = work.scenario.engine
    room = max(load.tokens_max for load in work.loads)
    async with engines_running(spec, variant="plain", tokens_max=room, logs=work.logs) as engines:
        url = engines.urls[0]
        # What is done for the first time costs more; the probes of one round are enough for that.
        await fit_engine(url, repeats=1)
        fitted = found.probes = await fit_engine(url, repeats=work.repeats)
        model = work.logs / "probes.json"
        write_model(model, fitted)
        scenario = work.on(engines, model)
        result = new_result(scenario, work.sides, work.loads, how="live", alone_s={})
        plan = Plan(
            scenario=scenario,
            sides=work.sides,
            loads=work.loads,
            logs=work.logs,
            peers=work.peers,
            salt=new_salt(),
        )
        store = Store(result, path=None)
        estimate = Estimate([side.name for _, side in plan.order(store)], expected_s=90.0)
        with showing(estimate, is_quiet=False) as show:
            await run_all(plan, store, show)
        config = fitted.config()
        # An engine that died under the load has been measured all the same.
        with contextlib.suppress(EngineError):
            sizes = await sizes_of(url)
            again = await probe(url, config, model=sizes.model, repeats=1)
            found.drift = drift_of(again, config)
        measured = Measured(result=result, scenario=scenario, sides=work.sides, loads=work.loads)
        return scenario, [run for side in work.sides for run in measured.runs(side.name)]


def _refitted(work: _Work, scenario: Scenario, runs: list[Run], probes: ModelFile) -> ModelFile:
    """The engine as the baseline's own calls show it."""
    config = probes.config()
    first = work.sides[0].name
    run = next((run for run in runs if run.arm == first), None)
    if run is None:
        raise EngineError(f"no run of {first} came to its end: there is nothing to fit to")
    load = work.loads[run.repeat]
    fit = fit_costs(served_of(run, load, block_size=config.block_size), config)
    return of_config(
        replace(config, cost=fit.cost),
        source=f"fitted to the calls of {first} in {scenario.name}",
        fit=fit.row,
    )


def _predict(
    work: _Work, scenario: Scenario, runs: list[Run], model: ModelFile, name: str
) -> dict[str, list[Figures]]:
    """The same loads as were measured, as this model has them."""
    path = work.logs / f"{name}.json"
    write_model(path, model)
    engine = scenario.engine.model_copy(update={"preset": str(path)})
    scenario = scenario.model_copy(update={"engine": engine})
    return {
        side.name: [
            figures_of(
                simulate_run(
                    side,
                    work.loads[run.repeat],
                    scenario,
                    repeat=run.repeat,
                    on_call=lambda _done: None,
                )
            )
            for run in runs
            if run.arm == side.name
        ]
        for side in work.sides
    }


def _compare(work: _Work, command: list[str]) -> Fidelity:
    found = Fidelity(
        command=command,
        scenario=work.scenario.model_dump(mode="json"),
        machine=dict(machine()),
        versions=dict(versions()),
    )
    scenario, runs = asyncio.run(_measure(work, found))
    assert found.probes is not None
    found.refitted = _refitted(work, scenario, runs, found.probes)
    by_probes = _predict(work, scenario, runs, found.probes, "probes")
    by_load = _predict(work, scenario, runs, found.refitted, "refitted")
    for side in work.sides:
        found.arms.append(
            ArmFidelity(
                arm=side.name,
                measured=[figures_of(run) for run in runs if run.arm == side.name],
                probes=by_probes[side.name],
                refitted=by_load[side.name],
            )
        )
    return found


def print_fidelity(found: Fidelity, *, console: Console) -> None:
    """Measured, predicted and how far apart, for each arm."""
    fit = found.probes.fit if found.probes is not None else None
    if found.refitted is not None and found.fitted_to == [found.refitted.source]:
        console.print(f"the engine is as given: {found.refitted.source}", highlight=False)
    elif found.fitted_to:
        console.print(f"the engine is fitted to {', '.join(found.fitted_to)}", highlight=False)
    if fit is not None:
        console.print(
            f"probes: held-out first tokens off by {fit.first_token_error:.0%}, answers by "
            f"{fit.answer_error:.0%}; {_drifted(found.drift)}",
            highlight=False,
        )
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("arm", "", *(title for title, _ in _METRICS)):
        table.add_column(column, justify="left" if column in ("arm", "") else "right")
    for arm in found.arms:
        for how in ("measured", "probes", "refitted"):
            rows: list[Figures] = getattr(arm, how)
            if not rows:
                continue
            cells = [_cell(arm, rows, name, how) for _, name in _METRICS]
            table.add_row(arm.arm if how == "measured" else "", how, *cells)
    console.print(table)
    for how in ("probes", "refitted"):
        if not any(getattr(arm, how) for arm in found.arms):
            continue
        kept = "kept" if is_order_kept(found.arms, how) else "NOT kept"
        console.print(f"{how}: order of the arms {kept}", highlight=False)
    for arm in found.arms:
        every = [*arm.measured, *arm.probes, *arm.refitted]
        done = [row.completed for row in every]
        least, most = min(done, default=0), max(done, default=0)
        if least < most:
            console.print(
                f"{arm.arm}: {least} to {most} programs of a run completed, and times are of those",
                highlight=False,
                markup=False,
            )


def _drifted(drift: float | None) -> str:
    if drift is None:
        return "how long they take after the load is not known"
    return f"after the load they took {drift:.2f} times as long"


def _cell(arm: ArmFidelity, rows: list[Figures], name: str, how: str) -> str:
    values = known(rows, name)
    if not values:
        return "-"
    mean = sum(values) / len(values)
    text = f"{mean:.3f}" if name == "cached_share" else f"{mean:.2f}"
    if how == "measured":
        return text if len(values) == 1 else f"{text} ({min(values):.2f} to {max(values):.2f})"
    if len(values) > 1:
        text += f" ({min(values):.2f} to {max(values):.2f})"
    off = error(arm.measured, rows, name)
    return text if off is None else f"{text} {off:+.0%}"


def _existing(
    path: Path, *, fit: Sequence[str], model: Path | None, beside: Path, out: Path
) -> Fidelity:
    """A comparison that is there already, beside the simulator."""
    measured = read_measured(path, beside=beside)
    if bool(fit) == (model is not None):
        raise ConfigError("a result needs either --fit with arms to fit to, or --model")
    found = fit_to(measured, fit) if model is None else read_model(model)
    logs = out.with_suffix(".logs")
    logs.mkdir(parents=True, exist_ok=True)
    write_model(logs / "model.json", found)
    return Fidelity(
        command=["python", "-m", "agentsched_bench.fidelity", *sys.argv[1:]],
        scenario=measured.scenario.model_dump(mode="json"),
        machine=dict(measured.result.machine),
        versions=dict(measured.result.versions),
        refitted=found,
        fitted_to=list(fit) or [found.source],
        arms=predict_all(measured, found, logs=logs),
    )


def main(
    what: Annotated[
        Path,
        typer.Argument(help="A scenario, whose engine is probed and loaded, or a result (.json)."),
    ],
    *,
    variant: Annotated[str | None, typer.Option(help="Of the scenario.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for compare.")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="direct or a PROFILE; the first is the baseline.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Loads, each of its own seed.")] = 1,
    probes: Annotated[int, typer.Option(min=1, help="How often each probe is sent.")] = 2,
    fit: Annotated[
        list[str] | None, typer.Option(help="Of a result: fit the engine to this arm. Repeatable.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Of a result: an engine that was fitted elsewhere.")
    ] = None,
    beside: Annotated[Path, typer.Option(help="Of a result: the folder of its scenario.")] = Path(
        "bench/scenarios"
    ),
    out: Annotated[Path, typer.Option("--out", "-o")] = Path("fidelity.json"),
) -> None:
    """How far the simulator is from a real engine."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # Before anything is measured: a file that cannot be written must not cost a run.
    refuse_unwritable(out)
    if ".json" in what.suffixes:
        found = _existing(what, fit=fit or (), model=model, beside=beside, out=out)
    else:
        found = _live(what, variant, change or (), arm or _ARMS, repeat, probes, out)
    write_whole(out, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    print_fidelity(found, console=Console())
    typer.echo(f"results: {out}")


def _live(
    path: Path,
    variant: str | None,
    change: Sequence[str],
    arm: Sequence[str],
    repeat: int,
    probes: int,
    out: Path,
) -> Fidelity:
    """Measure the scenario at this path, and predict it."""
    arms = msgspec.json.encode(list(arm)).decode()
    changes = [*change, f"arms={arms}", f"measure.repeat={repeat}"]
    chosen = load_scenario(path, variant=variant, changes=changes)
    sides = [side for side in simulated_sides(sides_of(chosen)) if not side.missing]
    if not sides or chosen.engine.speed != 1.0:
        raise ConfigError("give arms that have a model, and an engine in real time")
    work = _Work(
        scenario=chosen,
        sides=sides,
        loads=[
            make_load(chosen.workload, seed=number, beside=path.parent) for number in range(repeat)
        ],
        out=out,
        repeats=probes,
        peers=Path(".venv-peers"),
    )
    work.logs.mkdir(parents=True, exist_ok=True)
    return _compare(work, ["python", "-m", "agentsched_bench.fidelity", *sys.argv[1:]])


if __name__ == "__main__":
    typer.run(main)
