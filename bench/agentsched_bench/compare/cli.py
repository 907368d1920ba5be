"""`agentsched compare`."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console

from agentsched.model import ConfigError
from agentsched_bench.compare import results
from agentsched_bench.compare.agents import with_playback
from agentsched_bench.compare.arms import PEERS, Side, sides_of
from agentsched_bench.compare.load import Load, make_load
from agentsched_bench.compare.results import ArmRow, CompareResult
from agentsched_bench.compare.run import Plan, Store, run_all, simulate_all
from agentsched_bench.compare.scenario import Scenario, load_scenario, make_scenario
from agentsched_bench.compare.show import Estimate, print_comparison, showing, span
from agentsched_bench.compare.simulated import alone_seconds, simulated_sides
from agentsched_bench.live.cli import INTERRUPTED, new_salt, until_signal

What = Annotated[
    Path,
    typer.Argument(help="A scenario (.toml), a trace (.jsonl, .gz, .xz), or a folder of traces."),
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
Simulate = Annotated[bool, typer.Option("--simulate", help="In the simulator, not live.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Result, JSON (.gz packs it) [NAME.live.json]."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do not go on from an earlier result.")]
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
    simulate: Simulate = False,
    out: Out = None,
    fresh: Fresh = False,
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
    scenario, beside = _scenario(what, variant=variant, changes=_changes(change, arm, repeat, seed))
    sides = sides_of(scenario, only=only or (), peers=peers)
    if simulate:
        sides = simulated_sides(sides)
    loads = [
        make_load(scenario.workload, seed=number, beside=beside)
        for number in range(scenario.measure.repeat)
    ]
    how = "simulated" if simulate else "live"
    path = out or Path(f"{scenario.name}.{how}.json")
    folder = logs or path.with_name(f"{path.name.split('.json')[0]}.logs")
    alone_s = {} if scenario.measure.alone == "none" else alone_seconds(loads, scenario.engine)
    result = _new_result(scenario, sides, loads, how=how, alone_s=alone_s)
    result = _resumed(result, path, fresh=fresh)
    store = Store(result, path=path)
    if not simulate and not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        scenario = with_playback(scenario, loads[0], logs=folder, sides=sides)
    plan = Plan(
        scenario=scenario, sides=sides, loads=loads, logs=folder, peers=peers, salt=new_salt()
    )
    order = plan.order(store)
    expected_s = _expected_s(plan, alone_s, is_simulated=simulate)
    if dry_run:
        _say_plan(plan, store, expected_s=expected_s)
        return
    # Before anything is measured: a file that cannot be written must not cost a run.
    store.save()
    estimate = Estimate([side.name for _, side in order], expected_s=expected_s)
    was_stopped = False
    with showing(estimate, is_quiet=as_json) as show:
        if simulate:
            simulate_all(plan, store, show)
        else:
            was_stopped = asyncio.run(until_signal(run_all(plan, store, show)))
    _finish(store.result, path=path, report=report, as_json=as_json, was_stopped=was_stopped)


def _finish(
    result: CompareResult, *, path: Path, report: Path | None, as_json: bool, was_stopped: bool
) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(result.summary))
    else:
        print_comparison(result, console=Console())
        typer.echo(f"results: {path}")
    if report is not None and result.summary:
        from agentsched_bench.report.page import write_page

        size = write_page([result], report)
        if not as_json:
            typer.echo(f"report: {report} ({size / 1024:.0f} KB)")
    if was_stopped:
        raise typer.Exit(INTERRUPTED)
    if any(figures.errors for figures in result.summary):
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
        raise ConfigError(
            f"{what}: no trace in it (make one: agentsched trace import FORMAT FILES -o FILE)"
        )
    return found


def _new_result(
    scenario: Scenario,
    sides: Sequence[Side],
    loads: Sequence[Load],
    *,
    how: Any,
    alone_s: dict[str, float],
) -> CompareResult:
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
    )
    if scenario.engine.speed != 1.0 and how == "live":
        result.notes.append(
            f"The engine ran {scenario.engine.speed:g} times as fast as real, the load with it; "
            "times are the engine's."
        )
    return result


def _resumed(result: CompareResult, path: Path, *, fresh: bool) -> CompareResult:
    """What an earlier invocation of the same comparison left, if it is there.

    Raises:
        ConfigError: the file holds another comparison, which is not written over unasked.
    """
    if fresh or not path.exists():
        return result
    earlier = results.read(path)
    if _what_runs(earlier) != _what_runs(result):
        raise ConfigError(
            f"{path} holds another comparison (--fresh writes over it, --out names another file)"
        )
    known = {row.name for row in result.arms}
    # Arms left out with --only this time keep what they have.
    result.arms += [row for row in earlier.arms if row.name not in known]
    order = [arm if isinstance(arm, str) else arm["name"] for arm in _arms_of(result)]
    result.arms.sort(key=lambda row: order.index(row.name) if row.name in order else len(order))
    result.baseline = earlier.baseline
    result.runs = [run for run in earlier.runs if run.is_complete]
    result.started_at = earlier.started_at
    return result


def _arms_of(result: CompareResult) -> list[Any]:
    arms = result.spec["arms"]
    assert isinstance(arms, list)
    return arms


def _what_runs(result: CompareResult) -> str:
    """A hash of everything that decides a run, without how many of them there are."""
    spec = {key: value for key, value in result.spec.items() if key != "arms"}
    measure = dict(spec["measure"])  # type: ignore[call-overload]
    measure.pop("repeat", None)
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
    return (max(load.starts_s) + max(2.5 * longest, work)) / plan.scenario.engine.speed


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
