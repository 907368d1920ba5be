"""An execution graph as plain values, for JSON, files and pictures: what leaves this room."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from agentsched.model import Instant, StepId
from agentsched_graphs.graph import ExecutionGraph
from agentsched_graphs.nodes import ChildNode, Folded, StepNode, ToolNode, ToolState

NodeKind = Literal["step", "tool", "program", "folded"]

#: Raised when a field means something else than before.
SNAPSHOT_VERSION: Final = 1


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One node. Times are nanoseconds since the program was opened; None is "not yet".

    A tool begins when it was asked for or, where that is reported, when it started. `steps` and
    `tools` count what a folded node stands for.
    """

    node: str
    kind: NodeKind
    conversation: str
    label: str
    state: str
    begins: int
    dispatched: int | None = None
    started: int | None = None
    ends: int | None = None
    step_class: str = ""
    lineage: str = ""
    engine: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    attempts: int = 0
    is_measured: bool = False
    is_error: bool = False
    steps: int = 0
    tools: int = 0
    tools_left_out: int = 0


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """One edge, from what came first to what came of it."""

    source: str
    target: str
    kind: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One program's graph at one moment; `now` counts from when it was opened, as all times do."""

    program: str
    tenant: str
    agent: str
    parent: str | None
    now: int
    closed: int | None
    close_reason: str
    steps_done: int
    active_steps: int
    depth: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    version: int = SNAPSHOT_VERSION


def snapshot(graph: ExecutionGraph, *, now: Instant) -> Snapshot:
    """The graph as it is; takes time in proportion to the steps that are kept."""
    made = _Maker(graph)
    nodes = [made.folded(folded) for folded in graph.folded.values()]
    for step in graph.steps.values():
        nodes.append(made.step(step))
        nodes += (made.tool(tool, step) for tool in step.tools)
    nodes += (made.child(child) for child in graph.children.values())
    return Snapshot(
        program=graph.program,
        tenant=graph.tenant,
        agent=graph.agent,
        parent=graph.parent,
        now=now - graph.opened_at,
        closed=made.since(graph.closed_at),
        close_reason=graph.close_reason,
        steps_done=graph.steps_done,
        active_steps=graph.active_steps,
        depth=graph.depth,
        nodes=tuple(nodes),
        edges=tuple(Edge(source=s, target=t, kind=k.value) for s, t, k in graph.edges()),
    )


def ended_at(node: Node, shown: Snapshot) -> int | None:
    """When a node ended, as far as it is shown over time; None is "not yet".

    A tool call that nobody answered is over with its program: nothing waits for it any more.
    """
    if node.ends is None and node.kind == "tool" and shown.closed is not None:
        return max(node.begins, shown.closed)
    return node.ends


class _Maker:
    def __init__(self, graph: ExecutionGraph) -> None:
        self._graph = graph
        self._opened_at = graph.opened_at

    def since(self, at: Instant | None) -> int | None:
        return None if at is None else at - self._opened_at

    def step(self, step: StepNode) -> Node:
        return Node(
            node=f"step:{step.step}",
            kind="step",
            conversation=step.conversation,
            label=f"#{step.depth}",
            state=step.state.value,
            begins=step.arrived_at - self._opened_at,
            dispatched=self.since(step.dispatched_at),
            started=self.since(step.started_at),
            ends=self.since(step.ended_at),
            step_class=step.step_class.value,
            lineage=step.lineage.value,
            engine=step.engine or "",
            prompt_tokens=step.prompt_tokens,
            cached_tokens=step.cached_tokens,
            output_tokens=step.output_tokens,
            attempts=step.attempts,
            tools_left_out=step.tools_left_out,
        )

    def tool(self, tool: ToolNode, step: StepNode) -> Node:
        is_measured = tool.finished_at is not None
        ends = tool.finished_at if is_measured else tool.answered_at
        begins = tool.started_at or tool.asked_at
        if ends is not None and begins > ends:
            begins = tool.asked_at  # its start was told after all else
        return Node(
            node=f"tool:{tool.call_id}",
            kind="tool",
            conversation=step.conversation,
            label=tool.tool,
            state=_tool_state(tool),
            begins=begins - self._opened_at,
            ends=self.since(ends),
            is_measured=is_measured,
            is_error=tool.is_error,
        )

    def child(self, child: ChildNode) -> Node:
        return Node(
            node=f"program:{child.program}",
            kind="program",
            conversation=self._conversation_of(child.spawned_by),
            label=child.program,
            state="open" if child.closed_at is None else "closed",
            begins=child.opened_at - self._opened_at,
            ends=self.since(child.closed_at),
        )

    def folded(self, folded: Folded) -> Node:
        return Node(
            node=f"folded:{folded.conversation}",
            kind="folded",
            conversation=folded.conversation,
            label=f"{folded.steps} earlier steps",
            state="folded",
            begins=folded.since - self._opened_at,
            ends=folded.until - self._opened_at,
            prompt_tokens=folded.prompt_tokens,
            cached_tokens=folded.cached_tokens,
            output_tokens=folded.output_tokens,
            steps=folded.steps,
            tools=folded.tools,
        )

    def _conversation_of(self, step: StepId | None) -> str:
        node = self._graph.steps.get(step) if step is not None else None
        return node.conversation if node is not None else ""


def _tool_state(tool: ToolNode) -> str:
    return ToolState.FAILED.value if tool.is_error else tool.state.value
