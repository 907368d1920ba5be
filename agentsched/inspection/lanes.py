"""Where things stand in the picture of an execution graph: one lane a conversation, over time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from agentsched_graphs.snapshot import Node, Snapshot, ended_at

#: Heights, in rows of the picture.
STEP_HEIGHT: Final = 0.62
TOOL_HEIGHT: Final = 0.22
_GAP: Final = 0.16
_PADDING: Final = 0.42
#: More rows of tools than this in one lane lie upon each other.
_TOOL_ROWS_MAX: Final = 6
_STEP_ROWS_MAX: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A node's place: seconds across, rows from the top down."""

    node: Node
    left: float
    right: float
    top: float
    height: float

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


@dataclass(slots=True, kw_only=True)
class Lane:
    """One conversation. `top` and `bottom` are in rows."""

    title: str
    top: float
    bottom: float = 0.0
    bars: list[Bar] = field(default_factory=list)


def lay_out(shown: Snapshot) -> list[Lane]:
    """All lanes, in the order in which their conversations began."""
    groups: dict[str, list[Node]] = {}
    for node in sorted(shown.nodes, key=lambda n: n.begins):
        groups.setdefault(node.conversation, []).append(node)
    lanes, top = [], 0.0
    for number, (conversation, nodes) in enumerate(groups.items()):
        short = conversation.removeprefix(f"{shown.program}#")
        lane = Lane(title=_title(number, short, nodes), top=top)
        _fill(lane, nodes, shown)
        lanes.append(lane)
        top = lane.bottom
    return lanes


def _title(number: int, conversation: str, nodes: list[Node]) -> str:
    if not conversation:
        return "sub-programs"
    steps = [node for node in nodes if node.kind == "step"]
    began = steps[0].lineage if steps else ""
    roles = {"spawned": "sub-agent", "forks": "branch", "compacts": "after compaction"}
    role = roles.get(began, "main" if number == 0 else "conversation")
    # The end tells conversations of one program apart.
    name = conversation if len(conversation) <= 20 else f"…{conversation[-19:]}"
    return f"{role}\n{name}"


def _fill(lane: Lane, nodes: list[Node], shown: Snapshot) -> None:
    upper = [node for node in nodes if node.kind in ("step", "folded")]
    lower = [node for node in nodes if node.kind in ("tool", "program")]
    top = lane.top + _PADDING
    for kept, height, rows_max in (
        (upper, STEP_HEIGHT, _STEP_ROWS_MAX),
        (lower, TOOL_HEIGHT, _TOOL_ROWS_MAX),
    ):
        rows = _rows(kept, shown, rows_max=rows_max)
        for node, row in rows:
            lane.bars.append(
                Bar(
                    node=node,
                    left=node.begins / 1e9,
                    right=_end(node, shown) / 1e9,
                    top=top + row * (height + _GAP),
                    height=height,
                )
            )
        top += (1 + max((row for _, row in rows), default=-1)) * (height + _GAP)
    lane.bottom = top + _PADDING / 2


def _rows(nodes: Iterable[Node], shown: Snapshot, *, rows_max: int) -> list[tuple[Node, int]]:
    """A row for each, so that what overlaps in time stands in different rows."""
    free_at: list[int] = []
    placed = []
    for node in nodes:
        row = next((i for i, at in enumerate(free_at) if at <= node.begins), len(free_at))
        if row == len(free_at) and row < rows_max:
            free_at.append(0)
        row = min(row, rows_max - 1)
        free_at[row] = max(_end(node, shown), node.begins + 1)
        placed.append((node, row))
    return placed


def _end(node: Node, shown: Snapshot) -> int:
    ends = ended_at(node, shown)
    return max(node.begins, shown.now if ends is None else ends)
