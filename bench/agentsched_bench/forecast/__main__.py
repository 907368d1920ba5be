"""Examine the forecasts on recorded programs that they were not learnt from.

    python -m agentsched_bench.forecast TRACE [TRACE ...] [--out bench/results/forecast-DATE.json]

Programs are split by a hash of their id, seven learnt from for three held out. For each trace: the
next tool (share of likeliest guesses that came true, log-loss) and the time until the program comes
back (log-loss over quarter-octave bins, and how often its quantiles held), for a constant, for each
level of keys, and for the level that the contest picks by itself on the learnt part. And how many
steps a program has still to take, before each of them: the mean log error, and how often it is told
which of two programs has less to come.
"""

from __future__ import annotations

import argparse
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from agentsched.version import __version__
from agentsched_bench.forecast.cases import read_cases, split
from agentsched_bench.forecast.evaluate import Report, evaluate
from agentsched_bench.forecast.remaining import RemainingReport, read_lives

_SCHEMA = "agentsched-forecast/1"


def main(arguments: list[str] | None = None) -> int:
    """Evaluate, print tables, write JSON; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agentsched_bench.forecast",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    reports = []
    for path in chosen.traces:
        name = path.name.split(".")[0]
        reports.append(evaluate(name, *split(read_cases(path)), lives=read_lives(path)))
        _print(reports[-1])
    if chosen.out is not None:
        result = {
            "schema": _SCHEMA,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "python -m agentsched_bench.forecast "
            + " ".join(f"../shared/traces/{path.name}" for path in chosen.traces),
            "agentsched": __version__,
            "python": platform.python_version(),
            "reports": reports,
        }
        encoded = msgspec.json.encode(result)
        chosen.out.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    return 0


def _print(report: Report) -> None:
    console = Console(highlight=False)
    table = Table(box=None, title_justify="left", title=f"{report.trace}: {_said(report)}")
    for title in ("forecast", "accuracy", "nats a tool", "nats a gap", "p50", "p90", "p99 held"):
        table.add_column(title, justify="left" if title == "forecast" else "right")
    for name in dict.fromkeys((*report.next_tool, *report.gaps)):
        tool, gap = report.next_tool.get(name), report.gaps.get(name)
        table.add_row(
            name,
            f"{tool.accuracy:.1%}" if tool else "",
            f"{tool.log_loss:.3f}" if tool else "",
            f"{gap.log_loss:.3f}" if gap else "",
            *([f"{held:.1%}" for held in gap.coverage.values()] if gap else []),
        )
    console.print(table)
    picked = "; ".join(f"{what}: {level}" for what, level in report.picked.items())
    console.print(f"picked: {picked}; learning costs {report.learnt_us} us a step\n")
    if report.remaining is not None:
        _print_remaining(report.remaining, console)


def _print_remaining(report: RemainingReport, console: Console) -> None:
    title = (
        f"steps to come, {report.states_held_out:,} times asked; held-out programs have "
        f"{report.steps_p10} / {report.steps_p50} / {report.steps_p90} steps (p10, p50, p90)"
    )
    table = Table(box=None, title_justify="left", title=title)
    for column in ("forecast", "log error", "pairs in order"):
        table.add_column(column, justify="left" if column == "forecast" else "right")
    for name, score in report.forecasts.items():
        table.add_row(name, f"{score.log_error:.3f}", f"{score.in_order:.1%}")
    console.print(table)
    console.print()


def _said(report: Report) -> str:
    return (
        f"{report.programs_learnt} programs learnt, {report.programs_held_out} held out "
        f"({report.tools_held_out:,} tools of {report.distinct_tools} kinds, "
        f"{report.gaps_held_out:,} gaps)"
    )


if __name__ == "__main__":
    sys.exit(main())
