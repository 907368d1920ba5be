"""Retention policies against Bélády on recorded programs, at their true sizes.

    python -m agentsched_bench.retention TRACE [TRACE ...] [--out bench/results/retention-DATE.json]

Programs are split by a hash of their id, seven learnt from for three judged. All caches see one
string of references: Poisson arrivals, calls that take as long whatever is cached. The cost is
tokens computed again: those that a conversation had computed before. Numbers are multiples of the
clairvoyant's cost at the same pool, medians over seeds. A pool holds the calls under way (that is
the admission's affair) and a share of what the paused conversations will come back for.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
import xxhash
from rich.console import Console
from rich.table import Table

from agentsched.policy import Choice
from agentsched.version import __version__
from agentsched_bench.retention.reference import Reference, make_reference
from agentsched_bench.retention.study import ARMS, BELADY, SPLIT, Arm, play
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.trace import group_programs, read_trace

_SCHEMA: Final = "agentsched-retention/1"


def main(arguments: list[str] | None = None) -> int:
    """Study, print tables, write JSON; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agentsched_bench.retention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--programs", type=int, default=60, help="judged programs (default 60)")
    parser.add_argument("--learnt", type=int, default=80, help="programs learnt from (default 80)")
    parser.add_argument("--pools", type=float, nargs="+", default=[0.1, 0.3, 0.6])
    parser.add_argument("--live", type=float, nargs="+", default=[8.0, 24.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gap-cap", type=float, default=60.0, help="seconds (default 60)")
    parser.add_argument("--arms", nargs="+", help="some of the arms (default: all)")
    parser.add_argument("--split", action="store_true", help="what `value` loses, and to what")
    parser.add_argument("--param", nargs="*", default=[], help="name=number of `value`, to tune it")
    parser.add_argument("--tune", action="store_true", help="judge on programs of the learnt part")
    chosen = parser.parse_args(arguments)
    known = SPLIT if chosen.split else ARMS
    unknown = sorted(set(chosen.arms or ()) - {arm.name for arm in known})
    if unknown:
        names = ", ".join(arm.name for arm in known)
        parser.error(f"no arm {', '.join(unknown)} (there are: {names})")
    arms = [arm for arm in known if not chosen.arms or arm.name in (*chosen.arms, BELADY)]
    if chosen.param:
        given = {k: float(v) for k, v in (pair.split("=") for pair in chosen.param)}
        arms.append(Arm(name="tuned", choice=Choice(name="value", params=given)))
    rows: list[dict[str, Any]] = []
    for path in chosen.traces:
        found = list(_trace(path, chosen, arms))
        rows += found
        _print(path.name.split(".")[0], found, arms)
    if chosen.out is not None:
        result = {
            "schema": _SCHEMA,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": _command(chosen),
            "agentsched": __version__,
            "python": platform.python_version(),
            "rows": rows,
        }
        encoded = msgspec.json.encode(result)
        chosen.out.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    return 0


def _command(chosen: argparse.Namespace) -> str:
    """All that decides the numbers, as one would write it."""
    parts = ["python -m agentsched_bench.retention"]
    parts += [f"../shared/traces/{path.name}" for path in chosen.traces]
    parts += [f"--programs {chosen.programs} --learnt {chosen.learnt} --seeds {chosen.seeds}"]
    parts += ["--live", *(f"{live:g}" for live in chosen.live)]
    parts += ["--pools", *(f"{share:g}" for share in chosen.pools)]
    parts += [f"--gap-cap {chosen.gap_cap:g}"]
    parts += ["--split"] if chosen.split else []
    parts += ["--arms", *map(shlex.quote, chosen.arms)] if chosen.arms else []
    parts += ["--param", *chosen.param] if chosen.param else []
    parts += ["--tune"] if chosen.tune else []
    return " ".join(parts)


def _trace(path: Path, chosen: argparse.Namespace, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    recordings = list(read_trace(path))
    options = ShapeOptions(scale_tokens=1.0, scale_time=1.0, gap_cap_s=chosen.gap_cap)
    shared = SharedPrompts.learn(recordings)
    plans = plan_programs(group_programs(recordings), options, shared=shared)
    plans = [plan for plan in plans if len(plan.main.calls) > 2]
    learnt = [plan for plan in plans if _is_learnt(plan)]
    held = learnt if chosen.tune else [plan for plan in plans if not _is_learnt(plan)]
    rows = []
    for seed in range(chosen.seeds):
        rng = Random(f"{path.name}/{seed}")
        first = rng.sample(learnt, min(chosen.learnt, len(learnt)))
        judged = rng.sample(held, min(chosen.programs, len(held)))
        for live in chosen.live:
            rate = live / statistics.fmean(_alone_s(plan) for plan in (*first, *judged))
            reference = make_reference(first, judged, rate=rate, rng=rng)
            capacities = {share: _capacity(reference, share) for share in chosen.pools}
            lanes = play(reference, arms=arms, capacities=capacities)
            for lane in lanes:
                optimum = next(
                    other.bill.again_tokens
                    for other in lanes
                    if other.arm == BELADY and other.share == lane.share
                )
                rows.append(
                    {
                        "trace": path.name.split(".")[0],
                        "seed": seed,
                        "live": live,
                        "pool_share": lane.share,
                        "pool_tokens": lane.pool.capacity,
                        "arm": lane.arm,
                        "prompt_tokens": lane.bill.prompt_tokens,
                        "computed_tokens": lane.bill.computed_tokens,
                        "again_tokens": lane.bill.again_tokens,
                        "of_optimum": lane.bill.again_tokens / max(1, optimum),
                        "excess_tokens": lane.bill.excess_tokens,
                        "calls": lane.bill.calls,
                    }
                )
    return rows


def _is_learnt(plan: PlannedProgram) -> bool:
    return xxhash.xxh3_64_intdigest(plan.program.encode()) % 10 < 7


def _capacity(reference: Reference, share: float) -> int:
    """A pool in which the calls under way fit, heads included, and this share of the pauses."""
    heads = sum(
        {m.begins.head: m.begins.head_tokens for m in reference.moments if m.begins}.values()
    )
    return round(heads + reference.running_tokens + share * reference.paused_tokens)


def _alone_s(plan: PlannedProgram) -> float:
    """About how long a program takes by itself."""
    return sum(c.pause_s + 0.15 + 0.02 * c.output_tokens for c in plan.main.calls)


def _print(trace: str, rows: Sequence[dict[str, Any]], arms: Sequence[Arm]) -> None:
    console = Console(highlight=False, width=140)
    table = Table(title=f"{trace}: tokens computed again, multiples of Bélády's")
    for heading in ("live", "pool", "optimum, share of prompts", *(a.name for a in arms[1:])):
        table.add_column(heading, justify="right")
    cells = sorted({(row["live"], row["pool_share"]) for row in rows})
    for live, share in cells:
        here = [r for r in rows if (r["live"], r["pool_share"]) == (live, share)]
        best = [r["again_tokens"] / r["prompt_tokens"] for r in here if r["arm"] == BELADY]
        ratios = [
            f"{statistics.median(r['of_optimum'] for r in here if r['arm'] == arm.name):.2f}"
            for arm in arms[1:]
        ]
        table.add_row(f"{live:g}", f"{share:g}", f"{statistics.median(best):.3f}", *ratios)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
