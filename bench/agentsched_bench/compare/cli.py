"""`agentsched compare`."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import typer
from rich.console import Console

from agentsched.model import ConfigError
from agentsched_bench.compare import results
from agentsched_bench.compare.agents import with_playback
from agentsched_bench.compare.arms import PEERS, Side, sides_of
from agentsched_bench.compare.capacity import at_rate, capacity, print_capacity
from agentsched_bench.compare.deadlines import deadlines_of, telling
from agentsched_bench.compare.fleet import engines_of
from agentsched_bench.compare.load import Load, make_load
from agentsched_bench.compare.machine import is_stalled
from agentsched_bench.compare.results import ArmRow, CompareResult
from agentsched_bench.compare.run import Plan, Store, run_all, simulate_all
from agentsched_bench.compare.scenario import (
    MeasureSpec,
    Scenario,
    load_scenario,
    make_scenario,
)
from agentsched_bench.compare.show import Estimate, print_comparison, showing, span
from agentsched_bench.compare.simulated import alone_seconds, simulated_sides
from agentsched_bench.live.cli import INTERRUPTED, new_salt, until_signal
from agentsched_bench.sim.specs import digest_of
from agentsched_bench.whole_file import only_writer
from agentsched_bench.workload.compose import shape_options
from agentsched_bench.workload.importers import input_files

What = Annotated[
    Path,
    typer.Argument(help="A scenario (.toml), or a trace or folder of any format that is imported."),
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        metavar="ARM",
        help="Instead of the scenario's: direct, unlimited, PROFILE[,POINT=POLICY]..., plugin, "
        "vllm-router, vllm-router-programs, litellm, NAME=URL, NAME=COMMAND. Repeatable.",
    ),
]
Only = Annotated[list[str] | None, typer.Option(help="Run these arms only. Repeatable.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="As in engine.blocks=700. Repeatable."),
]
Variant = Annotated[str | None, typer.Option(help="A variant that the scenario has, as in full.")]
Repeat = Annotated[int | None, typer.Option(min=1, help="Runs of each arm.")]
Seed = Annotated[int | None, typer.Option(help="Of programs and arrivals; each repeat adds one.")]
Rates = Annotated[
    list[float] | None,
    typer.Option(
        min=0.0001,
        help="Programs per second. Several: a comparison for each, and what each arm carries.",
    ),
]
Simulate = Annotated[bool, typer.Option("--simulate", help="In the simulator, not live.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Result, JSON (.gz packs it) [NAME.live.json]."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do not go on from an earlier result.")]
Redo = Annotated[
    bool,
    typer.Option("--redo-stalled", help="Make runs anew in which the machine had stood still."),
]
Logs = Annotated[Path | None, typer.Option(help="Folder for logs and journals [beside --out].")]
Page = Annotated[Path | None, typer.Option("--report", help="Write a page about it (HTML).")]
Peers = Annotated[Path, typer.Option(help="Environment with vllm-router, litellm.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run and how long.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]

#: What a trace without a scenario runs on: the demo's engine and shape.
_DEFAULT_ENGINE: Final = {"blocks": 420, "block_size": 32, "max_model_len": 8192, "speed": 3.0}


def compare(
    what: What,
    *,
    arm: Arms = None,
    only: Only = None,
    change: Changes = None,
    variant: Variant = None,
    repeat: Repeat = None,
    seed: Seed = None,
    rate: Rates = None,
    simulate: Simulate = False,
    out: Out = None,
    fresh: Fresh = False,
    redo_stalled: Redo = False,
    logs: Logs = None,
    report: Page = None,
    peers: Peers = PEERS,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Compare arms on the same agent programs: alternated, paired, with intervals and verdicts.

    Starts and stops what it needs. Ctrl-C stops it and keeps every finished run; the same command
    goes on from there.
    """
    changes = _changes(change, arm, repeat, seed)
    scenario, beside = _scenario(what, variant=variant, changes=changes)
    rates = tuple(rate or ()) or scenario.measure.rates
    options = _Options(
        beside=beside,
        only=tuple(only or ()),
        is_simulated=simulate,
        fresh=fresh,
        redo_stalled=redo_stalled,
        peers=peers,
        dry_run=dry_run,
        is_quiet=as_json,
    )
    wanted = [at_rate(scenario, each) for each in rates] or [scenario]
    found: list[CompareResult] = []
    paths: list[Path] = []
    was_stopped = False
    for number, each in enumerate(wanted):
        path = _path(out, each, options, is_one=len(wanted) == 1)
        paths.append(path)
        folder = _logs(path, logs, each, is_one=len(wanted) == 1)
        if not (simulate or dry_run):
            folder.mkdir(parents=True, exist_ok=True)
        with only_writer(None if dry_run else path):
            result, was_stopped = _compare(each, path, folder, options)
        found.append(result)
        if was_stopped:
            break
        if number + 1 < len(wanted) and not as_json and not dry_run:
            print_comparison(result, console=Console())
    if not dry_run:
        _finish(
            found,
            rates,
            scenario,
            paths=paths,
            report=report,
            as_json=as_json,
            was_stopped=was_stopped,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What all comparisons of one invocation have in common."""

    beside: Path
    only: tuple[str, ...]
    is_simulated: bool
    fresh: bool
    redo_stalled: bool
    peers: Path
    dry_run: bool
    is_quiet: bool

    @property
    def how(self) -> Literal["live", "simulated"]:
        return "simulated" if self.is_simulated else "live"


def _path(out: Path | None, scenario: Scenario, options: _Options, *, is_one: bool) -> Path:
    if out is None:
        return Path(f"{scenario.name}.{options.how}.json")
    return out if is_one else out.with_name(f"{scenario.name}.{out.name}")


def _logs(path: Path, logs: Path | None, scenario: Scenario, *, is_one: bool) -> Path:
    """Each rate has a folder of its own: arms and repeats are called the same in all of them."""
    if logs is not None:
        return logs if is_one else logs / scenario.name
    return path.with_name(f"{path.name.partition('.json')[0]}.logs")


def _compare(
    scenario: Scenario, path: Path, logs: Path, options: _Options
) -> tuple[CompareResult, bool]:
    """Run what is still to be run; the result, and whether a signal ended it."""
    sides = sides_of(scenario, only=options.only, peers=options.peers)
    if options.is_simulated:
        sides = simulated_sides(sides)
    repeats = range(scenario.measure.repeat)
    loads = [make_load(scenario.workload, seed=n, beside=options.beside) for n in repeats]
    # A real agent's programs are not those of the trace: nothing is known of them alone.
    is_known = scenario.measure.alone == "model" and all(s.client == "replay" for s in sides)
    alone_s = alone_seconds(loads, scenario.engine) if is_known else {}
    result = new_result(scenario, sides, loads, how=options.how, alone_s=alone_s)
    if scenario.measure.tells_deadlines:
        loads = telling(loads, result.deadlines_s)
    if not options.fresh:
        result = resumed(result, path, redo_stalled=options.redo_stalled)
    store = Store(result, path=path)
    if not options.is_simulated and not options.dry_run:
        scenario = with_playback(scenario, loads, logs=logs, sides=sides)
    plan = Plan(
        scenario=scenario,
        sides=sides,
        loads=loads,
        logs=logs,
        peers=options.peers,
        salt=new_salt(),
    )
    expected_s = _expected_s(plan, alone_s, is_simulated=options.is_simulated)
    if options.dry_run:
        _say_plan(plan, store, expected_s=expected_s)
        return store.result, False
    # Before anything is measured: a file that cannot be written must not cost a run.
    store.save()
    estimate = Estimate([side.name for _, side in plan.order(store)], expected_s=expected_s)
    with showing(estimate, is_quiet=options.is_quiet) as show:
        if options.is_simulated:
            simulate_all(plan, store, show)
            return store.result, False
        return store.result, asyncio.run(until_signal(run_all(plan, store, show)))


def _finish(
    found: Sequence[CompareResult],
    rates: Sequence[float],
    scenario: Scenario,
    *,
    paths: Sequence[Path],
    report: Path | None,
    as_json: bool,
    was_stopped: bool,
) -> None:
    rows = capacity(dict(zip(rates, found, strict=False)), scenario) if rates else []
    if as_json:
        figures = [result.summary for result in found]
        shown = {"capacity": rows, "rates": figures} if rates else figures[0]
        typer.echo(msgspec.json.encode(shown))
    else:
        console = Console()
        print_comparison(found[-1], console=console)
        if rows:
            print_capacity(rows, scenario, console=console)
        for path in paths:
            typer.echo(f"results: {path}")
    if report is not None and found[0].summary:
        from agentsched_bench.report.page import write_page

        size = write_page([each for each in found if each.summary], report)
        if not as_json:
            typer.echo(f"report: {report} ({size / 1024:.0f} KB)")
    if was_stopped:
        raise typer.Exit(INTERRUPTED)
    if any(figures.errors for result in found for figures in result.summary):
        raise typer.Exit(1)


def _changes(
    change: Sequence[str] | None,
    arm: Sequence[str] | None,
    repeat: int | None,
    seed: int | None,
) -> list[str]:
    changes = list(change or ())
    if arm:
        changes.append("arms=" + msgspec.json.encode(list(arm)).decode())
    if repeat is not None:
        changes.append(f"measure.repeat={repeat}")
    if seed is not None:
        changes.append(f"workload.seed={seed}")
    return changes


def _scenario(what: Path, *, variant: str | None, changes: Sequence[str]) -> tuple[Scenario, Path]:
    """The scenario, and the folder that its paths are relative to."""
    if what.suffix == ".toml":
        return load_scenario(what, variant=variant, changes=changes), what.parent
    if variant is not None:
        raise ConfigError("a trace has no variants; those are a scenario's")
    traces = _traces(what)
    table: dict[str, Any] = {
        "name": what.name.partition(".")[0] or "comparison",
        "question": "What does the proxy change for these programs?",
        "engine": dict(_DEFAULT_ENGINE),
        "measure": {"repeat": 1},
        "workload": {
            "programs": 24,
            "steps_max": 16,
            "gap_cap_s": 10.0,
            "context_tokens_max": 7936,
            "arrivals": {"process": "regular", "rate": 3.0},
            "sources": [{"trace": str(trace.absolute())} for trace in traces],
        },
    }
    return make_scenario(table, where=str(what), changes=changes), Path()


def _traces(what: Path) -> list[Path]:
    if not what.exists():
        raise ConfigError(f"no such file or folder: {what}")
    if what.is_file():
        return [what]
    kinds = ("*.jsonl", "*.jsonl.gz", "*.jsonl.xz")
    found = sorted(path for kind in kinds for path in what.glob(kind))
    if not found:
        input_files([what])  # of other formats, imported when it is read as one
        return [what]
    return found


def new_result(
    scenario: Scenario,
    sides: Sequence[Side],
    loads: Sequence[Load],
    *,
    how: Any,
    alone_s: dict[str, float],
) -> CompareResult:
    """A result that has no run yet."""
    baseline = scenario.baseline or sides[0].name
    if baseline not in [side.name for side in sides]:
        baseline = sides[0].name
    result = CompareResult(
        schema=results.SCHEMA,
        name=scenario.name,
        how=how,
        command=["agentsched", *sys.argv[1:]],
        started_at=datetime.now(tz=UTC).isoformat(timespec="seconds"),
        versions=results.versions(),
        machine=results.machine(),
        spec=scenario.model_dump(mode="json"),
        trace=loads[0].trace,
        arms=[
            ArmRow(
                name=side.name,
                text=side.text,
                about=side.about,
                version=side.version,
                ids=side.ids,
                missing=side.missing,
            )
            for side in sides
        ],
        baseline=baseline,
        question=scenario.question,
        expects=scenario.expects,
        alone_s=alone_s,
        alone_how="by the engine's model" if alone_s else "",
        deadlines_s=deadlines_of(alone_s, scenario.measure.deadlines),
        engines_sha256=digest_of(engines_of(scenario.engine)),
    )
    if scenario.engine.pace != 1.0 and how == "live":
        result.notes.append(
            f"The engine ran {scenario.engine.pace:g} times as fast as real, the load with it; "
            "times are the engine's."
        )
    if scenario.engine.slowdowns and how == "live":
        result.notes.append("No engine was slow: `slowdowns` are the simulator's alone.")
    said = shape_options(scenario.workload).said()
    if said:
        result.notes.append(
            f"The load is not as recorded: {said}. --set workload.scale_tokens=1 and so on change "
            "that."
        )
    if left := sum(load.left_out for load in loads):
        drawn = left + sum(len(load.plans) for load in loads)
        result.notes.append(
            f"{left} of {drawn} programs are left out: their first call is longer than "
            f"{scenario.workload.context_tokens_max:,} tokens (workload.context_tokens_max)."
        )
    return result


def resumed(result: CompareResult, path: Path, *, redo_stalled: bool) -> CompareResult:
    """What an earlier invocation of the same comparison left, if it is there; with `redo_stalled`
    without the runs in which the machine stood still.

    Raises:
        ConfigError: the file holds another comparison, or runs of what is another arm, version or
            machine by now; that is not written over unasked.
    """
    if not path.exists():
        return result
    earlier = results.read(path)
    hashes = {each.engines_sha256 for each in (earlier, result) if each.engines_sha256}
    if _what_runs(earlier) != _what_runs(result) or len(hashes) > 1:
        raise ConfigError(
            f"{path} holds another comparison (--fresh writes over it, --out names another file)"
        )
    _refuse_others(earlier, result, path)
    known = {row.name for row in result.arms}
    # Arms left out with --only this time keep what they have.
    result.arms += [row for row in earlier.arms if row.name not in known]
    order = [arm if isinstance(arm, str) else arm["name"] for arm in _arms_of(result)]
    result.arms.sort(key=lambda row: order.index(row.name) if row.name in order else len(order))
    # The arm that all are compared with may have been left out with --only, then or now.
    names = [row.name for row in result.arms]
    wanted = str(result.spec.get("baseline") or next(iter(order), earlier.baseline))
    result.baseline = wanted if wanted in names else earlier.baseline
    result.runs = [
        run for run in earlier.runs if run.is_complete and not (redo_stalled and is_stalled(run))
    ]
    # Programs of repeats that are not asked for this time are still in the figures.
    result.alone_s = {**earlier.alone_s, **result.alone_s}
    result.deadlines_s = {**earlier.deadlines_s, **result.deadlines_s}
    result.alone_how = result.alone_how or earlier.alone_how
    result.started_at = earlier.started_at
    return result


def _refuse_others(earlier: CompareResult, result: CompareResult, path: Path) -> None:
    """An arm's runs are of one thing: what it is called does not say that it still is the same."""
    for row in result.arms:
        was = next((old for old in earlier.arms if old.name == row.name), None)
        if was is None or not any(run.arm == row.name for run in earlier.runs):
            continue
        is_same = _definition(was, earlier) == _definition(row, result)
        versions = [version for version in (was.version, row.version) if version]
        if not is_same or len(set(versions)) > 1:
            raise ConfigError(
                f"{path} has runs of another arm or version that is called {row.name!r} (--fresh "
                "writes over them, --out names another file)"
            )
    ours = earlier.versions.get("agentsched"), result.versions.get("agentsched")
    if earlier.runs and ours[0] != ours[1]:
        raise ConfigError(
            f"{path} has runs of agentsched {ours[0]}, this is {ours[1]} (--fresh writes over "
            "them, --out names another file)"
        )
    if earlier.runs and earlier.how == "live":
        _refuse_another_machine(earlier, result, path)


def _refuse_another_machine(earlier: CompareResult, result: CompareResult, path: Path) -> None:
    """Times of two machines do not compare; an older result may not say what its machine was."""
    for key in ("processor", "cpus"):
        was, now = earlier.machine.get(key), result.machine.get(key)
        if was and now and was != now:
            raise ConfigError(
                f"{path} has runs of another machine, {key} {was}, this one has {now} (--fresh "
                "writes over them, --out names another file)"
            )


def _definition(row: ArmRow, result: CompareResult) -> tuple[str, str, str | None]:
    """What an arm is: how it is run, how its programs name themselves, who plays them."""
    tables = [arm for arm in _arms_of(result) if not isinstance(arm, str)]
    clients = [arm.get("client") for arm in tables if arm["name"] == row.name]
    return row.text, row.ids, next(iter(clients), None)


def _arms_of(result: CompareResult) -> list[Any]:
    arms = result.spec["arms"]
    assert isinstance(arms, list)
    return arms


def _what_runs(result: CompareResult) -> str:
    """A hash of everything that decides a run, without how many of them there are."""
    spec = {key: value for key, value in result.spec.items() if key != "arms"}
    # What an older file does not know yet is as it is unless somebody says otherwise.
    usual = MeasureSpec().model_dump(mode="json")
    measure = usual | spec["measure"]  # type: ignore[operator]
    for key in ("repeat", "repeat_stalled"):
        measure.pop(key, None)
    spec["measure"] = measure
    data = msgspec.json.encode([result.how, result.trace.sha256, spec], order="deterministic")
    return hashlib.sha256(data).hexdigest()


def _expected_s(plan: Plan, alone_s: dict[str, float], *, is_simulated: bool) -> float:
    """A first guess at one run: arrivals and then the longest program, somewhat slowed down."""
    load = plan.loads[0]
    if is_simulated:
        return load.calls / 1_500
    longest = max((alone_s.get(p.program, 30.0) for p in load.plans), default=30.0)
    work = sum(alone_s.get(p.program, 30.0) for p in load.plans) / (load.concurrency or 6)
    return (load.last_start_s + max(2.5 * longest, work)) / plan.scenario.engine.pace


def _say_plan(plan: Plan, store: Store, *, expected_s: float) -> None:
    order = plan.order(store)
    typer.echo(f"{plan.scenario.name}: {plan.scenario.question}")
    for side in plan.sides:
        done = sum(store.has(side.name, repeat) for repeat in range(len(plan.loads)))
        state = f"left out, {side.missing}" if side.missing else f"{done} of {len(plan.loads)} done"
        typer.echo(f"  {side.name}: {side.about} ({state})")
    load = plan.loads[0]
    typer.echo(
        f"{len(order)} runs of {len(load.plans)} programs, {load.calls} calls each; "
        f"about {span(expected_s)} a run, {span(expected_s * len(order))} in all"
    )
