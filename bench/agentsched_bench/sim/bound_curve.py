"""The price of a wait bound: `python -m agentsched_bench.sim.bound_curve RESULT... -o PICTURE`.

Reads results of `agentsched simulate --max-wait SPAN --out FILE`, one for each bound, and draws the
mean and the p95 slowdown, with every seed as a point, and the longest wait for a first token, from
the first try on, whatever was told 429 in between, against the bound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agentsched.model import ConfigError, in_seconds, parse_span
from agentsched_bench.sim.results import SCHEMA, SimResult

ARM = "agentsched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one bound came to; lists are by seed."""

    bound_s: float
    jct_mean_s: list[float]
    slowdown_p95: list[float]
    first_token_wait_max_s: float


def read_points(paths: Sequence[Path], *, arm: str = ARM) -> list[Point]:
    """One point for each result, by bound.

    Raises:
        ConfigError: a file is no result of a simulation, or has no such arm.
    """
    return sorted((_point(path, arm) for path in paths), key=lambda point: point.bound_s)


def _point(path: Path, arm: str) -> Point:
    try:
        result = msgspec.json.decode(path.read_bytes(), type=SimResult)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} is no result of a simulation: {error}") from error
    rows = [row for row in result.rows if row.arm == arm]
    if result.schema != SCHEMA or not rows:
        raise ConfigError(f"{path} has no arm {arm}")
    return Point(
        bound_s=in_seconds(parse_span(str(result.options["max_wait"]))),
        jct_mean_s=[row.jct_s.mean for row in rows],
        slowdown_p95=[row.slowdown.p95 for row in rows],
        first_token_wait_max_s=max(row.first_token_wait_s.max for row in rows),
    )


def draw(points: Sequence[Point], path: Path, *, title: str = "") -> None:
    """Write the picture, in the format that the file's name says.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a picture needs matplotlib (pip install 'agentsched[viz]')") from error
    bounds = [point.bound_s for point in points]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    curves = (
        (left, "mean completion time, s", [p.jct_mean_s for p in points]),
        (middle, "p95 slowdown", [p.slowdown_p95 for p in points]),
    )
    for axes, label, values in curves:
        axes.plot(bounds, [sum(seeds) / len(seeds) for seeds in values], "o-", color="#1f5fa8")
        for bound, seeds in zip(bounds, values, strict=True):
            axes.plot([bound] * len(seeds), seeds, ".", color="#9a9a9a", zorder=1)
        axes.set_ylabel(label)
    waits = [point.first_token_wait_max_s for point in points]
    right.plot(bounds, waits, "o-", color="#1f5fa8", label="from the first try, 429 counted")
    right.plot(bounds, bounds, ":", color="#9a9a9a", label="the bound")
    right.set_ylabel("longest wait, s")
    right.legend(fontsize=7, frameon=False)
    for axes in (left, middle, right):
        axes.set_xscale("log")
        axes.set_xticks(bounds, [f"{bound:g}" for bound in bounds])
        axes.minorticks_off()
        axes.set_xlabel("wait bound, s")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, draw, print the numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m agentsched_bench.sim.bound_curve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--arm", default=ARM)
    parser.add_argument("--title", default="")
    chosen = parser.parse_args(arguments)
    points = read_points(chosen.results, arm=chosen.arm)
    draw(points, chosen.out, title=chosen.title)
    for point in points:
        mean = sum(point.jct_mean_s) / len(point.jct_mean_s)
        slow = sum(point.slowdown_p95) / len(point.slowdown_p95)
        print(
            f"{point.bound_s:5g} s: mean {mean:.1f} s, p95 slowdown {slow:.2f} "
            f"({min(point.slowdown_p95):.1f} to {max(point.slowdown_p95):.1f}), longest wait "
            f"{point.first_token_wait_max_s:.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
