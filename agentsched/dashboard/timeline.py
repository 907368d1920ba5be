"""A program's life as lanes over time: waits, computing, tools, pauses, pins.

Steps and tools come from the execution graph, pins and reasons from the program's story, which
holds the latest turns only: what is older has no pins and no reasons here. Times are seconds since
the program was opened; an end of None is "not yet".
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Final, Literal

import msgspec

from agentsched.kernel import JournalEntry
from agentsched.model import ConversationId, Dispatch, Instant, Pin, PinId, Prefetch, Unpin
from agentsched_graphs.snapshot import Node, Snapshot, ended_at

SpanKind = Literal[
    "wait", "prefill", "decode", "compute", "tool", "pause", "pin", "warm", "folded", "program"
]

_ROLES: Final = {"spawned": "sub-agent", "forks": "branch", "compacts": "after compaction"}


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stretch of time of one conversation. `row` tells tools that overlap apart."""

    kind: SpanKind
    begins: float
    ends: float | None
    label: str
    node: str = ""
    row: int = 0
    state: str = ""
    engine: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    is_error: bool = False


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation."""

    conversation: str
    role: str
    spans: tuple[Span, ...]


class Sums(msgspec.Struct, kw_only=True):
    """Seconds spent in each way, over all lanes; those that overlap add up."""

    wait: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    compute: float = 0.0
    tool: float = 0.0
    pause: float = 0.0
    pin: float = 0.0


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One program's life so far."""

    program: str
    tenant: str
    agent: str
    now: float
    closed: float | None
    lanes: tuple[Lane, ...]
    sums: Sums


def timeline(
    shown: Snapshot,
    story: Iterable[JournalEntry],
    *,
    opened_at: Instant,
    held: Container[PinId] = (),
) -> Timeline:
    """The lanes of a program's graph, with what its story says about pins and reasons.

    `held` are pins that are held now. Of others the story may not tell the end, where it came in a
    turn of somebody else or of a timer: they are shown up to when they would have expired.
    """
    entries = list(story)
    reasons = _reasons(entries)
    kept = _keeping(entries, opened_at=opened_at, until=_end_of(shown), held=held)
    groups: dict[str, list[Node]] = {}
    for node in sorted(shown.nodes, key=lambda n: (n.begins, n.node)):
        groups.setdefault(node.conversation, []).append(node)
    lanes = []
    for number, (conversation, nodes) in enumerate(groups.items()):
        spans = [*_steps(nodes, reasons), *_others(nodes, shown), *_pauses(nodes, shown)]
        spans += kept.get(conversation, [])
        role = _role(number, conversation, nodes)
        spans.sort(key=lambda s: (s.begins, s.kind, s.node))
        lanes.append(Lane(conversation=conversation, role=role, spans=tuple(spans)))
    now = _seconds(shown.now)
    return Timeline(
        program=shown.program,
        tenant=shown.tenant,
        agent=shown.agent,
        now=now,
        closed=None if shown.closed is None else _seconds(shown.closed),
        lanes=tuple(lanes),
        sums=_sums(lanes, now=now),
    )


def _seconds(nanos: int) -> float:
    return round(nanos / 1e9, 4)


def _end_of(shown: Snapshot) -> int:
    return shown.now if shown.closed is None else shown.closed


def _role(number: int, conversation: str, nodes: list[Node]) -> str:
    if not conversation:
        return "sub-programs"
    lineage = next((n.lineage for n in nodes if n.kind == "step"), "")
    return _ROLES.get(lineage, "main" if number == 0 else "conversation")


def _steps(nodes: Iterable[Node], reasons: dict[str, str]) -> Iterator[Span]:
    for node in nodes:
        if node.kind != "step":
            continue
        # Where nobody saw a first token, prompt and answer cannot be told apart.
        is_whole = node.started is None and node.ends is not None
        first = "compute" if is_whole else "prefill"
        marks = [("wait", node.begins), (first, node.dispatched), ("decode", node.started)]
        reached = [(kind, at) for kind, at in marks if at is not None]
        for (kind, begins), following in zip(reached, [*reached[1:], None], strict=True):
            ends = following[1] if following is not None else node.ends
            yield Span(
                kind=kind,  # type: ignore[arg-type]  # one of those above
                begins=_seconds(begins),
                ends=None if ends is None else _seconds(ends),
                label=node.label,
                node=node.node,
                state=node.state,
                engine=node.engine,
                reason=reasons.get(node.node.removeprefix("step:"), ""),
                prompt_tokens=node.prompt_tokens,
                cached_tokens=node.cached_tokens,
                output_tokens=node.output_tokens,
                is_error=node.state in ("failed", "rejected"),
            )


def _others(nodes: Iterable[Node], shown: Snapshot) -> Iterator[Span]:
    """Tools, sub-programs and what was folded, each in the first row that is free."""
    free_at: list[int] = []
    for node in nodes:
        if node.kind == "step":
            continue
        row, ends = 0, ended_at(node, shown)
        if node.kind != "folded":
            row = next((i for i, at in enumerate(free_at) if at <= node.begins), len(free_at))
            if row == len(free_at):
                free_at.append(0)
            free_at[row] = max(node.begins + 1, ends if ends is not None else 1 << 62)
        yield Span(
            kind=node.kind,
            begins=_seconds(node.begins),
            ends=None if ends is None else _seconds(ends),
            label=node.label,
            node=node.node,
            row=row,
            state=node.state,
            prompt_tokens=node.prompt_tokens,
            cached_tokens=node.cached_tokens,
            output_tokens=node.output_tokens,
            is_error=node.is_error,
        )


def _pauses(nodes: Iterable[Node], shown: Snapshot) -> Iterator[Span]:
    """Times without a live step between two steps, and after the last one while it is open."""
    quiet_from: int | None = None
    for node in nodes:
        if node.kind not in ("step", "folded"):
            continue
        if quiet_from is not None and node.begins > quiet_from:
            yield _pause(quiet_from, node.begins)
        ends = node.ends if node.ends is not None else 1 << 62
        quiet_from = ends if quiet_from is None else max(quiet_from, ends)
    if quiet_from is not None and quiet_from < 1 << 62 and shown.closed is None:
        yield _pause(quiet_from, None)


def _pause(begins: int, ends: int | None) -> Span:
    until = None if ends is None else _seconds(ends)
    return Span(kind="pause", begins=_seconds(begins), ends=until, label="paused")


def _reasons(entries: Iterable[JournalEntry]) -> dict[str, str]:
    """Why each step went where it went when it did."""
    found = {}
    for entry in entries:
        for command in entry.commands:
            if isinstance(command, Dispatch):
                said = (command.order, command.place, command.pin and f"pin {command.pin}")
                found[command.step] = ", ".join(word for word in said if word)
    return {str(step): reason for step, reason in found.items()}


def _keeping(
    entries: Iterable[JournalEntry], *, opened_at: Instant, until: int, held: Container[PinId]
) -> dict[str, list[Span]]:
    """Pins and warm-ups by conversation, of which each holds at most one at a time."""
    open_now: dict[ConversationId, tuple[Pin | Prefetch, Instant]] = {}
    found: dict[str, list[Span]] = {}

    def close(conversation: ConversationId, ends: Instant | None, reason: str) -> None:
        command, since = open_now.pop(conversation)
        latest = command.expires_at if isinstance(command, Pin) else command.wanted_by
        if ends is not None:
            ends = Instant(max(since, min(ends, latest)))
        span = Span(
            kind="pin" if isinstance(command, Pin) else "warm",
            begins=_seconds(since - opened_at),
            ends=None if ends is None else _seconds(min(ends - opened_at, until)),
            label="pinned" if isinstance(command, Pin) else "warmed",
            engine=command.engine,
            reason=reason,
            prompt_tokens=command.prefix.tokens,
        )
        found.setdefault(conversation, []).append(span)

    for entry in entries:
        for command in entry.commands:
            if isinstance(command, Pin | Prefetch):
                before = open_now.get(command.conversation)
                if before is not None:
                    is_same = before[0].pin == command.pin
                    close(command.conversation, entry.now, "extended" if is_same else "given up")
                open_now[command.conversation] = command, entry.now
            elif isinstance(command, Unpin):
                ended = [c for c, (pin, _) in open_now.items() if pin.pin == command.pin]
                for conversation in ended:
                    close(conversation, entry.now, command.reason.value)
    for conversation, (pin, _) in list(open_now.items()):
        if pin.pin in held:
            close(conversation, None, "held")
        else:
            close(conversation, Instant(opened_at + until), "expired, or given up before")
    return found


def _sums(lanes: Iterable[Lane], *, now: float) -> Sums:
    sums = Sums()
    for lane in lanes:
        for span in lane.spans:
            if hasattr(sums, span.kind):
                took = (now if span.ends is None else span.ends) - span.begins
                setattr(sums, span.kind, round(getattr(sums, span.kind) + max(0.0, took), 4))
    return sums
