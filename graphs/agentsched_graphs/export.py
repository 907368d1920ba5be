"""Execution graphs as text: JSON for programs, Mermaid and DOT for drawing tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from agentsched.model import WireError
from agentsched_graphs.snapshot import SNAPSHOT_VERSION, Node, Snapshot

#: Labels are cut to this many characters.
_LABEL_CHARS_MAX: Final = 40

_FILLS: Final[Mapping[str, str]] = {
    "waiting": "#fde0b5",
    "dispatched": "#cfe0f5",
    "running": "#9ec5f0",
    "finished": "#d9ead3",
    "failed": "#f4b6b0",
    "cancelled": "#dddddd",
    "rejected": "#f4b6b0",
    "tool": "#f5efd6",
    "program": "#e4d7f2",
    "folded": "#eeeeee",
}
_MERMAID_ARROWS: Final[Mapping[str, str]] = {
    "control": "==>",
    "calls": "-->",
    "data": "-.->",
}
_DOT_STYLES: Final[Mapping[str, str]] = {
    "control": 'penwidth=2 color="#444444"',
    "calls": 'color="#888888"',
    "data": 'style=dashed color="#888888"',
    "spawns": 'color="#7b4fa3" penwidth=1.5',
    "joins": 'color="#7b4fa3" penwidth=1.5 style=dashed',
    "forks": 'color="#b06a00" penwidth=1.5',
    "compacts": 'color="#b03030" penwidth=1.5',
}


def to_json(shown: Snapshot) -> bytes:
    """One JSON object; `from_json` reads it back."""
    return msgspec.json.encode(shown)


def from_json(text: bytes) -> Snapshot:
    """The snapshot that `to_json` made this from.

    Raises:
        WireError: it is none, or of a version that this one cannot read.
    """
    try:
        made = msgspec.json.decode(text, type=Snapshot)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not an execution graph: {error}") from error
    if made.version != SNAPSHOT_VERSION:
        raise WireError(f"execution graph of version {made.version}; this reads {SNAPSHOT_VERSION}")
    return made


def to_mermaid(shown: Snapshot) -> str:
    """A Mermaid flowchart: one box a conversation, tools rounded, sums of old steps as flags."""
    names = _names(shown.nodes)
    lines = ["flowchart TD"]
    for number, (conversation, nodes) in enumerate(_by_conversation(shown.nodes)):
        title = _quoted(f"conversation {conversation}" if conversation else "sub-programs")
        lines.append(f"  subgraph c{number}[{title}]")
        for node in nodes:
            opening, closing = _MERMAID_SHAPES[node.kind]
            text = _quoted("<br/>".join(_words(node)))
            lines.append(f"    {names[node.node]}{opening}{text}{closing}:::{_look(node)}")
        lines.append("  end")
    for edge in shown.edges:
        source, target = names[edge.source], names[edge.target]
        plain = _MERMAID_ARROWS.get(edge.kind)
        arrow = plain if plain is not None else f"-->|{edge.kind}|"
        lines.append(f"  {source} {arrow} {target}")
    used = {_look(node): None for node in shown.nodes}
    lines += (f"  classDef {look} fill:{_FILLS[look]},stroke:#666,color:#111" for look in used)
    return "\n".join(lines) + "\n"


_MERMAID_SHAPES: Final[Mapping[str, tuple[str, str]]] = {
    "step": ("[", "]"),
    "tool": ("([", "])"),
    "program": ("[[", "]]"),
    "folded": (">", "]"),
}
_DOT_SHAPES: Final[Mapping[str, str]] = {
    "step": "box",
    "tool": "ellipse",
    "program": "component",
    "folded": "note",
}


def to_dot(shown: Snapshot) -> str:
    """A Graphviz digraph: one cluster a conversation."""
    names = _names(shown.nodes)
    lines = [
        "digraph program {",
        f'  graph [rankdir=TB fontname="sans-serif" label={_dot(shown.program)}];',
        '  node [style=filled fontname="sans-serif" fontsize=10];',
        '  edge [fontname="sans-serif" fontsize=9];',
    ]
    for number, (conversation, nodes) in enumerate(_by_conversation(shown.nodes)):
        lines.append(f"  subgraph cluster_{number} {{")
        lines.append(f"    label={_dot(conversation or 'sub-programs')};")
        for node in nodes:
            label = _dot("\n".join(_words(node)))
            shape, fill = _DOT_SHAPES[node.kind], _FILLS[_look(node)]
            lines.append(
                f'    {names[node.node]} [label={label} shape={shape} fillcolor="{fill}"];'
            )
        lines.append("  }")
    for edge in shown.edges:
        style = _DOT_STYLES[edge.kind]
        lines.append(f"  {names[edge.source]} -> {names[edge.target]} [{style}];")
    return "\n".join([*lines, "}"]) + "\n"


def _names(nodes: Iterable[Node]) -> dict[str, str]:
    """Short names that both languages take: ids may hold anything."""
    return {node.node: f"{node.kind[0]}{number}" for number, node in enumerate(nodes)}


def _by_conversation(nodes: Iterable[Node]) -> list[tuple[str, list[Node]]]:
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        groups.setdefault(node.conversation, []).append(node)
    return list(groups.items())


def _look(node: Node) -> str:
    if node.kind == "step":
        return node.state
    return "failed" if node.is_error else node.kind


def _words(node: Node) -> list[str]:
    """What stands in a node: two short lines."""
    took = _span(node)
    match node.kind:
        case "step":
            tokens = f"{node.prompt_tokens:,} > {node.output_tokens:,} tok"
            said = node.state if node.state != "finished" else took
            return [_cut(f"step {node.label}  {said}"), tokens]
        case "tool":
            return [_cut(node.label), took if node.ends is not None else node.state]
        case "program":
            return [_cut(f"program {node.label}"), node.state]
        case "folded":
            return [_cut(node.label), f"{node.prompt_tokens:,} prompt tok"]


def _span(node: Node) -> str:
    if node.ends is None:
        return node.state
    seconds = (node.ends - node.begins) / 1e9
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1e3:.0f} ms"


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL_CHARS_MAX else f"{text[: _LABEL_CHARS_MAX - 1]}…"


_UNSAFE: Final = re.compile(r"[^\w .,:/+\-%()=@…]")


def _quoted(text: str) -> str:
    """A Mermaid string: what might be read as markup becomes a character code."""
    parts = text.split("<br/>")
    safe = [_UNSAFE.sub(lambda sign: f"#{ord(sign[0])};", part) for part in parts]
    return '"' + "<br/>".join(safe) + '"'


def _dot(text: str) -> str:
    kept = "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)
    escaped = kept.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
