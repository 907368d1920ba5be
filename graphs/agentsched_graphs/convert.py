"""From the plain records to networkx; imported when somebody wants to look."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import Any, Final

import networkx

from agentsched_graphs.graph import ExecutionGraph

#: Fields that are edges, not attributes.
_EDGES: Final = frozenset({"links", "tools", "asked_by", "answered_by", "spawned_by", "joined_by"})


def to_networkx(graph: ExecutionGraph) -> networkx.DiGraph:
    """The graph as networkx knows it; see `ExecutionGraph.to_networkx`."""
    made = networkx.DiGraph(program=graph.program, tenant=graph.tenant, agent=graph.agent)
    for folded in graph.folded.values():
        made.add_node(f"folded:{folded.conversation}", kind="folded", **_attributes(folded))
    for step in graph.steps.values():
        made.add_node(f"step:{step.step}", kind="step", **_attributes(step))
        for tool in step.tools:
            attributes = _attributes(tool) | {"conversation": step.conversation}
            made.add_node(f"tool:{tool.call_id}", kind="tool", **attributes)
    for child in graph.children.values():
        made.add_node(f"program:{child.program}", kind="program", **_attributes(child))
    for source, target, kind in graph.edges():
        if not made.has_edge(source, target):
            made.add_edge(source, target, kind=kind.value)
    return made


def _attributes(record: Any) -> dict[str, Any]:
    return {
        field.name: _plain(getattr(record, field.name))
        for field in fields(record)
        if field.name not in _EDGES
    }


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
