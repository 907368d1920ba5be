"""Pictures: lanes, rows that do not overlap, and that odd programs can be drawn at all."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from msgspec.structs import replace

from agentsched.inspection.drawing import draw
from agentsched.inspection.lanes import lay_out
from agentsched.model import ConfigError
from agentsched_graphs.snapshot import Edge, Node, Snapshot

SECOND = 1_000_000_000


def step(name: str, begins: float, ends: float | None, **more: Any) -> Node:
    return Node(
        **{
            "node": f"step:{name}",
            "kind": "step",
            "conversation": "c",
            "label": f"#{name}",
            "state": "finished" if ends is not None else "running",
            "begins": round(begins * SECOND),
            "dispatched": round(begins * SECOND),
            "ends": None if ends is None else round(ends * SECOND),
        }
        | more
    )


def snapshot(*nodes: Node, edges: tuple[Edge, ...] = ()) -> Snapshot:
    return Snapshot(
        program="p$1",
        tenant="t",
        agent="",
        parent=None,
        now=20 * SECOND,
        closed=None,
        close_reason="",
        steps_done=len(nodes),
        active_steps=0,
        depth=1,
        nodes=nodes,
        edges=edges,
    )


def test_what_overlaps_stands_in_different_rows() -> None:
    [lane] = lay_out(snapshot(step("a", 0, 5), step("b", 2, 3), step("c", 5, 6)))
    top = {bar.node.label: bar.top for bar in lane.bars}
    assert top["#a"] == top["#c"] < top["#b"]
    assert lane.bottom > max(bar.top + bar.height for bar in lane.bars)


def test_a_live_step_lasts_until_now() -> None:
    [lane] = lay_out(snapshot(step("a", 1, None)))
    assert lane.bars[0].right == 20.0


def test_a_call_that_nobody_answered_lasts_no_longer_than_its_program() -> None:
    submit = Node(
        node="tool:submit",
        kind="tool",
        conversation="c",
        label="submit",
        state="asked",
        begins=5 * SECOND,
    )
    [lane] = lay_out(snapshot(step("a", 1, 5), submit))
    assert [bar.right for bar in lane.bars] == [5.0, 20.0]
    [lane] = lay_out(replace(snapshot(step("a", 1, 5), submit), closed=6 * SECOND))
    assert [bar.right for bar in lane.bars] == [5.0, 6.0]


def test_lanes_stand_in_the_order_of_their_beginning() -> None:
    late = step("a", 9, 10, conversation="late", lineage="spawned")
    early = step("b", 1, 2, conversation="a-rather-long-name-of-a-conversation")
    titles = [lane.title for lane in lay_out(snapshot(late, early))]
    assert titles == ["main\n…e-of-a-conversation", "sub-agent\nlate"]


@pytest.mark.slow
@pytest.mark.parametrize("state", ["waiting", "dispatched", "running", "failed", "cancelled"])
def test_every_state_can_be_drawn(state: str) -> None:
    waiting = {"dispatched": None} if state == "waiting" else {}
    nodes = (
        step("a", 0, 2, started=SECOND),
        step("b", 3, None if state == "running" else 4, state=state, **waiting),
        Node(
            node="tool:$x_1$",
            kind="tool",
            conversation="c",
            label="$x_1$",
            state="failed",
            begins=2 * SECOND,
            ends=3 * SECOND,
            is_error=True,
        ),
        Node(
            node="folded:c",
            kind="folded",
            conversation="c",
            label="3 earlier steps",
            state="folded",
            begins=0,
            ends=0,
        ),
    )
    edges = (
        Edge(source="tool:$x_1$", target="step:b", kind="data"),
        Edge(source="step:a", target="step:b", kind="compacts"),
    )
    picture = draw(snapshot(*nodes, edges=edges), format="png")
    assert picture.startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_program_gives_the_same_bytes() -> None:
    shown = snapshot(step("a", 0, 2, started=SECOND))
    for format in ("png", "svg"):
        assert draw(shown, format=format) == draw(shown, format=format)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cost $a_$", "a$b\\frac$"])
def test_dollars_in_names_are_no_formulas(name: str) -> None:
    shown = snapshot(step("a", 0, 2, conversation=name))
    drawn = draw(replace(shown, program=name, agent=name), format="svg").decode()
    written = re.findall("<!-- (.*) -->", drawn.replace(r"\$", "$"))
    assert f"{name}: {name}   1 steps, 0 tool calls" in written


@pytest.mark.slow
def test_what_no_engine_said_is_not_drawn_as_said() -> None:
    told = step("a", 0, 2, prompt_tokens=100, cached_tokens=50)
    # vLLM leaves the number out where nothing was cached; of one that runs nobody knows it yet.
    cold, live = step("b", 3, 4, prompt_tokens=100), step("c", 5, None, prompt_tokens=9_000)
    for nodes, said in (((told, cold, live), "25% of 200 prompt tokens cached"), ((cold,), "")):
        drawn = draw(snapshot(*nodes), format="svg").decode()
        [line] = [text for text in re.findall("<!-- (.*) -->", drawn) if "tool calls" in text]
        assert line.partition(" tool calls")[2].strip(", ") == said


def test_nothing_to_draw() -> None:
    with pytest.raises(ConfigError, match="no steps to draw yet"):
        draw(snapshot(), format="png")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"agentsched\[viz\]"):
        draw(snapshot(step("a", 0, 1)), format="png")
