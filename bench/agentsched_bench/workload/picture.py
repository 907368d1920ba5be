"""A trace in one picture: how long programs are, how large, how much is shared, what tools take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agentsched.model import ConfigError
from agentsched_bench.workload.trace import Recording

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")

#: Points of a distribution that are drawn; a larger trace is thinned out evenly.
_POINTS_MAX: Final = 20_000
_TOOLS_MAX: Final = 8
_BLUE, _ORANGE, _GREEN, _GREY = "#2a6fb0", "#d9772b", "#3a8f5c", "#8a8f98"


@dataclass(slots=True)
class _Gathered:
    """What the picture needs of a trace; texts and blocks are let go at once."""

    steps: list[float] = field(default_factory=list)
    prompts: list[float] = field(default_factory=list)
    outputs: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    calls_s: list[float] = field(default_factory=list)
    tools: Counter[str] = field(default_factory=Counter)
    tool_s: dict[str, list[float]] = field(default_factory=dict)
    #: By step: tokens of prompts, and of those what was seen before.
    by_step: dict[int, list[float]] = field(default_factory=dict)
    programs: int = 0

    def add(self, recording: Recording) -> None:
        self.programs += recording.parent is None
        self.steps.append(len(recording.steps))
        for step in recording.steps:
            self.prompts.append(step.input_tokens)
            self.outputs.append(step.output_tokens)
            if step.gap_s is not None:
                self.pauses.append(step.gap_s)
            if step.llm_s is not None:
                self.calls_s.append(step.llm_s)
            sums = self.by_step.setdefault(step.step, [0.0, 0.0, 0.0])
            sums[0] += 1
            if step.prefix_tokens is not None:
                sums[1] += step.prefix_tokens
                sums[2] += step.input_tokens
            for tool in step.tools:
                name = tool.name if tool.command is None else f"{tool.name} {tool.command}"
                name = _plain(name)
                self.tools[name] += 1
                if tool.duration_s is not None:
                    self.tool_s.setdefault(name, []).append(tool.duration_s)


def _plain(text: str) -> str:
    """Between dollars matplotlib reads formulas; names and commands have dollars of their own."""
    return text.replace("$", r"\$")


def draw(recordings: Iterable[Recording], out: Path, *, title: str) -> None:
    """Write the picture of a trace; the file's name says the format (.png, .svg, .pdf).

    Raises:
        ConfigError: matplotlib is missing, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: pip install 'agentsched[viz]'") from error
    found = _Gathered()
    for recording in recordings:
        found.add(recording)
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    text = f"{_plain(title)}: {found.programs} programs, {len(found.prompts):,} calls"
    figure.suptitle(text, fontsize=13)
    axes: Any = figure.subplots(2, 3)
    _distribution(axes[0][0], [("steps", found.steps, _BLUE)], "steps per recording")
    sizes = [("prompt", found.prompts, _BLUE), ("answer", found.outputs, _ORANGE)]
    _distribution(axes[0][1], sizes, "tokens per call")
    times = [("LLM call", found.calls_s, _BLUE), ("pause", found.pauses, _ORANGE)]
    _distribution(axes[0][2], times, "seconds")
    _growth(axes[1][0], found)
    _shares(axes[1][1], found)
    _tool_times(axes[1][2], found)
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out}: {error}") from error


def _distribution(
    axis: Axes, lines: Sequence[tuple[str, Sequence[float], str]], label: str
) -> None:
    """The share of values up to each value, on a logarithmic axis. It has no 0: a curve of which
    some are begins above it."""
    is_empty = True
    for name, values, colour in lines:
        if not values:
            continue
        is_empty = False
        ordered = sorted(values)
        middle = ordered[len(ordered) // 2]
        shown = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
        points = [(value, (n + 1) / len(ordered)) for n, value in enumerate(ordered) if value > 0]
        points = _thinned(points)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axis.plot(xs, ys, color=colour, label=f"{name} (median {shown})")
    if is_empty:
        _nothing(axis, f"{label}: not recorded")
        return
    axis.set_xscale("log")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel(label)
    axis.set_ylabel("share of all up to it")
    axis.grid(visible=True, alpha=0.3)
    axis.legend(loc="best", fontsize=8)


def _thinned(ordered: Sequence[T]) -> list[T]:
    """One of so many, and the last: there a curve ends."""
    step = max(1, len(ordered) // _POINTS_MAX)
    return [*ordered[:-1:step], *ordered[-1:]]


def _growth(axis: Axes, found: _Gathered) -> None:
    """Of each step's prompts, what was seen before; as far as a tenth of the recordings goes."""
    most = found.by_step.get(0, [0.0])[0]
    steps = [s for s in sorted(found.by_step) if found.by_step[s][0] >= max(1.0, 0.1 * most)]
    known = [s for s in steps if found.by_step[s][2] > 0]
    if len(known) < 2:
        _nothing(axis, "prefix reuse: not recorded")
        return
    shares = [found.by_step[s][1] / found.by_step[s][2] for s in known]
    axis.fill_between(known, shares, color=_GREEN, alpha=0.3)
    axis.plot(known, shares, color=_GREEN)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("step")
    axis.set_ylabel("share of the prompt seen before")
    axis.grid(visible=True, alpha=0.3)


def _shares(axis: Axes, found: _Gathered) -> None:
    busiest = found.tools.most_common(_TOOLS_MAX)
    if not busiest:
        _nothing(axis, "tools: none recorded")
        return
    whole = found.tools.total()
    names = [name for name, _ in busiest]
    counts = [count / whole for _, count in busiest]
    rest = 1.0 - sum(counts)
    if rest > 1e-9:
        names.append(f"{len(found.tools) - len(busiest)} others")
        counts.append(rest)
    colours = [_BLUE] * len(busiest) + [_GREY] * (len(names) - len(busiest))
    axis.barh(names[::-1], counts[::-1], color=colours[::-1])
    axis.set_xlabel("share of tool calls")
    axis.grid(visible=True, axis="x", alpha=0.3)


def _tool_times(axis: Axes, found: _Gathered) -> None:
    busiest = sorted(found.tool_s.items(), key=lambda item: (-len(item[1]), item[0]))[:_TOOLS_MAX]
    boxes = [_thinned(sorted(v for v in values if v > 0)) for _, values in busiest]
    if not any(boxes):
        _nothing(axis, f"tools' times: {'all 0 s' if busiest else 'not recorded'}")
        return
    names = [f"{name} ({_counted(values)})" for name, values in busiest][::-1]
    axis.boxplot(
        boxes[::-1],
        orientation="horizontal",
        tick_labels=names,
        whis=(5, 95),
        showfliers=False,
        medianprops={"color": _ORANGE},
    )
    axis.set_xscale("log")
    axis.set_xlabel("seconds above 0\n(box: middle half, whiskers: 5 to 95 %)")
    axis.grid(visible=True, axis="x", alpha=0.3)


def _counted(values: Sequence[float]) -> str:
    """How many, and how many of them a logarithmic axis cannot show."""
    zeros = sum(value <= 0 for value in values)
    return f"{len(values)}, {zeros} of 0 s" if zeros else str(len(values))


def _nothing(axis: Axes, text: str) -> None:
    axis.axis("off")
    axis.text(0.5, 0.5, text, ha="center", va="center", color=_GREY)
