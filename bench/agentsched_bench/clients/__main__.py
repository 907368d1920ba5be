"""`python -m agentsched_bench.clients DIR`: how well clients are told apart.

DIR holds recorded clients, or real ones that `scripts/install-clients` put there: those are run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from agentsched_bench.clients.cache_hits import Hits, measure
from agentsched_bench.clients.command_lines import is_installation
from agentsched_bench.clients.evaluate import Score, evaluate
from agentsched_bench.clients.trial import try_all


def table(scores: list[Score], *, title: str) -> Table:
    """The scores as a table, a client a row."""
    shown = Table(title=title)
    for name in (
        "client",
        "requests",
        "steps",
        "conversations",
        "sub-agents",
        "compactions",
        "auxiliary",
        "classes",
        "retries",
        "forked",
        "merged",
    ):
        shown.add_column(name, justify="left" if name == "client" else "right")
    for score in scores:
        shown.add_row(
            score.client,
            str(score.requests),
            *(
                f"{right}/{count}" if count else "-"
                for right, count in (
                    score.steps,
                    score.conversations,
                    score.starts,
                    score.compactions,
                    score.auxiliary,
                    score.classes,
                )
            ),
            str(score.retries),
            str(score.forked),
            str(score.merged),
        )
    return shown


def hits_table(found: list[Hits]) -> Table:
    """What engines' caches held against what was expected, a client a row, in tokens a step."""
    shown = Table(title="Tokens to compute, a step")
    for name in ("client", "steps", "prompt", "computed", "expected", "off", "of the prompt"):
        shown.add_column(name, justify="left" if name == "client" else "right")
    for one in filter(lambda hits: hits.steps, found):
        sums = (one.prompt, one.computed, one.expected, one.off)
        means = (f"{total / one.steps:.0f}" for total in sums)
        shown.add_row(one.client, str(one.steps), *means, f"{one.off / one.prompt:.0%}")
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Exit status 1 where a request was put into a stranger's program."""
    parser = argparse.ArgumentParser(prog="python -m agentsched_bench.clients", description=__doc__)
    parser.add_argument("directory", type=Path, help="one *.jsonl.gz per client, or .clients")
    parser.add_argument("--no-ids", action="store_true", help="take every id out first")
    parser.add_argument("--joint", action="store_true", help="all clients through one index")
    parser.add_argument(
        "--restarts", action="store_true", help="start again, from a store, before each request"
    )
    parser.add_argument("--gap", type=float, default=1_200.0, help="seconds between two cases")
    parser.add_argument(
        "--cache", action="store_true", help="instead: expected against real cache hits"
    )
    parser.add_argument("--notes", action="store_true", help="name each thing that went wrong")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if is_installation(options.directory):
        return try_all(options.directory, with_ids=not options.no_ids)
    if not options.directory.is_dir():
        parser.error(f"not a folder: {options.directory} (give one with *.jsonl.gz files)")
    if options.cache:
        found = asyncio.run(measure(sorted(options.directory.glob("*.jsonl.gz"))))
        if options.json:
            sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        else:
            Console().print(hits_table(found))
        return 0
    scores = evaluate(
        options.directory,
        with_ids=not options.no_ids,
        gap_s=options.gap,
        is_joint=options.joint,
        restarts=options.restarts,
    )
    if options.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(scores), indent=2) + b"\n")
    else:
        console = Console()
        title = "without ids" if options.no_ids else "with ids"
        if options.restarts:
            title += ", restarting before each request"
        console.print(table(scores, title=f"Clients recognised {title}"))
        if options.notes:
            for score in scores:
                for note in score.notes:
                    console.print(f"{score.client} {note}", highlight=False)
    return 1 if any(score.merged for score in scores) else 0


if __name__ == "__main__":
    sys.exit(main())
