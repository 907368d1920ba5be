"""Codex's rollouts: `sessions/YYYY/MM/DD/rollout-TIME-THREAD.jsonl`, one file a thread.

A line has a time, a type and a payload: items as they go to the model and come from it, events and
token counts. A sub-agent has a file of its own that names its parent. A session that is resumed
goes on in its file. A fork names the line up to which another file is its own (`history_base`), or
begins with a copy of it: what was answered there is part of its prompts, and no call of its own.
The system prompt is in the first line; of the tools' definitions nobody tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.codex_thread import Thread, unwrapped
from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.family import Member, joined
from agentsched_bench.workload.importers.files import InputFile, OnError, values
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_name,
    as_object,
    as_objects,
    first,
)
from agentsched_bench.workload.trace import TraceError

_TYPES: Final = frozenset({"session_meta", "response_item", "event_msg", "turn_context"})
#: Forks of forks are followed so far.
_FORKS_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class Codex:
    """Reads Codex's rollouts; those of sub-agents are joined to their sessions."""

    name: str = "codex"
    title: str = "Codex CLI rollouts (.jsonl)"

    def claims(self, head: Sequence[Any]) -> bool:
        return any(_is_line(as_object(value)) for value in head)

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        told: set[str] = set()
        heads = [_head(file) for file in files]
        by_thread = {head.thread: head for head in reversed(heads)}
        for group in _groups(heads, by_thread):
            threads: list[tuple[_Head, Thread]] = []
            for head in group:
                thread = Thread(told)
                for line in _borrowed(head, by_thread):
                    thread.line(line, is_borrowed=True)
                own = [(head, thread)]
                for line in _lines(head.file, on_error=on_error):
                    if thread.is_another(line):
                        head, thread = _head_of(unwrapped(line)[1], head.file), Thread(told)
                        own.append((head, thread))
                    thread.line(line)
                for _, thread in own:
                    thread.end()
                threads += own
                # Folders of sessions hold some in which nothing was asked, and copies of others.
                is_heard = any(one.conversation.calls or one.is_repeated for _, one in own)
                if head.file.is_named and not is_heard:
                    on_error(TraceError("no answer of a model in it", path=head.file.path))
            yield from joined(_members(threads), source="codex", options=options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What a thread's first line says: whose it is, who started it, and what it goes on from."""

    file: InputFile
    thread: str
    parent: str | None = None
    base: str | None = None
    base_end: int = 0


def _is_line(line: Object) -> bool:
    if isinstance(line.get("payload"), dict):
        return as_name(line.get("type")) in _TYPES
    if isinstance(line.get("items"), list) and isinstance(line.get("session"), dict):
        return True
    return "id" in line and "timestamp" in line and "instructions" in line


def _lines(file: InputFile, *, on_error: OnError) -> Iterator[Object]:
    for found in values(file, on_error=on_error):
        yield from _flat(found.value)


def _flat(value: Json) -> list[Object]:
    """A line; or, in what the first versions wrote, a session and all of its items."""
    line = as_object(value)
    if isinstance(line.get("items"), list) and "payload" not in line:
        head: Object = {"instructions": None, "timestamp": None}
        return [head | as_object(line.get("session")), *as_objects(line.get("items"))]
    return [line]


def _head(file: InputFile) -> _Head:
    for line in _lines(file, on_error=lambda _: None):
        kind, payload = unwrapped(line)
        if kind == "session_meta":
            return _head_of(payload, file)
    return _Head(file=file, thread=file.name)


def _head_of(payload: Object, file: InputFile) -> _Head:
    spawned = as_object(as_object(as_object(payload.get("source")).get("subagent")))
    spawn = as_object(spawned.get("thread_spawn"))
    parent = as_name(first(payload.get("parent_thread_id"), spawn.get("parent_thread_id")))
    base = as_object(payload.get("history_base"))
    return _Head(
        file=file,
        thread=as_name(first(payload.get("id"), payload.get("session_id")), default=file.name),
        parent=parent or None,
        base=as_name(base.get("thread_id")) or None,
        base_end=as_count(base.get("end_ordinal_exclusive")) or 0,
    )


def _groups(heads: Sequence[_Head], by_thread: dict[str, _Head]) -> Iterator[list[_Head]]:
    """Files of one session together, in the order given: memory is that of one session."""
    groups: dict[str, list[_Head]] = {}
    for head in heads:
        root, seen = head, {head.thread}
        while root.parent in by_thread and root.parent not in seen:
            seen.add(root.parent)
            root = by_thread[root.parent]
        groups.setdefault(root.thread, []).append(head)
    yield from groups.values()


def _borrowed(head: _Head, by_thread: dict[str, _Head], depth: int = 0) -> Iterator[Object]:
    """The lines of other files that a fork begins with, where those files are there."""
    base = by_thread.get(head.base or "")
    if base is None or depth > _FORKS_MAX:
        return
    yield from _borrowed(base, by_thread, depth + 1)
    for line in _lines(base.file, on_error=lambda _: None):
        ordinal = as_count(line.get("ordinal"))
        if ordinal is not None and ordinal >= head.base_end:
            return
        yield line


def _members(threads: Sequence[tuple[_Head, Thread]]) -> list[Member]:
    started: dict[str, str] = {}
    for _, thread in threads:
        for child, call in thread.started.items():
            started.setdefault(child, call)
    return [
        Member(
            name=head.thread,
            conversation=thread.conversation,
            agent=f"codex/{thread.kind}" if thread.kind else "codex",
            model=thread.model,
            parent=head.parent,
            call_id=started.get(head.thread),
        )
        for head, thread in threads
    ]
