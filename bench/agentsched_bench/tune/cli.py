"""`agentsched tune`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import metadata
from itertools import islice
from math import inf
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agentsched.model import AgentschedError, ConfigError, parse_span
from agentsched_bench.live import options
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Scenario
from agentsched_bench.sim.cli import load, shape_for, with_loops
from agentsched_bench.sim.specs import digest_of, fleet_of
from agentsched_bench.tune.sweep import (
    METRICS,
    SCHEMA,
    Trial,
    Tuning,
    Verdict,
    candidates,
    halves,
    judge,
    judged_score,
    try_arm,
)
from agentsched_bench.whole_file import only_writer, refuse_unwritable, write_whole

INTERRUPTED: Final = 130
_NOT_ALWAYS_KNOWN: Final = {"engines_sha256", "agentsched"}

Sweeps = Annotated[
    list[str],
    typer.Option("--sweep", metavar="POINT.PARAMETER=V1|V2", help="What to vary. Repeatable."),
]
Profile = Annotated[str, typer.Option(help="The profile whose parameters are varied.")]
Metric = Annotated[str, typer.Option(help=f"What to make small: {', '.join(METRICS)}.")]
Sample = Annotated[int | None, typer.Option(min=1, help="Try so many combinations, by lot.")]
Specs = Annotated[
    list[str] | None,
    typer.Option("--engine", metavar="SPEC", help="As in `simulate`; default cpu-2core."),
]
Blocks = Annotated[int | None, typer.Option(min=1, help="Tokens per block.")]
Copies = Annotated[int | None, typer.Option(min=1, help="Programs in each simulation.")]
MaxWait = Annotated[str, typer.Option(help="The bound on a held step's wait.")]
Seeds = Annotated[str, typer.Option(help="Comma-separated; a run of every candidate for each.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")]


def tune(
    trace: options.Trace,
    *,
    sweep: Sweeps,
    profile: Profile = "agentsched",
    metric: Metric = "slowdown_p95",
    sample: Sample = None,
    engine: Specs = None,
    block_size: Blocks = None,
    arrivals: options.ArrivalsText = "poisson:0.25",
    programs: Copies = None,
    only: options.Only = None,
    steps: options.Steps = None,
    scale_tokens: options.ScaleTokens = 8.0,
    scale_time: options.ScaleTime = 2.0,
    gap_cap: options.GapCap = 60.0,
    max_wait: MaxWait = "15s",
    seeds: Seeds = "1,2,3,4,5",
    jobs: Jobs = 1,
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Sweep policy parameters in the simulator; the best is judged on programs kept aside.

    With --out the sweep can be stopped and goes on where it was when called again.
    """
    if metric not in METRICS:
        raise ConfigError(f"no metric {metric!r} (there are: {', '.join(METRICS)})")
    fleet = fleet_of(engine or ["cpu-2core"], block_size=block_size)
    shape = shape_for(fleet, tokens=scale_tokens, time=scale_time, gap_cap=gap_cap, steps=steps)
    plans, row = load(trace, shape, only=only or ())
    scenario = Scenario(
        plans=plans,
        engines=fleet.engines,
        traits=fleet.traits,
        arrivals=parse_arrivals(arrivals),
        programs=programs,
        wait_ns_max=parse_span(max_wait),
    )
    known: dict[str, object] = {
        "trace": row.sha256,
        "engines": engine or ["cpu-2core"],
        "block_size": block_size,
        "arrivals": arrivals,
        "programs": programs,
        "only": list(only or ()),
        "steps": steps,
        "scale_tokens": scale_tokens,
        "scale_time": scale_time,
        "gap_cap": gap_cap,
        "max_wait": max_wait,
        "profile": profile,
        "engines_sha256": digest_of(fleet.engines),
        "agentsched": metadata.version("agentsched"),
    }
    scenario = with_loops(scenario, trace)
    fresh = Tuning(
        command=["agentsched", *sys.argv[1:]],
        options=known,
        metric=metric,
        candidates=candidates(profile, sweep, sample=sample, seed=0),
    )
    with only_writer(out):
        tuning = _resumed(fresh, out)
        was_stopped = run(tuning, scenario, _seeds(seeds), jobs=jobs, out=out, is_quiet=as_json)
    _show(tuning, as_json=as_json)
    if was_stopped:
        raise typer.Exit(INTERRUPTED)


def _show(tuning: Tuning, *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(tuning.verdict))
    else:
        print_tuning(tuning, console=Console())


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ConfigError(f"not seeds: {text!r} (write 1,2,3)") from None


def _resumed(fresh: Tuning, out: Path | None) -> Tuning:
    """What an earlier call had found, if it asked the same."""
    if out is None or not out.exists():
        return fresh
    try:
        old = msgspec.json.decode(out.read_bytes(), type=Tuning)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{out} is no tuning result: {error}") from error
    # Older files do not say what their engines were, nor who simulated them.
    asked = {key: value for key, value in fresh.options.items() if key in old.options}
    known = set(fresh.options) - _NOT_ALWAYS_KNOWN <= set(old.options)
    if old.schema != SCHEMA or not known or old.options != asked:
        raise ConfigError(f"{out} is of another sweep: choose another file")
    for trial in old.trials:
        trial.score = judged_score(trial.row, fresh.metric)
    fresh.trials = list(old.trials)
    return fresh


def run(
    tuning: Tuning,
    scenario: Scenario,
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    out: Path | None = None,
    is_quiet: bool = True,
) -> bool:
    """Try every candidate, then judge the best; whether it was stopped by Ctrl-C."""
    refuse_unwritable(out)
    default = tuning.candidates[0]
    tuning.seeds = list(seeds)
    parts = halves(scenario)
    total = len(seeds) * (len(tuning.candidates) + 2)
    try:
        with _progress(total, is_quiet=is_quiet) as step:
            _try_all(tuning, tuning.candidates, "tune", seeds, parts, jobs, out, step)
            best = min(tuning.candidates, key=lambda arm: tuning.mean(arm, "tune"))
            finalists = list(dict.fromkeys([best, default]))
            _try_all(tuning, finalists, "held-out", seeds, parts, jobs, out, step)
    except KeyboardInterrupt:
        _save(tuning, out)
        return True
    tuning.verdict = judge(tuning, best, default)
    _save(tuning, out)
    return False


def _try_all(
    tuning: Tuning,
    arms: Sequence[str],
    half: str,
    seeds: Sequence[int],
    parts: dict[str, tuple[Scenario, dict[str, float]]],
    jobs: int,
    out: Path | None,
    step: Callable[[], None],
) -> None:
    done = tuning.done()
    wanted = [(arm, seed) for seed in seeds for arm in arms]
    left = [pair for pair in wanted if (pair[0], half, pair[1]) not in done]
    for _ in range(len(wanted) - len(left)):
        step()
    scenario, alone_s = parts[half]

    def keep(trial: Trial) -> None:
        tuning.trials.append(trial)
        _save(tuning, out)
        step()

    if jobs == 1:
        for arm, seed in left:
            keep(try_arm(arm, half, seed, scenario, alone_s, tuning.metric))
        return
    with ProcessPoolExecutor(max_workers=jobs, initializer=_ignore_interrupts) as pool:
        keep_all(
            (
                pool.submit(try_arm, arm, half, seed, scenario, alone_s, tuning.metric)
                for arm, seed in left
            ),
            keep,
            at_once=jobs,
        )


def keep_all(
    trials: Iterator[Future[Trial]], keep: Callable[[Trial], None], *, at_once: int
) -> None:
    """Keep every trial as it ends; so many are begun at a time, by taking them.

    After an error or Ctrl-C no other begins; what those come to that have begun is kept as well.

    Raises:
        AgentschedError: a process was ended from outside.
    """
    running: set[Future[Trial]] = set()
    try:
        while True:
            running.update(islice(trials, at_once - len(running)))
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                running.remove(future)
                keep(future.result())
    except BaseException as error:
        for future in wait(running).done:
            if future.exception() is None:
                keep(future.result())
        if isinstance(error, BrokenProcessPool):
            raise AgentschedError(
                "a process of the sweep was ended from outside, for want of memory perhaps "
                "(--jobs 1 takes the least)"
            ) from error
        raise


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _save(tuning: Tuning, out: Path | None) -> None:
    """A stop in the middle loses nothing."""
    # Of another sweep there may be trials, too: they stand behind.
    places = {arm: place for place, arm in enumerate(tuning.candidates)}
    last = len(places)
    # Also without a file: in which order processes end must not show in a sum.
    tuning.trials.sort(key=lambda t: (t.half, places.get(t.arm, last), t.arm, t.seed))
    if out is not None:
        write_whole(out, msgspec.json.format(msgspec.json.encode(tuning), indent=1) + b"\n")


def print_tuning(tuning: Tuning, *, console: Console, rows: int = 12) -> None:
    """The best candidates, and what is to be thought of the very best."""
    complete = [arm for arm in tuning.candidates if tuning.has_all(arm, "tune")]
    ranked = sorted(complete, key=lambda arm: tuning.mean(arm, "tune"))
    table = Table(title=tuning.metric, title_justify="left", box=box.SIMPLE)
    table.add_column("candidate", overflow="fold")
    table.add_column("tuning half", justify="right")
    table.add_column("held out", justify="right")
    held = {arm for arm in tuning.candidates if tuning.has_all(arm, "held-out")}
    shown = ranked[:rows] + [arm for arm in tuning.candidates[:1] if arm in ranked[rows:]]
    for arm in shown:
        aside = _score(tuning.mean(arm, "held-out")) if arm in held else ""
        table.add_row(Text(arm), _score(tuning.mean(arm, "tune")), aside)
    console.print(table)
    if tuning.verdict is not None:
        said = f"{tuning.verdict.text}{_how_sure(tuning.verdict)}"
        console.print(said, highlight=False, markup=False)


def _how_sure(verdict: Verdict) -> str:
    """The ratio and its interval; with a single seed there is none."""
    if verdict.ratio_low < verdict.ratio_high:
        interval = f"95 % between {verdict.ratio_low:.3f} and {verdict.ratio_high:.3f}"
        return f" (ratio {verdict.ratio:.3f}, {interval})"
    return "" if verdict.ratio == 1.0 else f" (ratio {verdict.ratio:.3f})"


def _score(mean: float) -> str:
    return "gave up" if mean == inf else f"{mean:.3f}"


@contextmanager
def _progress(total: int, *, is_quiet: bool) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield lambda: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} simulations"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("tuning", total=total)
        yield lambda: bar.advance(task)
