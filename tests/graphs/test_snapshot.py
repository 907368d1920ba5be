"""When a node of a shown graph ended."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched_graphs.snapshot import Node, Snapshot, ended_at


def shown(closed: int | None) -> Snapshot:
    return Snapshot(
        program="p",
        tenant="t",
        agent="",
        parent=None,
        now=10,
        closed=closed,
        close_reason="",
        steps_done=0,
        active_steps=0,
        depth=0,
        nodes=(),
        edges=(),
    )


def node(kind: Any, *, ends: int | None = None) -> Node:
    return Node(node="n", kind=kind, conversation="c", label="l", state="s", begins=5, ends=ends)


@pytest.mark.parametrize(
    ("kind", "ends", "closed", "wanted"),
    [
        ("tool", 7, 9, 7),  # it was answered
        ("tool", None, None, None),  # its program may still answer it
        ("tool", None, 9, 9),  # nobody waits for it any more
        ("tool", None, 3, 5),  # reported after its program was closed
        ("step", None, 9, None),  # an engine may still be at it
    ],
)
def test_a_tool_call_that_nobody_answered_is_over_with_its_program(
    kind: str, ends: int | None, closed: int | None, wanted: int | None
) -> None:
    assert ended_at(node(kind, ends=ends), shown(closed)) == wanted
