"""The report as one picture, for slides and READMEs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from agentsched.model import ConfigError
from agentsched_bench.compare.results import ArmFigures, CompareResult
from agentsched_bench.report.views import Curve, view_of

#: Okabe and Ito's colours, which any colour vision can tell apart; the baseline is grey.
_COLORS: Final = (
    "#5f6672", "#0072b2", "#d55e00", "#009e73", "#a6498a", "#b08a00", "#56b4e9", "#7a3b12",
)  # fmt: skip
_DASHES: Final = ("-", "--", "-.", ":", (0, (1, 3)), (0, (8, 3)), (0, (4, 2, 1, 2)), (0, (3, 5)))
_INK: Final = "#1c1d20"
_SOFT: Final = "#5b5f68"


def write_png(result: CompareResult, path: Path) -> None:
    """Draw the result.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("a picture needs matplotlib (pip install 'agentsched[viz]')") from error
    figure = Figure(figsize=(12, 7.2), dpi=140, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12, hspace=0.04)  # type: ignore[union-attr,call-arg]
    kind = ", synthetic programs" if result.trace.is_synthetic else ""
    figure.suptitle(
        _plain_text(
            f"{result.name}: {result.trace.programs} programs, {result.trace.calls:,} calls, "
            f"{result.how}{kind}"
        ),
        x=0.01,
        ha="left",
        fontsize=15,
        fontweight="bold",
        color=_INK,
    )
    axes = figure.subplots(2, 2)
    view = view_of(result)
    _ratios(axes[0][0], result)
    _tokens(axes[0][1], result.summary)
    _curves(axes[1][0], view.jct, title="Job completion time, s", is_log=False)
    _curves(axes[1][1], view.ttft, title="Time to the first token, s", is_log=True)
    figure.savefig(path, format="png")


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9ccd1")
    axes.tick_params(colors=_SOFT, labelsize=9.5, length=0)
    axes.grid(visible=True, axis="x", color="#e7e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _ratios(axes: Any, result: CompareResult) -> None:
    rows = [a for a in result.summary if a.jct is not None and a.jct.pairs]
    _plain(axes, f"Job completion time over {_cut(result.baseline)}'s (95 % interval)")
    names = [arm.arm for arm in result.summary]
    for place, arm in enumerate(reversed(rows)):
        ratio = arm.jct
        assert ratio is not None
        color = _COLORS[names.index(arm.arm) % len(_COLORS)]
        reach = [ratio.low, min(ratio.high, 1e3)]
        axes.plot(reach, [place] * 2, color=color, linewidth=5, alpha=0.4, solid_capstyle="round")
        axes.plot([ratio.value], [place], "o", color=color, markersize=8)
        word = f"{ratio.value:.2f}, {arm.verdict}"
        axes.annotate(word, (ratio.value, place), xytext=(0, 10), textcoords="offset points",
                      ha="center", fontsize=9.5, color=_INK)  # fmt: skip
    axes.axvline(1, color=_SOFT, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [_cut(arm.arm) for arm in reversed(rows)], color=_INK)
    axes.set_ylim(-0.6, len(rows) - 0.2 if rows else 1)
    if not rows:
        axes.text(0.5, 0.5, "nothing to compare with", ha="center", color=_SOFT,
                  transform=axes.transAxes)  # fmt: skip


def _tokens(axes: Any, summary: Sequence[ArmFigures]) -> None:
    # Sums over unlike numbers of runs would say nothing beside each other.
    is_even = len({arm.runs for arm in summary}) < 2
    _plain(axes, f"Prompt tokens{'' if is_even else ' of a run'}, thousands")
    named: set[str] = set()
    for place, arm in enumerate(reversed(list(summary))):
        unit = 1000 * (1 if is_even else arm.runs)
        left = 0.0
        for tokens, color, name in _parts(arm):
            axes.barh(place, tokens / unit, left=left, color=color, height=0.55,
                      label=None if name in named else name)  # fmt: skip
            named.add(name)
            left += tokens / unit
    axes.set_yticks(range(len(summary)), [_cut(a.arm) for a in reversed(list(summary))], color=_INK)
    axes.legend(fontsize=9, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08),
                labelcolor=_SOFT)  # fmt: skip


def _parts(arm: ArmFigures) -> Sequence[tuple[int, str, str]]:
    """What an arm's prompts consist of: tokens, colour, name."""
    cached, computed, again = arm.cached_tokens, arm.computed_tokens, arm.again_tokens
    if arm.cached_share is None or cached is None or computed is None or again is None:
        return ((arm.prompt_tokens, "#c9ccd1", "cached or computed: not told"),)
    new = max(0, computed - again)
    return (
        (cached, "#9fd3c0", "from the cache"),
        (new, "#7cb8e4", "computed, new"),
        (again, "#e07b39", "computed again"),
    )


def _curves(axes: Any, curves: Sequence[Curve], *, title: str, is_log: bool) -> None:
    from matplotlib.ticker import NullLocator

    _plain(axes, title)
    for number, curve in enumerate(curves):
        if not curve.values:
            continue
        axes.plot(curve.values, [100 * share for share in curve.shares], label=_cut(curve.arm),
                  color=_COLORS[number % len(_COLORS)], linewidth=2,
                  linestyle=_DASHES[number % len(_DASHES)])  # fmt: skip
    if is_log and any(curve.values for curve in curves):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 102)
    axes.yaxis.set_major_formatter("{x:.0f} %")
    axes.grid(visible=True, axis="y", color="#e7e8eb", linewidth=0.8)
    if any(curve.values for curve in curves):
        axes.legend(fontsize=9, frameon=False, loc="lower right", labelcolor=_INK)


def _cut(name: str) -> str:
    return _plain_text(name if len(name) <= 26 else f"{name[:25]}…")


def _plain_text(text: str) -> str:
    """A name may have dollars in it, between which matplotlib reads formulas."""
    return text.replace("$", r"\$")
