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
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Final

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
from agentsched_bench.live import options
from agentsched_bench.live import replay as live
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.live.client import Patience
from agentsched_bench.live.identity import style
from agentsched_bench.live.results import SCHEMA, ArmRow, Recorder, Result, TraceRow
from agentsched_bench.report.table import print_summary
from agentsched_bench.workload.loops import closed_loops
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
    trace: options.Trace,
    *,
    url: options.Urls,
    ids: options.Ids = None,
    reset: options.Resets = None,
    programs: options.Programs = None,
    only: options.Only = None,
    steps: options.Steps = None,
    scale_tokens: options.ScaleTokens = 8.0,
    scale_time: options.ScaleTime = 2.0,
    gap_cap: options.GapCap = 60.0,
    max_context: options.MaxContext = None,
    arrivals: options.ArrivalsText = "closed:8",
    dialect: options.Dialects = options.Spoken.CHAT,
    echo: options.Echoes = options.Echo.RECORDED,
    model: options.Model = None,
    seed: options.Seed = 0,
    repeat: options.Repeat = 1,
    alternate: options.Alternate = True,
    timeout: options.Timeout = 600.0,
    attempts: options.Attempts = 6,
    api_key: options.ApiKey = None,
    out: options.Out = None,
    as_json: options.AsJson = False,
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
    chosen = live.ReplayOptions(
        dialect=Dialect(dialect),
        arrivals=parse_arrivals(arrivals),
        seed=seed,
        repeat=repeat,
        alternate=alternate,
        salt=salt_of(arms),
        model=model,
        api_key=api_key,
        patience=Patience(timeout_s=timeout, attempts_max=attempts),
        echoes_whole=echo is options.Echo.WHOLE,
    )
    plans, row = load_plans(trace, shape, programs=programs, only=only or (), seed=seed)
    plans, pools = closed_loops(plans, trace)
    chosen = replace(
        chosen,
        pools=pools,
        tenants={plan.program: plan.tenant for plan in plans if plan.tenant is not None},
        without_ids=frozenset(plan.program for plan in plans if not plan.has_ids),
    )
    recorder = Recorder(new_result(row, arms, shape=shape, replay_options=chosen), path=out)
    # Before anything is measured: a file that cannot be written must not cost a run.
    recorder.save()
    with showing_progress(is_quiet=as_json) as show:
        work = live.replay_all(plans, arms, chosen, recorder, on_progress=show)
        was_stopped = asyncio.run(until_signal(work))
    finish(recorder.result, out=out, as_json=as_json, was_stopped=was_stopped)


def finish(
    result: Result, *, out: Path | None, as_json: bool, was_stopped: bool, note: str = ""
) -> None:
    """Print what came out with a `note` for people, and end with the exit code that fits.

    Raises:
        typer.Exit: 130 when stopped by a signal, 1 when calls failed.
    """
    if as_json:
        typer.echo(msgspec.json.encode(result.summary))
    else:
        console = Console()
        print_summary(result, console=console)
        if note:
            console.print(note, highlight=False, markup=False)
        if out is not None:
            typer.echo(f"results: {out}")
    if was_stopped:
        raise typer.Exit(INTERRUPTED)
    if any(arm.errors for arm in result.summary):
        raise typer.Exit(1)


def new_salt() -> str:
    """A salt that no earlier replay had, so that no cache remembers one; the result keeps it."""
    return secrets.token_hex(4)


def salt_of(arms: Sequence[live.Arm]) -> str | None:
    """None, for one content in all runs, where every arm's cache is emptied before each of them."""
    return None if all(arm.reset_url is not None for arm in arms) else new_salt()


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
    replay_options: live.ReplayOptions,
) -> Result:
    """An empty result that says how it came about. Keys and tokens are not kept."""
    return Result(
        schema=SCHEMA,
        command=_without_secrets(sys.argv),
        seed=replay_options.seed,
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
            "dialect": str(replay_options.dialect),
            "arrivals": str(replay_options.arrivals),
            "repeat": replay_options.repeat,
            "alternate": replay_options.alternate,
            "salt": replay_options.salt,
            "echoes_whole": replay_options.echoes_whole,
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
def showing_progress(*, is_quiet: bool) -> Iterator[Callable[[live.Progress], None]]:
    """A progress bar on the terminal, if there is one; yields what to call with news."""
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
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
