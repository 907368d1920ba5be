"""`agentsched simulate`."""

from __future__ import annotations

import platform
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from math import inf
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from agentsched.model import ConfigError, parse_span, seconds
from agentsched_bench.live import options
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.live.cli import INTERRUPTED
from agentsched_bench.live.results import TraceRow
from agentsched_bench.sim.arms import Arm, Scenario, alone, parse_arm, run_arm
from agentsched_bench.sim.clients import Endings
from agentsched_bench.sim.faults import Faults, draw_faults, outage, restart, slowdown, stall
from agentsched_bench.sim.results import (
    SCHEMA,
    SimResult,
    print_simulation,
    row_of,
    summarise,
)
from agentsched_bench.sim.specs import Fleet, fleet_of
from agentsched_bench.sim.specs import engine_of as engine_of
from agentsched_bench.whole_file import refuse_unwritable, write_whole
from agentsched_bench.workload.loops import closed_loops
from agentsched_bench.workload.sample import sample_programs
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.shared import limit_shared
from agentsched_bench.workload.trace import group_programs, read_trace, sha256_of

Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--profile",
        "--policy",
        metavar="ARM",
        help="PROFILE[,POINT=POLICY][,POINT.PARAMETER=VALUE], direct or unlimited. Repeatable. "
        "Oracles: PROFILE+steps, +returns, +srpt, +belady.",
    ),
]
Copies = Annotated[
    int | None,
    typer.Option(min=1, help="How many programs; more than there are replays some again."),
]
Sessions = Annotated[
    int | None, typer.Option(min=1, help="Take so many of the trace, by lot; default all.")
]
Half = Annotated[
    int | None,
    typer.Option(min=1, max=2, help="Every second program only: tune on one half, report other."),
]
Shared = Annotated[
    int | None,
    typer.Option(min=0, help="Let programs share only so many (scaled) tokens of their prompts."),
]
Engines = Annotated[int, typer.Option(min=1, help="How many engines.")]
Specs = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="SPEC",
        help="[NUMBERx]PRESET|FILE[,blocks=N][,tier=BLOCKS@TOKENS/S][,slow=FACTOR][,model=NAME]: "
        "a mixed fleet in place of --engines, --preset, --model, --blocks, --tier. Repeatable.",
    ),
]
ModelFiles = Annotated[
    Path | None,
    typer.Option("--model", help="An engine fitted by `agentsched calibrate`, for --preset."),
]
Pins = Annotated[bool, typer.Option("--pins", help="Engines keep prefixes, as with our plugin.")]
Warm = Annotated[
    bool,
    typer.Option("--warm/--no-warm", help="Engines take warm-up requests, as stock ones do."),
]
Priority = Annotated[bool, typer.Option("--priority", help="Engines queue by priority.")]
Tenants = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=SHARE,...", help="Tenants, by share of the programs; recorded ones stay."
    ),
]
Slowdowns = Annotated[
    list[str] | None,
    typer.Option(
        "--slowdown", metavar="ENGINE@START+SECONDSxFACTOR", help="An engine is slow. Repeatable."
    ),
]
Stalls = Annotated[
    list[str] | None,
    typer.Option(
        "--stall",
        metavar="ENGINE@START+SECONDS",
        help="An engine stands still: it takes calls and answers nothing. Repeatable.",
    ),
]
Restarts = Annotated[
    list[str] | None,
    typer.Option("--restart", metavar="START+SECONDS", help="The proxy is restarted. Repeatable."),
]
Chaos = Annotated[
    str | None,
    typer.Option(
        metavar="SEED[:RATE[:SECONDS]]",
        help="Faults of every kind, drawn from a seed over so many seconds (3600).",
    ),
]
Presets = Annotated[str, typer.Option("--preset", help="Speed and sizes of an engine.")]
Blocks = Annotated[int | None, typer.Option(min=2, help="KV blocks of each engine.")]
BlockSize = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens per block; larger ones are simulated faster. Same capacity."),
]
Tier = Annotated[
    str | None,
    typer.Option(metavar="BLOCKS@TOKENS/S", help="A host tier below each engine's memory."),
]
MaxWait = Annotated[str, typer.Option(help="The bound on a held step's wait.")]
Seeds = Annotated[str, typer.Option(help="Comma-separated; a run of every arm for each.")]
Ends = Annotated[Endings, typer.Option(help="How one can tell that a program is over.")]
TokenError = Annotated[
    float, typer.Option(min=0.0, max=0.9, help="How far token estimates are off, as a share.")
]
Streaming = Annotated[bool, typer.Option("--stream/--no-stream", help="Whether clients stream.")]
Outages = Annotated[
    list[str] | None,
    typer.Option("--outage", metavar="ENGINE@START+SECONDS", help="An engine dies. Repeatable."),
]


def simulate(
    trace: options.Trace,
    *,
    profile: Arms = None,
    engines: Engines = 1,
    preset_name: Presets = "cpu-2core",
    blocks: Blocks = None,
    block_size: BlockSize = None,
    tier: Tier = None,
    arrivals: options.ArrivalsText = "poisson:0.25",
    programs: Copies = None,
    sessions: Sessions = None,
    only: options.Only = None,
    half: Half = None,
    shared: Shared = None,
    steps: options.Steps = None,
    scale_tokens: options.ScaleTokens = 8.0,
    scale_time: options.ScaleTime = 2.0,
    gap_cap: options.GapCap = 60.0,
    max_wait: MaxWait = "15s",
    seeds: Seeds = "1,2,3",
    endings: Ends = Endings.SPOKEN,
    token_error: TokenError = 0.0,
    stream: Streaming = True,
    outages: Outages = None,
    engine: Specs = None,
    model: ModelFiles = None,
    pins: Pins = False,
    warm: Warm = True,
    priority: Priority = False,
    tenants: Tenants = None,
    slowdown: Slowdowns = None,
    stall_at: Stalls = None,
    restart: Restarts = None,
    chaos: Chaos = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Simulate recorded programs under several policies, on modelled engines in virtual time.

    The policies are the proxy's own; a seed gives every arm the same programs, on every machine.
    Ctrl-C keeps the seeds that are done.
    """
    arms = [parse_arm(text) for text in profile or ("direct", "agentsched", "unlimited")]
    specs = engine or [_spec(str(model) if model else preset_name, engines, blocks, tier)]
    fleet = fleet_of(specs, block_size=block_size, pins=pins, warm=warm, priority=priority)
    shape = shape_for(fleet, tokens=scale_tokens, time=scale_time, gap_cap=gap_cap, steps=steps)
    plans, row = load(trace, shape, only=only or (), sessions=sessions, half=half, shared=shared)
    scenario = Scenario(
        plans=plans,
        engines=fleet.engines,
        traits=fleet.traits,
        arrivals=parse_arrivals(arrivals),
        programs=programs,
        wait_ns_max=parse_span(max_wait),
        endings=endings,
        token_error=token_error,
        streams=stream,
        faults=_faults(len(fleet.engines), outages, slowdown, stall_at, restart, chaos),
        tenants=_tenants(tenants),
    )
    result = SimResult(
        schema=SCHEMA,
        command=["agentsched", *sys.argv[1:]],
        versions=_versions(),
        trace=row,
        options=_described(scenario, fleet, shape, specs=specs, max_wait=max_wait, chaos=chaos),
        seeds=_seeds(seeds),
    )
    _run(arms, with_loops(scenario, trace), result, out=out, as_json=as_json)


def _run(
    arms: Sequence[Arm], scenario: Scenario, result: SimResult, *, out: Path | None, as_json: bool
) -> None:
    """Simulate, and show and write what is done, all or less."""
    refuse_unwritable(out)
    try:
        run_all(arms, scenario, result, is_quiet=as_json)
    except KeyboardInterrupt:
        _keep_whole_seeds(result, arms)
        if result.rows:
            _show(result, out=out, as_json=as_json)
        typer.echo(f"stopped; done are the seeds {result.seeds}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _show(result, out=out, as_json=as_json)


def _keep_whole_seeds(result: SimResult, arms: Sequence[Arm]) -> None:
    """Leave the seeds that every arm has been simulated under: only they compare anything."""
    done = [(row.arm, row.seed) for row in result.rows]
    result.seeds = [seed for seed in result.seeds if all((arm.text, seed) in done for arm in arms)]
    result.rows = [row for row in result.rows if row.seed in result.seeds]
    _sum_up(result, arms)


def _sum_up(result: SimResult, arms: Sequence[Arm]) -> None:
    result.rows.sort(key=lambda row: ([arm.text for arm in arms].index(row.arm), row.seed))
    result.summary = summarise(result.rows)


def shape_for(
    fleet: Fleet, *, tokens: float, time: float, gap_cap: float, steps: int | None
) -> ShapeOptions:
    """How recorded programs are made to fit a fleet: scales, and its smallest context."""
    return ShapeOptions(
        scale_tokens=tokens,
        scale_time=time,
        gap_cap_s=gap_cap,
        steps_max=steps,
        context_tokens_max=min(one.max_model_len for one in fleet.engines),
    )


def _show(result: SimResult, *, out: Path | None, as_json: bool) -> None:
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    if as_json:
        typer.echo(msgspec.json.encode(result.summary))
    else:
        print_simulation(result, console=Console())


def run_all(
    arms: Sequence[Arm], scenario: Scenario, result: SimResult, *, is_quiet: bool = True
) -> None:
    """Simulate every arm under every seed; rows and summary go into `result`."""
    alone_s = alone(scenario)
    with _progress(len(arms) * len(result.seeds), is_quiet=is_quiet) as step:
        for seed in result.seeds:
            for arm in arms:
                outcome = run_arm(arm, scenario, seed=seed)
                result.rows.append(row_of(arm.text, seed, outcome, alone_s=alone_s))
                step()
    _sum_up(result, arms)


@contextmanager
def _progress(total: int, *, is_quiet: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield lambda: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("simulating", total=total)
        yield lambda: bar.advance(task)


def load(
    trace: Path,
    shape: ShapeOptions,
    *,
    only: Sequence[str] = (),
    sessions: int | None = None,
    half: int | None = None,
    shared: int | None = None,
) -> tuple[list[PlannedProgram], TraceRow]:
    """Read, choose and shape. The halves are disjoint and do not depend on any seed."""
    recordings = list(read_trace(trace))
    chosen = sample_programs(
        group_programs(recordings), count=sessions, rng=random.Random("sample/0"), only=only
    )
    if half is not None:
        chosen = chosen[half - 1 :: 2]
    plans = plan_programs(chosen, shape, shared=SharedPrompts.learn(recordings))
    if not plans:
        raise ConfigError(f"{trace}: no program is left")
    if shared is not None:
        plans = [limit_shared(plan, tokens=shared) for plan in plans]
    return plans, TraceRow(
        name=trace.name,
        sha256=sha256_of(trace),
        programs=len(plans),
        calls=sum(plan.calls for plan in plans),
        is_synthetic=all(recording.synthetic for recording in recordings),
    )


def with_loops(scenario: Scenario, trace: Path) -> Scenario:
    """The scenario with the closed loops of the trace that its plans are of."""
    plans, pools = closed_loops(scenario.plans, trace)
    return replace(scenario, plans=plans, pools=pools)


def _spec(name: str, engines: int, blocks: int | None, tier: str | None) -> str:
    size = f",blocks={blocks}" if blocks is not None else ""
    return f"{engines}x{name}{size}" + (f",tier={tier}" if tier is not None else "")


def _faults(
    engines: int,
    outages: Sequence[str] | None,
    slowdowns: Sequence[str] | None,
    stalls: Sequence[str] | None,
    restarts: Sequence[str] | None,
    chaos: str | None,
) -> Faults:
    found = Faults(
        outages=tuple(outage(text) for text in outages or ()),
        slowdowns=tuple(slowdown(text) for text in slowdowns or ()),
        stalls=tuple(stall(text) for text in stalls or ()),
        restarts=tuple(restart(text) for text in restarts or ()),
    )
    named = [fault.engine for fault in found.outages]
    named += [fault.engine for fault in found.slowdowns]
    named += [fault.engine for fault in found.stalls]
    for engine in named:
        if engine >= engines:
            raise ConfigError(f"no engine {engine}: there are engines 0 to {engines - 1}")
    if chaos is None:
        return found
    try:
        seed, rate, length, *more = [*chaos.split(":"), *("", "1", "3600")[chaos.count(":") + 1 :]]
        if more or not (0 < float(rate) < inf and 0 < float(length) < inf):
            raise ValueError(chaos)
        drawn = draw_faults(
            int(seed), engines=engines, length=seconds(float(length)), rate=float(rate)
        )
    except (ValueError, OverflowError):
        raise ConfigError(
            f"not chaos: {chaos!r} (write SEED, SEED:RATE or SEED:RATE:SECONDS)"
        ) from None
    return replace(
        drawn,
        outages=(*found.outages, *drawn.outages),
        slowdowns=(*found.slowdowns, *drawn.slowdowns),
        stalls=found.stalls,
        restarts=(*found.restarts, *drawn.restarts),
    )


def _tenants(text: str | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, share = part.partition("=")
        try:
            found[name] = float(share or 1)
            if not (name and 0 < found[name] < inf):
                raise ValueError(part)
        except ValueError:
            raise ConfigError(
                f"not tenants: {text!r} (write NAME=SHARE,..., all above 0)"
            ) from None
    return found


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ConfigError(f"not seeds: {text!r} (write 1,2,3)") from None


def _versions() -> dict[str, str]:
    return {"agentsched": metadata.version("agentsched"), "python": platform.python_version()}


def _described(
    scenario: Scenario,
    fleet: Fleet,
    shape: ShapeOptions,
    *,
    specs: list[str],
    max_wait: str,
    chaos: str | None,
) -> dict[str, object]:
    engine = fleet.engines[0]
    return {
        "programs": scenario.programs or len(scenario.plans),
        "engines": len(scenario.engines),
        "fleet": specs,
        "kv_tokens": (engine.blocks - 1) * engine.block_size,
        "block_size": engine.block_size,
        "pins": fleet.traits[0].pins,
        "warm": fleet.traits[0].warm,
        "scheduling": str(engine.scheduling),
        "shape": shape.said(),
        "arrivals": str(scenario.arrivals),
        "max_wait": max_wait,
        "endings": str(scenario.endings),
        "token_error": scenario.token_error,
        "streams": scenario.streams,
        "tenants": dict(scenario.tenants),
        "chaos": chaos,
        "outages": len(scenario.faults.outages),
        "slowdowns": len(scenario.faults.slowdowns),
        "stalls": len(scenario.faults.stalls),
        "restarts": len(scenario.faults.restarts),
    }
