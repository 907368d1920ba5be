"""A comparison on the terminal: what runs now, how long it will take, and the table at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentsched_bench.compare.machine import disturbances
from agentsched_bench.compare.results import ArmFigures, CompareResult, left_out
from agentsched_bench.compare.run import Show
from agentsched_bench.workload.statistics import Spread

#: Characters between two columns.
_BETWEEN: Final = 2


class Estimate:
    """How long the rest will take: each arm like its runs so far, others like the average.

    `expected_s` is a first guess for a run, while none has ended.
    """

    def __init__(self, order: Sequence[str], *, expected_s: float) -> None:
        self._left = list(order)
        self._expected_s = expected_s
        self._took: dict[str, list[float]] = {}

    def ended(self, side: str, *, took_s: float) -> None:
        """A run of this side is over."""
        self._left.remove(side)
        self._took.setdefault(side, []).append(took_s)

    def left_s(self, *, in_run_s: float = 0.0) -> float:
        """Seconds until all is done, `in_run_s` into the present run."""
        everything = [value for own in self._took.values() for value in own]
        average = sum(everything) / len(everything) if everything else self._expected_s
        total = 0.0
        for side in self._left:
            own = self._took.get(side)
            total += sum(own) / len(own) if own else average
        return max(0.0, total - in_run_s)


def span(value_s: float) -> str:
    """A length of time for people."""
    if value_s < 1:
        return f"{value_s * 1000:.0f} ms"
    if value_s < 300:
        return f"{value_s:.1f} s" if value_s < 10 else f"{value_s:.0f} s"
    return f"{value_s / 60:.0f} min" if value_s < 5400 else f"{value_s / 3600:.1f} h"


class _Terminal:
    """Progress with a bar on a terminal."""

    def __init__(self, bar: Progress, estimate: Estimate) -> None:
        self._bar = bar
        self._estimate = estimate
        self._task: TaskID | None = None
        self._begun = time.monotonic()

    def begin(self, *, number: int, runs: int, side: str, repeat: int, doing: str) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._begun = time.monotonic()
        title = f"run {number + 1} of {runs}: {side}, repeat {repeat + 1}, {doing}"
        self._task = self._bar.add_task(title, total=None, note=self._note(""))

    def progress(self, *, done: int, planned: int, note: str) -> None:
        if self._task is not None:
            self._bar.update(
                self._task, completed=done, total=planned, note=self._note(f"{note}, ")
            )

    def end(self, *, side: str, took_s: float) -> None:
        self._estimate.ended(side, took_s=took_s)

    def _note(self, text: str) -> str:
        left_s = self._estimate.left_s(in_run_s=time.monotonic() - self._begun)
        return f"{text}about {span(left_s)} left in all"


class _Lines:
    """Progress as one line a run, for logs."""

    def __init__(self, estimate: Estimate, write: Callable[[str], None]) -> None:
        self._estimate = estimate
        self._write = write

    def begin(self, *, number: int, runs: int, side: str, repeat: int, doing: str) -> None:
        if doing != "starting":
            left = span(self._estimate.left_s())
            what = f", {doing}" if doing.startswith("again") else ""
            self._write(
                f"run {number + 1} of {runs}: {side}, repeat {repeat + 1}{what} (about {left} left)"
            )

    def progress(self, *, done: int, planned: int, note: str) -> None:
        """Lines are for what lasts."""

    def end(self, *, side: str, took_s: float) -> None:
        self._estimate.ended(side, took_s=took_s)


@contextlib.contextmanager
def showing(estimate: Estimate, *, is_quiet: bool) -> Iterator[Show]:
    """Show progress on standard error until the block ends."""
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield _Lines(estimate, lambda text: None if is_quiet else print(text, file=console.file))
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Terminal(bar, estimate)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _tail(values: Sequence[float]) -> str:
    return " / ".join(span(value) for value in values)


def _ratio(arm: ArmFigures) -> str:
    if arm.jct is None:
        return "1"
    if not arm.jct.pairs:
        return "-"
    return f"{arm.jct.value:.2f}"


def _interval(arm: ArmFigures) -> str:
    if arm.jct is None or not arm.jct.pairs:
        return "-"
    return f"{arm.jct.low:.2f} to {arm.jct.high:.2f}"


def _slowdown(arm: ArmFigures) -> str:
    slow = arm.slowdown
    return "-" if slow is None else f"{slow.p50:.2f} / {slow.p95:.2f} / {slow.p99:.2f}"


def _noise(arm: ArmFigures) -> str:
    return "-" if arm.noise is None else f"{arm.noise.value:.2f}"


def _spread(means: Sequence[float]) -> str:
    """Of runs in which a program completed: without any there is no mean, and 0 stands there."""
    known = [mean for mean in means if mean]
    return "-" if len(known) < 2 else f"{span(min(known))} to {span(max(known))}"


def _of(values: Spread, *shown: float) -> str:
    """These figures of a distribution; nothing is no time at all, which would look fast."""
    return _tail(shown) if values.count else "-"


def _told(arm: ArmFigures, tokens: int | None) -> str:
    """What follows from the cached tokens; where no engine told them, older results have 0."""
    return "-" if arm.cached_share is None else _number(tokens)


def unlike_runs(summary: Sequence[ArmFigures]) -> str:
    """What to know of figures where arms have unlike numbers of runs; empty where they have not."""
    if len({arm.runs for arm in summary}) < 2:
        return ""
    counts = ", ".join(f"{arm.arm} {arm.runs}" for arm in summary)
    return (
        f"Arms have unlike numbers of runs ({counts}): counts are sums over them, and only ratios "
        "are of the same repeats."
    )


def _held(arm: ArmFigures) -> str:
    return "-" if arm.held_s is None else _tail((arm.held_s.p99, arm.held_s.max))


ROWS: Final[Sequence[tuple[str, Callable[[ArmFigures], str]]]] = (
    ("JCT ratio", _ratio),
    ("  95 % interval", _interval),
    ("verdict", lambda a: str(a.verdict) if a.verdict else "baseline"),
    ("programs done", lambda a: f"{a.completed} of {a.completed + a.failed}"),
    ("JCT mean", lambda a: _of(a.jct_s, a.jct_s.mean)),
    ("  p50/95/99", lambda a: _of(a.jct_s, a.jct_s.p50, a.jct_s.p95, a.jct_s.p99)),
    ("  means of repeats", lambda a: _spread(a.run_jct_s)),
    ("  repeat over repeat", _noise),
    ("slowdown p50/95/99", _slowdown),
    ("in time", lambda a: _percent(a.in_time_share)),
    ("TTFT p50/99/max", lambda a: _of(a.ttft_s, a.ttft_s.p50, a.ttft_s.p99, a.ttft_s.max)),
    ("held p99/max", _held),
    ("bypassed, most", lambda a: _number(a.bypassed_max)),
    ("prompt cached", lambda a: _percent(a.cached_share)),
    ("  computed", lambda a: _told(a, a.computed_tokens)),
    ("  computed again", lambda a: _told(a, a.again_tokens)),
    ("output tokens/s", lambda a: f"{a.throughput_tokens_s:.1f}"),
    ("preemptions", lambda a: _number(a.preemptions)),
    ("engine busy", lambda a: _percent(a.busy_share)),
    ("Jain (slowdowns)", lambda a: "-" if a.jain is None else f"{a.jain:.3f}"),
    ("tenants' gap", lambda a: _number(a.share_gap_tokens)),
    ("calls recognised", lambda a: _percent(a.recognised_share)),
    ("runs, machine stalled", lambda a: _number(a.stalled) if a.stalled else "-"),
    ("calls/errors/retries", lambda a: f"{a.calls} / {a.errors} / {a.retries}"),
)


def tables_of(result: CompareResult, *, width: int) -> list[Table]:
    """The figures, one column for each arm; rows that say nothing of any arm are left out.

    As many tables as it takes for their cells to stand on one line each, within `width` characters.
    """
    kind = ", synthetic" if result.trace.is_synthetic else ""
    title = (
        f"{result.name} ({result.how}{kind}): {result.trace.programs} programs, "
        f"{result.trace.calls} calls"
    )
    rows = [(name, [show(arm) for arm in result.summary]) for name, show in ROWS]
    rows = [(name, cells) for name, cells in rows if any(cell != "-" for cell in cells)]
    return split_tables(title, [arm.arm for arm in result.summary], rows, width=width)


def split_tables(
    title: str, arms: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, width: int
) -> list[Table]:
    """Rows of a name and a cell for each arm, as tables whose cells are not cut off in `width`."""
    names = max(len(name) for name, _ in rows)
    widths = [max(len(cells[n]) for _, cells in rows) for n in range(len(arms))]
    tables: list[Table] = []
    for group in in_groups(widths, room=width - names - 2 * _BETWEEN, between=_BETWEEN):
        # Names are no markup, here and below.
        table = Table(
            title=Text("" if tables else title),
            title_justify="left",
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
        )
        table.add_column("", no_wrap=True)
        for number in group:
            arm = Text(arms[number])
            table.add_column(arm, justify="right", overflow="fold", min_width=widths[number])
        for name, cells in rows:
            table.add_row(name, *(cells[number] for number in group))
        tables.append(table)
    return tables


def in_groups(widths: Sequence[int], *, room: int, between: int) -> list[list[int]]:
    """Columns of these widths in groups that have room, at least one in each."""
    groups: list[list[int]] = []
    left = 0
    for number, width in enumerate(widths):
        left -= width + between
        if not groups or left < 0:
            groups.append([])
            left = room - width - between
        groups[-1].append(number)
    return groups


def print_comparison(result: CompareResult, *, console: Console) -> None:
    """The table, a sentence for each arm, and what is missing."""
    if result.summary:
        for table in tables_of(result, width=console.width):
            console.print(table)
    for arm in result.summary:
        if arm.jct is not None:
            console.print(f"{arm.arm}: {arm.sentence}", highlight=False, markup=False)
    for line in left_out(result):
        console.print(line, highlight=False, markup=False)
    for note in result.notes:
        console.print(note, highlight=False, markup=False)
    if unlike := unlike_runs(result.summary):
        console.print(unlike, highlight=False, markup=False)
    for line in disturbances(result):
        console.print(f"disturbed: {line}", highlight=False, markup=False)
    if any(arm.stalled for arm in result.summary):
        console.print("The same command with --redo-stalled makes the runs anew that stood still.")
    if not result.is_complete:
        console.print("Not all runs are done: the same command goes on where this one stopped.")
    _print_errors(result, console)


def _print_errors(result: CompareResult, console: Console) -> None:
    errors: dict[str, int] = {}
    for run in result.runs:
        for call in run.calls:
            if call.error and call.error != "interrupted":
                key = f"{run.arm}: {call.error[:160]}"
                errors[key] = errors.get(key, 0) + 1
    for text, count in sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:5]:
        console.print(f"{count} x {text}", highlight=False, markup=False)
