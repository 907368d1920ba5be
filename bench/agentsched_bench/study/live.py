"""`python -m agentsched_bench.study.live RESULT... -o PICTURE`: live regimes side by side.

Reads results of `agentsched compare` that have arms in common, one for each regime, prints mean
completion times and p95 slowdowns as the tables of the documentation, and draws the times as
multiples of those of an unlimited cache, which no scheduling can better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from agentsched.model import ConfigError
from agentsched_bench.compare.results import ArmFigures, CompareResult, read

#: The yardstick of the picture.
LIMIT: Final = "unlimited"
#: Multiples from here on have the darkest colour.
_DARKEST: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Figures by regime and by arm; an arm that a regime does not have is not in its row."""

    regimes: list[str]
    arms: list[str]
    figures: dict[tuple[str, str], ArmFigures]

    def multiple(self, regime: str, arm: str) -> float | None:
        """The arm's mean completion time over the unlimited cache's; None if it has none."""
        found = self.figures.get((regime, arm))
        limit = self.figures[regime, LIMIT].jct_s.mean
        return None if found is None or not found.completed else found.jct_s.mean / limit


def grid_of(results: Sequence[CompareResult]) -> Grid:
    """Regimes in the order given; arms by the mean of their multiples' logarithms, best first.

    Raises:
        ConfigError: two results are of one regime, or one has no unlimited cache.
    """
    regimes = [result.name for result in results]
    figures: dict[tuple[str, str], ArmFigures] = {}
    for result in results:
        if regimes.count(result.name) > 1:
            raise ConfigError(f"two results are of {result.name}: name one of them")
        figures |= {(result.name, name): row for name, row in _named(result.summary).items()}
        limit = figures.get((result.name, LIMIT))
        if limit is None or not limit.completed:
            raise ConfigError(f"{result.name} has no finished arm {LIMIT}, which is the yardstick")
    grid = Grid(regimes=regimes, arms=[], figures=figures)
    grid.arms.extend(sorted({arm for _, arm in figures}, key=lambda arm: _rank(grid, arm)))
    return grid


def _named(rows: Sequence[ArmFigures]) -> dict[str, ArmFigures]:
    """By arm, without the ids that its programs send, where no other arm has them otherwise."""
    stems = [(row.arm.partition("@")[0], row) for row in rows]
    shared = Counter(stem for stem, _ in stems)
    return {stem if shared[stem] == 1 else row.arm: row for stem, row in stems}


def _rank(grid: Grid, arm: str) -> tuple[int, float, str]:
    """Arms that were measured everywhere come first: means over other regimes are not theirs."""
    found = [grid.multiple(regime, arm) for regime in grid.regimes]
    known = [math.log(each) for each in found if each is not None]
    mean = sum(known) / len(known) if known else math.inf
    return len(found) - len(known), mean, arm


def markdown(grid: Grid) -> str:
    """Two tables, mean completion times in seconds and p95 slowdowns; bold is the shortest mean."""
    head = ["|  | " + " | ".join(grid.regimes) + " |", "|---" * (len(grid.regimes) + 1) + "|"]
    best = {
        regime: min(
            (found, arm)
            for arm in grid.arms
            if arm != LIMIT and (found := grid.multiple(regime, arm)) is not None
        )[1]
        for regime in grid.regimes
    }
    means, slow = list(head), list(head)
    for arm in grid.arms:
        rows = [grid.figures.get((regime, arm)) for regime in grid.regimes]
        cells = [
            _mean(row, is_best=best[regime] == arm)
            for regime, row in zip(grid.regimes, rows, strict=True)
        ]
        means.append(f"| {arm} | " + " | ".join(cells) + " |")
        slow.append(f"| {arm} | " + " | ".join(map(_slowdown, rows)) + " |")
    return "\n".join([*means, "", *slow])


def _mean(row: ArmFigures | None, *, is_best: bool) -> str:
    """Those that gave up stand beside it: the mean is of the others."""
    if row is None or not row.completed:
        return "-"
    mean = f"**{row.jct_s.mean:.1f}**" if is_best else f"{row.jct_s.mean:.1f}"
    return f"{mean} ({row.failed} gave up)" if row.failed else mean


def _slowdown(row: ArmFigures | None) -> str:
    return "-" if row is None or row.slowdown is None else f"{row.slowdown.p95:.2f}"


def draw(grid: Grid, path: Path) -> None:
    """Write the picture, in the format that the file's name says.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a picture needs matplotlib (pip install 'agentsched[viz]')") from error
    arms = [arm for arm in grid.arms if arm != LIMIT]
    size = (2.6 + 1.05 * len(grid.regimes), 0.9 + 0.36 * len(arms))
    figure = Figure(figsize=size, dpi=140, facecolor="white", layout="constrained")
    axes = figure.subplots()
    shades = [[_shade(grid.multiple(regime, arm)) for regime in grid.regimes] for arm in arms]
    axes.imshow(shades, cmap="YlOrBr", vmin=0.0, vmax=1.25, aspect="auto")
    for down, arm in enumerate(arms):
        for right, regime in enumerate(grid.regimes):
            _write(axes, right, down, grid.multiple(regime, arm))
    axes.set_xticks(range(len(grid.regimes)), grid.regimes)
    axes.set_yticks(range(len(arms)), arms)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("mean completion time, multiples of an unlimited cache's", fontsize=9)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _shade(multiple: float | None) -> float:
    """0 where nothing is lost to the unlimited cache, 1 at `_DARKEST` times its time."""
    if multiple is None:
        return math.nan
    return min(max(math.log(multiple) / math.log(_DARKEST), 0.0), 1.0)


def _write(axes: Any, right: int, down: int, multiple: float | None) -> None:
    word = "not run" if multiple is None else f"{multiple:.2f}"
    is_dark = multiple is not None and _shade(multiple) > 0.75
    ink = "#ffffff" if is_dark else "#5b5f68" if multiple is None else "#1c1d20"
    axes.text(right, down, word, ha="center", va="center", fontsize=9, color=ink)


def main(
    results: Annotated[list[Path], typer.Argument(help="Results of `agentsched compare`.")],
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The picture.")] = None,
) -> None:
    """Every regime as it was measured, side by side."""
    grid = grid_of([read(path) for path in results])
    if out is not None:
        draw(grid, out)
    typer.echo(markdown(grid))


if __name__ == "__main__":
    typer.run(main)
