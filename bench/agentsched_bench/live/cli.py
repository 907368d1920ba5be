"""`agentsched replay`."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import random
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from agentsched.model import ConfigError
from agentsched.proxy.request import Dialect
from agentsched_bench.live import replay as live
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.live.client import Patience
from agentsched_bench.live.dialects import REPLAYED
from agentsched_bench.live.identity import STYLES, style
from agentsched_bench.live.results import SCHEMA, ArmRow, Recorder, Result, TraceRow
from agentsched_bench.report.table import print_summary
from agentsched_bench.workload.sample import sample_programs
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.trace import group_programs, read_trace, sha256_of

INTERRUPTED: Final = 130


def replay(
    trace: Annotated[Path, typer.Argument(help="Recorded programs: .jsonl, .jsonl.gz, .jsonl.xz.")],
    *,
    url: Annotated[
        list[str], typer.Option(metavar="[NAME=]URL", help="An arm: an endpoint. Repeatable.")
    ],
    ids: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ARM=]STYLE", help=f"How programs name themselves: {', '.join(STYLES)}."
        ),
    ] = None,
    reset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ARM=]URL",
            help="POST here before each run to empty the cache; runs then share their content.",
        ),
    ] = None,
    programs: Annotated[
        int | None, typer.Option(min=1, help="How many, by lot with the seed; default all.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="FIELD=PATTERN, as in model=*haiku*. Repeatable.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="At most this many calls per conversation.")
    ] = None,
    scale_tokens: Annotated[float, typer.Option(help="Divide token counts by this.")] = 8.0,
    scale_time: Annotated[float, typer.Option(help="Divide pauses by this.")] = 2.0,
    gap_cap: Annotated[float, typer.Option(help="Cut pauses to this first, s.")] = 60.0,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="End a conversation before its context exceeds this.")
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="recorded, poisson:RATE, burst:RATE/s or closed:NUMBER.")
    ] = "closed:8",
    dialect: Annotated[
        Dialect, typer.Option(help="chat, completions (token ids), responses or messages.")
    ] = Dialect.CHAT,
    model: Annotated[str | None, typer.Option(help="Default: what the first arm serves.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses programs and arrivals.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each arm.")] = 1,
    alternate: Annotated[
        bool, typer.Option("--alternate/--in-turn", help="A B A B, or A A B B.")
    ] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one attempt.")] = 600.0,
    attempts: Annotated[int, typer.Option(min=1, help="Tries of a call on 429 and 503.")] = 6,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep the results in this JSON file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Replay recorded programs on one or more endpoints and compare them.

    Each arm gets the same programs, pauses and arrivals, one arm after the other. Ctrl-C stops and
    keeps what was measured.
    """
    arms = parse_arms(url, ids=ids or (), reset=reset or ())
    shape = ShapeOptions(
        scale_tokens=scale_tokens,
        scale_time=scale_time,
        gap_cap_s=gap_cap,
        steps_max=steps,
        context_tokens_max=max_context,
    )
    if dialect not in REPLAYED:
        raise ConfigError(f"cannot replay in the dialect {dialect} ({', '.join(REPLAYED)})")
    options = live.ReplayOptions(
        dialect=dialect,
        arrivals=parse_arrivals(arrivals),
        seed=seed,
        repeat=repeat,
        alternate=alternate,
        # New in each invocation, so that no cache remembers an earlier one; the result says it.
        salt=None if reset else secrets.token_hex(4),
        model=model,
        api_key=api_key,
        patience=Patience(timeout_s=timeout, attempts_max=attempts),
    )
    plans, trace_row = load_plans(trace, shape, programs=programs, only=only or (), seed=seed)
    result = new_result(trace_row, arms, shape=shape, options=options)
    recorder = Recorder(result, path=out)
    # Before anything is measured: a file that cannot be written must not cost a run.
    recorder.save()
    was_stopped = run_replay(plans, arms, options, recorder, is_quiet=as_json)
    if as_json:
        typer.echo(msgspec.json.encode(result.summary))
    else:
        print_summary(result, console=Console())
        if out is not None:
            typer.echo(f"results: {out}")
    if was_stopped:
        raise typer.Exit(INTERRUPTED)
    if any(arm.errors for arm in result.summary):
        raise typer.Exit(1)


def parse_arms(
    urls: Sequence[str], *, ids: Sequence[str] = (), reset: Sequence[str] = ()
) -> list[live.Arm]:
    """`[NAME=]URL` with what belongs to each arm. Raises ConfigError."""
    named: dict[str, str] = {}
    for number, text in enumerate(urls, start=1):
        name, found, rest = text.partition("=")
        if not found or "://" in name:
            name, rest = ("target" if len(urls) == 1 else f"arm-{number}"), text
        if not rest.startswith(("http://", "https://")):
            raise ConfigError(f"not a URL: {rest!r} (write NAME=http://host:port)")
        if name in named:
            raise ConfigError(f"two arms are called {name!r}")
        named[name] = rest
    styles = _for_arms(ids, named)
    resets = _for_arms(reset, named)
    for chosen in styles.values():
        style(chosen)
    return [
        live.Arm(name=n, url=u, ids=styles.get(n, "none"), reset_url=resets.get(n))
        for n, u in named.items()
    ]


def _for_arms(values: Sequence[str], arms: dict[str, str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in values:
        name, found, rest = text.partition("=")
        if found and "://" not in name:
            if name not in arms:
                raise ConfigError(f"{text!r}: no arm is called {name!r} ({', '.join(arms)})")
            chosen[name] = rest
        else:
            chosen |= {arm: text for arm in arms if arm not in chosen}
    return chosen


def load_plans(
    trace: Path,
    shape: ShapeOptions,
    *,
    programs: int | None,
    only: Sequence[str] = (),
    seed: int = 0,
) -> tuple[list[PlannedProgram], TraceRow]:
    """Read, choose and shape. Raises TraceError, or ConfigError when nothing is left."""
    recordings = list(read_trace(trace))
    chosen = sample_programs(
        group_programs(recordings), count=programs, rng=random.Random(f"sample/{seed}"), only=only
    )
    plans = plan_programs(chosen, shape, shared=SharedPrompts.learn(recordings))
    if not plans:
        raise ConfigError(f"{trace}: every program's first call exceeds --max-context")
    return plans, TraceRow(
        name=trace.name,
        sha256=sha256_of(trace),
        programs=len(plans),
        calls=sum(plan.calls for plan in plans),
        is_synthetic=all(recording.synthetic for recording in recordings),
    )


def new_result(
    trace: TraceRow,
    arms: Sequence[live.Arm],
    *,
    shape: ShapeOptions,
    options: live.ReplayOptions,
) -> Result:
    """An empty result that says how it came about. Keys and tokens are not kept."""
    return Result(
        schema=SCHEMA,
        command=_without_secrets(sys.argv),
        seed=options.seed,
        versions={
            "agentsched": metadata.version("agentsched"),
            "aiohttp": metadata.version("aiohttp"),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        trace=trace,
        options={
            "scale_tokens": shape.scale_tokens,
            "scale_time": shape.scale_time,
            "gap_cap_s": shape.gap_cap_s,
            "steps_max": shape.steps_max,
            "context_tokens_max": shape.context_tokens_max,
            "dialect": str(options.dialect),
            "arrivals": str(options.arrivals),
            "repeat": options.repeat,
            "alternate": options.alternate,
            "salt": options.salt,
        },
        arms=[ArmRow(name=arm.name, url=arm.url, ids=arm.ids) for arm in arms],
    )


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    kept: list[str] = []
    hide_next = False
    for argument in arguments:
        if hide_next:
            kept.append("...")
            hide_next = False
            continue
        if argument.startswith("--api-key="):
            argument = "--api-key=..."
        hide_next = argument == "--api-key"
        kept.append(argument)
    return kept


def run_replay(
    plans: Sequence[PlannedProgram],
    arms: Sequence[live.Arm],
    options: live.ReplayOptions,
    recorder: Recorder,
    *,
    is_quiet: bool = False,
) -> bool:
    """Replay with a progress bar (on a terminal only); whether it was stopped by Ctrl-C."""
    with _progress(is_quiet=is_quiet) as on_progress:
        return asyncio.run(
            until_signal(live.replay_all(plans, arms, options, recorder, on_progress=on_progress))
        )


async def until_signal(work: Coroutine[None, None, None]) -> bool:
    """Await `work`, cancelling it on SIGINT or SIGTERM; whether that happened.

    Errors of the work itself are passed on.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    return stopped


@contextlib.contextmanager
def _progress(*, is_quiet: bool) -> Iterator[Callable[[live.Progress], None]]:
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} calls {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[int, TaskID] = {}

        def show(progress: live.Progress) -> None:
            run = progress.run.run
            if run not in tasks:
                name = f"{progress.run.arm} ({run + 1} of {progress.runs})"
                tasks[run] = bar.add_task(name, total=progress.calls_planned, note="")
            note = f"{progress.programs_done}/{progress.programs_planned} programs"
            if progress.errors:
                note += f", {progress.errors} errors"
            bar.update(tasks[run], completed=progress.calls_done, note=note)

        yield show
