"""Dynamo's agentic Mooncake: requests that wait for each other, with tool times and prefix blocks.

Version 1 rows say `wait_for` (requests whose end they await), then wait `delay` and `tool_wait_ms`;
`tool_events` are the tools that ran meanwhile. Version 2 begins with a header (`schema`,
`block_size`) and has `dependencies` with a trigger (dispatch or completion), a delay and a relation
(sequence, spawn, join; a replay barrier repeats the order of the recording and says no more). A
`session_id` of a play is one conversation, its requests in the order in which they await each
other; one whose first request awaits another conversation's is that one's sub-agent, and a later
request of the parent that awaits its last request joins it. All rows of a file are held until it
ends: any may wait for any, and Dynamo sorts them by name (ten before two).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.blocks import (
    Numbers,
    block_size_of,
    prefix_blocks,
    runs_of,
)
from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.files import InputFile, Names, OnError, rows_of
from agentsched_bench.workload.importers.loose import (
    Object,
    as_count,
    as_list,
    as_name,
    as_number,
    as_object,
    as_objects,
    as_seconds,
    first,
    flat,
)
from agentsched_bench.workload.importers.mooncake import grown_tokens, has_length, lengths
from agentsched_bench.workload.trace import RecordedStep, RecordedTool, Recording, TraceError

SCHEMA: Final = "dynamo.agentic_mooncake"
#: What the converter of version 1 uses where nothing says otherwise.
_BLOCK_SIZE: Final = 64
_ROWS_MAX: Final = 5_000_000
_PROBED: Final = 20
#: What our own exporter calls itself in the header: its blocks are the same in all plays.
_OWN_FORMAT: Final = "agentsched"
#: Which of the relations of a first request names its parent, the best first; others are between.
_PARENTHOOD: Final = {"spawn": 0, "": 0, "replay_barrier": 2}
_JOINS: Final = ("join", "")
_OWN: Final = frozenset(
    {
        "wait_for",
        "branches",
        "prefix_reset",
        "tool_wait_ms",
        "tool_events",
        "dependencies",
        "play_id",
    }
)


@dataclass(frozen=True, slots=True)
class AgenticMooncake:
    """Reads agentic Mooncake JSONL of both versions."""

    name: str = "agentic-mooncake"
    title: str = "Dynamo agentic Mooncake JSONL"
    block_size: int = _BLOCK_SIZE

    def claims(self, head: Sequence[Any]) -> bool:
        for value in flat(head)[:_PROBED]:
            row = as_object(value)
            if as_name(row.get("schema")).startswith(SCHEMA):
                return True
            if "request_id" in row and has_length(row) and _OWN.intersection(row):
                return True
        return False

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        names = Names()
        for file in files:
            scope = names.of(file.path.name)
            yield from _File(self.block_size, file, options, on_error, scope=scope).read()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wait:
    """One request that another awaits; `at_end` false: from its beginning, not its end."""

    request: str
    delay_s: float = 0.0
    relation: str = ""
    at_end: bool = True


@dataclass(slots=True, kw_only=True)
class _Row:
    request: str
    play: str
    session: str
    line: int
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    has_blocks: bool
    at_s: float | None
    delay_s: float
    tool_s: float | None
    took_s: float | None
    waits: tuple[_Wait, ...]
    tools: tuple[RecordedTool, ...]
    is_reset: bool
    model: str | None


@dataclass(slots=True)
class _Thread:
    """One conversation; `parent` is the request after which it began, of another one."""

    name: str
    play: str
    rows: list[_Row] = field(default_factory=list)
    parent: _Row | None = None


class _File:
    """One file's rows."""

    def __init__(
        self,
        block_size: int,
        file: InputFile,
        options: ImportOptions,
        on_error: OnError,
        *,
        scope: str,
    ) -> None:
        self._block_size = block_size
        self._file = file
        self._options = options
        self._on_error = on_error
        #: Ids are local to their file.
        self._scope = scope
        self._numbers = Numbers()
        self._rows: dict[str, _Row] = {}
        self._is_told = False
        self._is_ours = False
        #: Whether blocks are equal within a play alone.
        self._is_by_play = False

    def read(self) -> Iterator[Imported]:
        for number, value in rows_of(self._file, on_error=self._on_error):
            row = as_object(value)
            if "schema" in row and not has_length(row):
                told = as_count(row.get("block_size"))
                self._is_told = bool(told)
                self._block_size = told or self._block_size
                source = as_object(row.get("source"))
                self._is_ours = source.get("format") == _OWN_FORMAT
                continue
            self._take(row, number)
        if not self._is_told:
            sizes = [(row.input_tokens, len(row.blocks)) for row in self._rows.values()]
            self._block_size = block_size_of(sizes, default=self._block_size)
        threads = self._threads()
        owners = {row.request: thread for thread in threads for row in thread.rows}
        for thread in threads:
            yield self._recording(thread, owners=owners)

    def _take(self, value: Object, number: int) -> None:
        prompt, output = lengths(value)
        if not prompt:
            text = "not a request: it has no input_length"
            self._on_error(TraceError(text, path=self._file.path, line=number))
            return
        request = as_name(value.get("request_id"), default=f"line-{number}")
        if request in self._rows:
            text = f"request_id {request!r} was on line {self._rows[request].line} already"
            self._on_error(TraceError(text, path=self._file.path, line=number))
            return
        if len(self._rows) >= _ROWS_MAX:
            text = f"more than {_ROWS_MAX:,} requests: the rest is left out"
            raise TraceError(text, path=self._file.path, line=number)
        at_ms = as_seconds(
            first(value.get("timestamp"), value.get("created_time"), value.get("not_before_ms"))
        )
        tool_ms = as_seconds(value.get("tool_wait_ms"))
        took_ms = as_seconds(value.get("recorded_api_time_ms"))
        blocks = value.get("hash_ids")
        self._rows[request] = _Row(
            request=request,
            play=as_name(value.get("play_id")),
            session=as_name(value.get("session_id"), default=""),
            line=number,
            input_tokens=prompt,
            output_tokens=output,
            blocks=tuple(self._numbers.block(block) for block in as_list(blocks)),
            has_blocks=isinstance(blocks, list),
            at_s=None if at_ms is None else at_ms / 1000,
            delay_s=(as_seconds(first(value.get("delay"), value.get("delay_ms"))) or 0.0) / 1000,
            tool_s=None if tool_ms is None else tool_ms / 1000,
            took_s=None if took_ms is None else took_ms / 1000,
            waits=_waits(value),
            tools=tuple(_tool(event) for event in as_objects(value.get("tool_events"))),
            is_reset=value.get("prefix_reset") is True,
            model=as_name(value.get("model")) or None,
        )

    def _threads(self) -> list[_Thread]:
        """Conversations by play and name, each with its rows in order.

        A row without a conversation's name goes on from the single row that it awaits.
        """
        ordered = list(_in_order(self._rows))
        for row in ordered:
            if not row.session:
                known = [w.request for w in row.waits if w.request in self._rows]
                before = self._rows[known[0]] if len(known) == 1 else None
                row.session = row.request
                if before is not None and before.session:
                    row.play, row.session = before.play, before.session
        names = Counter(name for _, name in {(row.play, row.session) for row in ordered})
        threads: dict[tuple[str, str], _Thread] = {}
        for row in self._rows.values():
            name = row.session if names[row.session] == 1 else f"{row.play}/{row.session}"
            threads.setdefault((row.play, row.session), _Thread(name, row.play))
        for row in ordered:
            thread = threads[row.play, row.session]
            if not thread.rows:
                thread.parent = self._begun_by(row)
            thread.rows.append(row)
        plays = {thread.play for thread in threads.values()}
        self._is_by_play = len(plays) > 1 and not self._is_ours
        return list(threads.values())

    def _begun_by(self, row: _Row) -> _Row | None:
        """The request of another conversation after which a first one began, if there is one."""
        known = [wait for wait in row.waits if wait.request in self._rows]
        awaited = [(_PARENTHOOD.get(w.relation, 1), self._rows[w.request]) for w in known]
        own = (row.play, row.session)
        others = [one for one in awaited if (one[1].play, one[1].session) != own]
        return min(others, key=lambda one: one[0])[1] if others else None

    def _recording(self, thread: _Thread, *, owners: Mapping[str, _Thread]) -> Imported:
        rows = thread.rows
        parent = None if thread.parent is None else owners.get(thread.parent.request)
        if parent is not None and (parent is thread or _is_below(parent, thread, owners)):
            parent = None
        begun = rows[0].at_s
        fields: dict[str, Any] = {}
        if parent is not None and thread.parent is not None:
            fields["parent"] = parent.name
            fields["parent_step"] = parent.rows.index(thread.parent)
            fields["join_step"] = _join_step(thread, parent)
            zero = parent.rows[0].at_s
            if begun is not None and zero is not None and begun >= zero:
                fields["parent_t_s"] = round(begun - zero, 6)
        has_blocks = any(row.has_blocks for row in rows)
        scope = f"{self._scope}/{thread.play}" if self._is_by_play else self._scope
        recording = Recording(
            session_id=thread.name[:1000],
            source=self._options.source or "agentic-mooncake",
            steps=tuple(self._step(rows, index) for index in range(len(rows))),
            model=rows[0].model,
            token_source={"input": "recorded", "output": "recorded", "result": "recorded"},
            block_size=self._block_size if has_blocks else None,
            hash_scope=scope if has_blocks else None,
            **fields,
        )
        return Imported(recording=recording, epoch_s=begun)

    def _step(self, rows: Sequence[_Row], index: int) -> RecordedStep:
        row = rows[index]
        following = rows[index + 1] if index + 1 < len(rows) else None
        before = rows[index - 1] if index else None
        common = 0 if before is None else prefix_blocks(row.blocks, before.blocks)
        is_kept = before is not None and not row.is_reset
        if is_kept and before is not None and before.blocks:
            is_kept = common >= before.input_tokens // self._block_size
        new = None
        if before is not None and is_kept:
            new = grown_tokens(
                row.input_tokens, before=before.input_tokens, answer=before.output_tokens
            )
        gap_s = None if following is None else _pause_s(following)
        tools = () if following is None else following.tools
        waited = None if following is None else following.tool_s
        if not tools and waited:
            tools = (RecordedTool(name="(tools)", duration_s=waited),)
        return RecordedStep(
            step=index,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            new_input_tokens=new,
            prefix_tokens=self._seen(row, before, common),
            llm_s=row.took_s,
            gap_s=gap_s,
            gap_kind="tool" if tools else "unknown",
            tools=tools,
            hash_ids=runs_of(row.blocks) if row.blocks else None,
            is_compaction=index > 0 and row.is_reset,
        )

    def _seen(self, row: _Row, before: _Row | None, common: int) -> int | None:
        if before is None:
            return None
        if row.blocks and before.blocks:
            return min(common * self._block_size, row.input_tokens)
        return 0 if row.is_reset else min(before.input_tokens, row.input_tokens)


def _in_order(rows: Mapping[str, _Row]) -> Iterator[_Row]:
    """Each row behind those that it awaits, else as the file has them; a circle is cut open."""
    seen: set[str] = set()
    for row in rows.values():
        if row.request in seen:
            continue
        seen.add(row.request)
        path = [(row, iter(row.waits))]
        while path:
            current, waits = path[-1]
            names = (wait.request for wait in waits)
            name = next((name for name in names if name in rows and name not in seen), None)
            if name is None:
                path.pop()
                yield current
                continue
            seen.add(name)
            path.append((rows[name], iter(rows[name].waits)))


def _waits(value: Object) -> tuple[_Wait, ...]:
    waits = [_Wait(request=name) for name in map(as_name, as_list(value.get("wait_for"))) if name]
    for dependency in as_objects(value.get("dependencies")):
        waits.append(
            _Wait(
                request=as_name(dependency.get("request_id")),
                delay_s=(as_seconds(dependency.get("delay_ms")) or 0.0) / 1000,
                relation=as_name(dependency.get("relation")),
                at_end=dependency.get("trigger") != "dispatch",
            )
        )
    return tuple(waits)


def _tool(event: Object) -> RecordedTool:
    took_ms = as_seconds(event.get("duration_ms"))
    if took_ms is None:
        begun = as_number(event.get("started_at_unix_ms"))
        ended = as_number(event.get("ended_at_unix_ms"))
        took_ms = None if begun is None or ended is None else max(0.0, ended - begun)
    return RecordedTool(
        name=as_name(first(event.get("tool_class"), event.get("tool_name")), default="tool"),
        duration_s=None if took_ms is None else took_ms / 1000,
        result_tokens=as_count(event.get("output_tokens")),
        call_id=as_name(event.get("tool_call_id")) or None,
        is_error=as_name(event.get("status")) in ("error", "failed", "tool_error"),
    )


def _pause_s(row: _Row) -> float:
    """From the end of the last request that it awaits to its own beginning."""
    delays = [wait.delay_s for wait in row.waits if wait.at_end]
    return round(row.delay_s + (row.tool_s or 0.0) + max(delays, default=0.0), 6)


def _join_step(child: _Thread, parent: _Thread) -> int | None:
    """The parent's step whose pause waits for the sub-agent: the one before the row that does."""
    last = child.rows[-1].request
    for index, row in enumerate(parent.rows):
        joins = (w.request == last and w.at_end and w.relation in _JOINS for w in row.waits)
        if index and any(joins):
            return index - 1
    return None


def _is_below(one: _Thread, other: _Thread, owners: Mapping[str, _Thread]) -> bool:
    """Whether `one` descends from `other`, so that nothing becomes its own ancestor."""
    seen: set[str] = set()
    current: _Thread | None = one
    while current is not None and current.name not in seen:
        if current is other:
            return True
        seen.add(current.name)
        current = None if current.parent is None else owners.get(current.parent.request)
    return False
