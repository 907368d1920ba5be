"""Graphs as text: JSON there and back, Mermaid and DOT that hold whatever ids hold."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agentsched.model import ConversationId, Lineage, ProgramId, WireError
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.export import from_json, to_dot, to_json, to_mermaid
from agentsched_graphs.graph import GraphLimits
from agentsched_graphs.snapshot import Snapshot, snapshot

NASTY = 'x"]; --> <b>&%% #$\\ \n[(end)]'


@pytest.fixture
def shown(course: Any) -> Snapshot:
    """Every kind of node and edge."""
    course.step("s1", "a:Read", "t:Task", lineage=Lineage.NEW)
    course.step(
        "k1", conversation="k", lineage=Lineage.SPAWNED, parent_conversation=ConversationId("c")
    )
    course.step("q1", conversation="cq", program="q", parent=ProgramId("p"))
    course.close("q")
    course.step("s2", f"b:{NASTY}", answers=["a", "t"])
    course.arrive("f1", NASTY, lineage=Lineage.FORKS, parent_conversation=ConversationId("c"))
    course.reject("f1")
    course.arrive("s3", "c2", lineage=Lineage.COMPACTS, parent_conversation=ConversationId("c"))
    return snapshot(course.graph(), now=course.now)


def test_every_kind_is_there(shown: Snapshot) -> None:
    assert {edge.kind for edge in shown.edges} == {
        "control",
        "calls",
        "data",
        "spawns",
        "joins",
        "forks",
        "compacts",
    }
    assert {node.kind for node in shown.nodes} == {"step", "tool", "program"}
    nodes = {node.node for node in shown.nodes}
    assert all(edge.source in nodes and edge.target in nodes for edge in shown.edges)


def test_json_there_and_back(shown: Snapshot) -> None:
    assert from_json(to_json(shown)) == shown


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"version": 1}'])
def test_what_is_no_graph(text: bytes) -> None:
    with pytest.raises(WireError, match="not an execution graph"):
        from_json(text)


def test_another_version(shown: Snapshot) -> None:
    with pytest.raises(WireError, match="version 9; this reads 1"):
        from_json(to_json(shown).replace(b'"version":1', b'"version":9'))


def test_mermaid(shown: Snapshot) -> None:
    lines = to_mermaid(shown).splitlines()
    assert lines[0] == "flowchart TD"
    boxes = [
        line for line in lines if re.fullmatch(r'    \w\d+(\[|\(\[|\[\[)".*"[\])]+:::\w+', line)
    ]
    assert len(boxes) == len(shown.nodes)
    arrows = [
        line for line in lines if re.fullmatch(r"  \w\d+ (==>|-.->|-->)(\|\w+\|)? \w\d+", line)
    ]
    assert len(arrows) == len(shown.edges)
    # Nothing of an id is markup: quotes stand only around labels.
    assert all(line.count('"') in (0, 2) for line in lines)
    assert "<b>" not in "\n".join(lines)


def test_dot(shown: Snapshot) -> None:
    text = to_dot(shown)
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    assert '"' not in unquoted.replace('""', "")
    assert unquoted.count("{") == unquoted.count("}")
    assert unquoted.count(" -> ") == len(shown.edges)
    assert unquoted.count("fillcolor=") == len(shown.nodes)


def test_folded_steps_are_shown(make_course: Any) -> None:
    course = make_course(GraphBuilder(limits=GraphLimits(steps_per_program_max=2)))
    for i in range(5):
        course.step(f"s{i}")
    shown = snapshot(course.graph(), now=course.now)
    assert [n.label for n in shown.nodes if n.kind == "folded"] == ["3 earlier steps"]
    assert "3 earlier steps" in to_mermaid(shown)
    assert "3 earlier steps" in to_dot(shown)
