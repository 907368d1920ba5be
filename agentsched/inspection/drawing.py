"""Execution graphs as pictures: conversations as lanes over time. Needs the extra `viz`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from agentsched.inspection.lanes import Bar, Lane, lay_out
from agentsched.model import ConfigError
from agentsched_graphs.snapshot import Edge, Node, Snapshot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK: Final = "#22282f"
_FAINT: Final = "#8b95a1"
_PHASES: Final[Mapping[str, tuple[str, str]]] = {
    "waited": ("#f2b866", "held by us"),
    "prefill": ("#5b8fc9", "prefill"),
    "decode": ("#7dbb7a", "decode"),
    "whole": ("#6aa9a0", "in the engine, not streamed"),
    "failed": ("#d9655b", "failed, rejected"),
    "cancelled": ("#b8bec5", "cancelled"),
    "folded": ("#dfe3e8", "earlier steps, summed up"),
    "tool": ("#c9b458", "tool"),
    "program": ("#b79ad6", "sub-program"),
}
_ARROWS: Final[Mapping[str, tuple[str, str]]] = {
    "spawns": ("#7b4fa3", "spawns, joins"),
    "joins": ("#7b4fa3", ""),
    "forks": ("#b06a00", "forks"),
    "compacts": ("#b03030", "compacts"),
    "data": (_FAINT, "brings its result"),
}
_ROW_INCHES: Final = 0.42
_WIDTH_INCHES: Final = 12.5
#: Inches that a letter of the small print takes, about.
_LETTER_INCHES: Final = 0.072
_LANES_MAX: Final = 40


def draw(shown: Snapshot, *, format: str) -> bytes:
    """The picture as PNG or SVG.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    if not shown.nodes:
        raise ConfigError(f"program {shown.program} has no steps to draw yet")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(
            "pictures need matplotlib (pip install 'agentsched[viz]'); "
            "--format mermaid, dot and json do not"
        ) from error
    lanes = lay_out(shown)[:_LANES_MAX]
    rows = lanes[-1].bottom
    # The same program gives the same bytes: no dates, no random ids.
    with rc_context({"svg.hashsalt": shown.program, "font.size": 8.5}):
        figure = Figure(figsize=(_WIDTH_INCHES, 1.5 + rows * _ROW_INCHES), layout="constrained")
        axes = figure.add_subplot()
        _paint(axes, shown, lanes)
        _legend(figure, shown)
        buffer = BytesIO()
        metadata: dict[str, Any] = {"Date": None} if format == "svg" else {"Software": None}
        figure.savefig(buffer, format=format, dpi=110, metadata=metadata)
    return buffer.getvalue()


def _paint(axes: Axes, shown: Snapshot, lanes: list[Lane]) -> None:
    bars = {bar.node.node: bar for lane in lanes for bar in lane.bars}
    right = max(bar.right for bar in bars.values()) or 1.0
    inches_per_second = (_WIDTH_INCHES - 1.6) / (right * 1.02)
    for number, lane in enumerate(lanes):
        if number % 2 == 0:
            axes.axhspan(lane.top, lane.bottom, color="#f6f7f9", zorder=0)
        for bar in lane.bars:
            _paint_bar(axes, bar, inches_per_second)
    for edge in shown.edges:
        if edge.source in bars and edge.target in bars:
            _paint_edge(axes, edge, bars[edge.source], bars[edge.target])
    axes.set_xlim(-0.01 * right, right * 1.02)
    axes.set_ylim(lanes[-1].bottom, 0.0)
    axes.set_yticks([(lane.top + lane.bottom) / 2 for lane in lanes])
    axes.set_yticklabels([_as_it_is(lane.title) for lane in lanes])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds since the program's first request")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(_as_it_is(_headline(shown)), loc="left", fontsize=10.5, color=_INK)


def _headline(shown: Snapshot) -> str:
    ended = [node for node in shown.nodes if node.state in ("finished", "folded")]
    steps = [node for node in ended if node.kind in ("step", "folded")]
    prompt = sum(node.prompt_tokens for node in steps)
    cached = sum(node.cached_tokens or 0 for node in steps)
    # Where the engine tells of one step, one that it tells nothing of had nothing cached.
    is_told = prompt and any(node.cached_tokens is not None for node in steps)
    tools = sum(
        node.tools if node.kind == "folded" else node.kind == "tool" for node in shown.nodes
    )
    share = f", {cached / prompt:.0%} of {prompt:,} prompt tokens cached" if is_told else ""
    name = f"{shown.agent}: " if shown.agent else ""
    return f"{name}{shown.program}   {shown.steps_done} steps, {tools} tool calls{share}"


def _paint_bar(axes: Axes, bar: Bar, inches_per_second: float) -> None:
    node = bar.node
    for phase, left, right in _phases(bar):
        axes.barh(
            bar.middle,
            right - left,
            left=left,
            height=bar.height,
            color=_PHASES[phase][0],
            edgecolor="white" if node.kind == "step" else "none",
            linewidth=0.4,
            hatch="////" if phase in ("waited", "folded") else None,
            zorder=3,
        )
    room = (bar.right - bar.left) * inches_per_second
    if node.kind == "step":
        if room >= _LETTER_INCHES * len(node.label):
            middle = (bar.left + bar.right) / 2
            _write(axes, middle, bar.middle, node.label, ha="center", color=_INK)
    elif room >= _LETTER_INCHES * (len(node.label) + 1):
        _write(axes, bar.left, bar.middle, f" {node.label}", ha="left", color=_INK)


def _write(axes: Axes, x: float, y: float, text: str, *, ha: Any, color: str) -> None:
    shown = _as_it_is(text)
    axes.text(x, y, shown, ha=ha, va="center", fontsize=7, color=color, zorder=5, clip_on=True)


def _as_it_is(text: str) -> str:
    """Words of clients, no formula: `$` would begin one."""
    return text.replace("$", r"\$")


def _phases(bar: Bar) -> Iterator[tuple[str, float, float]]:
    """What a node did from when to when, in seconds."""
    node = bar.node
    if node.kind != "step":
        yield ("failed" if node.is_error else node.kind), bar.left, bar.right
        return
    at = bar.left
    if node.dispatched is None:
        lost = {"failed": "failed", "rejected": "failed", "cancelled": "cancelled"}
        yield lost.get(node.state, "waited"), at, bar.right
        return
    yield "waited", at, node.dispatched / 1e9
    at = node.dispatched / 1e9
    last = _last_phase(node)
    if node.started is None or node.started == node.ends:
        yield last if last != "decode" else "whole", at, bar.right
        return
    yield "prefill", at, node.started / 1e9
    yield last, node.started / 1e9, bar.right


def _last_phase(node: Node) -> str:
    match node.state:
        case "failed" | "rejected":
            return "failed"
        case "cancelled":
            return "cancelled"
        case "dispatched":
            return "prefill"
        case _:
            return "decode"


def _paint_edge(axes: Axes, edge: Edge, source: Bar, target: Bar) -> None:
    if edge.kind not in _ARROWS:
        return  # the order along a lane shows it
    color = _ARROWS[edge.kind][0]
    is_data = edge.kind == "data"
    begin = (source.right, source.middle)
    if edge.kind == "spawns":
        # A sub-agent begins while or after its parent answers: never to the right of its own start.
        begin = (min(source.right, target.left), source.top + source.height)
    end_row = target.top + target.height if is_data or source.top > target.top else target.top
    axes.annotate(
        "",
        xy=(target.left, end_row),
        xytext=begin,
        arrowprops={
            "arrowstyle": "-|>" if not is_data else "->",
            "color": color,
            "linewidth": 1.2 if not is_data else 0.6,
            "linestyle": "--" if edge.kind == "joins" else "-",
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 9 if not is_data else 6,
            "connectionstyle": "arc3,rad=0.0" if is_data else "arc3,rad=-0.12",
        },
        zorder=4,
    )


def _legend(figure: Figure, shown: Snapshot) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    phases: dict[str, None] = {}
    for lane in lay_out(shown):
        for bar in lane.bars:
            phases |= {phase: None for phase, left, right in _phases(bar) if right > left}
    handles: list[Any] = [
        Patch(
            facecolor=color,
            edgecolor="white",
            hatch="////" if phase in ("waited", "folded") else None,
            label=label,
        )
        for phase, (color, label) in _PHASES.items()
        if phase in phases
    ]
    kinds = {"spawns" if edge.kind == "joins" else edge.kind for edge in shown.edges}
    handles += [
        Line2D([], [], color=color, marker=">", markersize=4, label=label)
        for kind, (color, label) in _ARROWS.items()
        if kind in kinds and label
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False
    )
