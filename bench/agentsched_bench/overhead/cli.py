"""`agentsched bench overhead`."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from agentsched.model import ConfigError
from agentsched_bench.overhead import arms as sides
from agentsched_bench.overhead.arms import Arm, all_arms
from agentsched_bench.overhead.bodies import SHAPES
from agentsched_bench.overhead.measure import Bench, Plan
from agentsched_bench.overhead.results import ArmRow, Cell, Result, goals, summarise
from agentsched_bench.overhead.table import print_result


def overhead(
    arm: Annotated[
        list[str] | None,
        typer.Option(help=f"Only these, repeatable: {', '.join(sides.NAMES)}."),
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help=f"Request sizes: {', '.join(SHAPES)}. Repeatable.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, max=512, help="Requests in flight [1, 64].")
    ] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--whole", help="Only streams, or none [both].")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which arms alternate.")] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Per arm, kind and repeat, about.")] = 448,
    memory_programs: Annotated[
        int, typer.Option(min=0, help="Live programs for the memory figure; 0 leaves it out.")
    ] = 2_000,
    peers: Annotated[
        Path,
        typer.Option(help="Environment with vllm-router.", envvar="AGENTSCHED_BENCH_PEERS"),
    ] = Path(".venv-peers"),
    pin: Annotated[
        bool, typer.Option("--pin/--no-pin", help="Proxies on the last CPU, all else elsewhere.")
    ] = True,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write JSON here.")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> int:
    """Measure what proxies cost: CPU per request, added latency, memory per program, side by side.

    Starts and stops everything itself. Peers (nginx, vllm-router) that are not installed are left
    out, and the result says so.
    """
    if sys.platform != "linux":
        raise ConfigError("this benchmark reads Linux's process clocks")
    cells = _cells(shape or list(SHAPES), concurrency or [1, 64], stream)
    chosen = _chosen(all_arms(peers), arm)
    console = Console(stderr=True)
    for left_out in chosen:
        if left_out.missing:
            console.print(f"{left_out.name} is left out: {left_out.missing}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="agentsched-overhead-") as folder:
        plan = Plan(
            arms=[one for one in chosen if not one.missing],
            cells=cells,
            repeats=repeats,
            requests=requests,
            memory_programs=memory_programs,
            memory_arms=frozenset({sides.INFERRED, sides.WITH_IDS, sides.PROGRAMS}),
            folder=Path(folder),
            is_pinned=pin,
        )
        result = _result(plan, chosen)
        try:
            asyncio.run(_measure(plan, result, console))
        finally:
            _conclude(result, output)
    if is_json:
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    else:
        print_result(result, Console())
    return 0


async def _measure(plan: Plan, result: Result, console: Console) -> None:
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=plan.blocks)

        def show(what: str) -> None:
            progress.update(task, description=what)

        bench = Bench(plan, show=show)
        async for sample in bench.samples():
            result.samples.append(sample)
            progress.advance(task)
        async for taken in bench.memory():
            result.memory.append(taken)
            progress.advance(task)
    result.is_complete = True


def _conclude(result: Result, output: Path | None) -> None:
    """Sum up what there is, also after an interruption."""
    result.rows = summarise(result.samples)
    result.goals = goals(result.rows, result.memory)
    if output is not None and (result.samples or result.memory):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def _cells(shapes: list[str], concurrency: list[int], stream: bool | None) -> list[Cell]:
    unknown = [name for name in shapes if name not in SHAPES]
    if unknown:
        raise ConfigError(f"no such size: {unknown[0]!r} (there are {', '.join(SHAPES)})")
    kinds = [False, True] if stream is None else [stream]
    return [
        Cell(shape=name, is_stream=kind, concurrency=count)
        for name in dict.fromkeys(shapes)
        for kind in kinds
        for count in dict.fromkeys(concurrency)
    ]


def _chosen(arms: list[Arm], names: list[str] | None) -> list[Arm]:
    if not names:
        return arms
    known = {arm.name for arm in arms}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"no such arm: {unknown[0]!r} (there are {', '.join(sorted(known))})")
    return [arm for arm in arms if arm.name in names]


def _result(plan: Plan, chosen: list[Arm]) -> Result:
    return Result(
        started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine={
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpus": str(len(os.sched_getaffinity(0))),
        },
        settings={
            "repeats": plan.repeats,
            "requests": plan.requests,
            "memory_programs": plan.memory_programs,
            "is_pinned": plan.is_pinned,
        },
        arms=[
            ArmRow(name=arm.name, about=arm.about, version=arm.version, missing=arm.missing)
            for arm in chosen
        ],
    )
