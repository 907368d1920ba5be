"""Mooncake's request traces (FAST'25): arrivals with lengths and prefix blocks of 512 tokens.

The published files have no conversations. A request whose blocks go on from those of an earlier one
(all of its full blocks, and room for its answer) is taken as the next turn of that conversation;
a beginning that more than one conversation has does not count. Rows with a `session_id` say
it themselves, and may give a `delay` after the turn before instead of a `timestamp` (both in ms);
where their prompts are too short to hold what was before, and there are no blocks, each is what is
new. Bailian's rows name the request that they go on from (`parent_chat_id`), in seconds and blocks
of 16 tokens. The size of blocks is taken from the rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
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
    as_seconds,
    first,
    flat,
)
from agentsched_bench.workload.trace import RecordedStep, Recording, TraceError

BLOCK_SIZE: Final = 512
#: What a shared beginning must be longer than to name a conversation.
_SHARED_TOKENS: Final = 1023
_PEEKED: Final = 200
#: Conversations that may still go on; beyond, the one that was longest silent is taken as over.
OPEN_MAX: Final = 200_000


@dataclass(frozen=True, slots=True)
class Mooncake:
    """Reads Mooncake JSONL; turns are joined to conversations."""

    name: str = "mooncake"
    title: str = "Mooncake JSONL (timestamp, input_length, output_length, hash_ids)"
    block_size: int = BLOCK_SIZE

    def claims(self, head: Sequence[Any]) -> bool:
        return any(_is_row(as_object(value)) for value in flat(head[:5])[:5])

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        names = Names()
        for file in files:
            scope = names.of(_stem(file))
            yield from _File(self.block_size, file, options, on_error, scope=scope).read()


def has_length(row: Object) -> bool:
    """Whether it says how long its prompt is, as any row of the family does."""
    return "input_length" in row or "input_tokens" in row


def lengths(row: Object) -> tuple[int, int]:
    """Tokens of prompt and answer, under either of their names; 0 where it does not say."""
    prompt = as_count(first(row.get("input_length"), row.get("input_tokens")))
    output = as_count(first(row.get("output_length"), row.get("output_tokens")))
    return prompt or 0, output or 0


def grown_tokens(prompt: int, *, before: int, answer: int) -> int | None:
    """What a prompt has beyond the one before it and the answer to that; None: it is shorter."""
    grown = prompt - before - answer
    return grown if grown >= 0 else None


def _is_row(row: Object) -> bool:
    has_time = "timestamp" in row or "delay" in row or "delay_ms" in row or "created_time" in row
    return has_length(row) and (has_time or "hash_ids" in row)


@dataclass(slots=True, kw_only=True)
class _Row:
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    at_s: float | None
    delay_s: float | None


@dataclass(slots=True)
class _Open:
    """A conversation that may go on."""

    name: str
    #: Its rows say whose they are, so that their order in the file says nothing.
    is_told: bool = False
    rows: list[_Row] = field(default_factory=list)
    key: int | None = None


class _File:
    """One file's rows while they are joined."""

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
        self._on_error = on_error
        self._source = options.source or _stem(file)
        # Ids are local to their file; where nothing is said they are to their source.
        self._scope = None if scope == self._source else scope
        self._numbers = Numbers()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        #: By a prompt's last full block, which names all before it: who goes on from there.
        self._ends: dict[int, str] = {}
        #: Bailian's: the conversation that a request ended, by its id.
        self._chats: OrderedDict[str, str] = OrderedDict()
        self._count = 0

    def read(self) -> Iterator[Imported]:
        peeked = islice(rows_of(self._file, on_error=lambda _: None), _PEEKED)
        sizes = [
            (lengths(row)[0], len(as_list(row.get("hash_ids"))))
            for row in (as_object(value) for _, value in peeked)
        ]
        self._block_size = block_size_of(sizes, default=self._block_size)
        for number, value in rows_of(self._file, on_error=self._on_error):
            row = self._row(as_object(value))
            if row is None:
                text = "not a request: it has no input_length"
                self._on_error(TraceError(text, path=self._file.path, line=number))
                continue
            session = as_name(as_object(value).get("session_id"))
            yield from self._take(row, session or self._chat(as_object(value)))
        for conversation in self._open.values():
            yield self._finished(conversation)

    def _row(self, value: Object) -> _Row | None:
        prompt, output = lengths(value)
        if not prompt:
            return None
        unit = 1 if "parent_chat_id" in value else 1000
        at = as_number(first(value.get("timestamp"), value.get("created_time")))
        delay_ms = as_seconds(first(value.get("delay"), value.get("delay_ms")))
        blocks = tuple(self._numbers.block(block) for block in as_list(value.get("hash_ids")))
        return _Row(
            input_tokens=prompt,
            output_tokens=output,
            blocks=blocks,
            at_s=None if at is None or at < 0 else at / unit,
            delay_s=None if delay_ms is None else delay_ms / 1000,
        )

    def _chat(self, value: Object) -> str:
        """The conversation of a row that names its own id and that of the one before."""
        own, parent = as_name(value.get("chat_id")), as_name(value.get("parent_chat_id"))
        if not own or not parent:
            return ""
        # A second answer to one request is another conversation.
        name = self._chats.pop(parent, None) or f"{_stem(self._file)}/{own}"
        self._chats[own] = name
        if len(self._chats) > OPEN_MAX:
            self._chats.popitem(last=False)
        return name

    def _take(self, row: _Row, session: str) -> Iterator[Imported]:
        name = session or self._goes_on(row)
        conversation = self._open.get(name) if name else None
        if conversation is None:
            own = name or f"{_stem(self._file)}/{self._count}"
            conversation = _Open(own, is_told=bool(session))
            self._open[conversation.name] = conversation
        self._count += 1
        conversation.rows.append(row)
        self._open.move_to_end(conversation.name)
        if not session:
            self._mark(conversation, row)
        if len(self._open) > OPEN_MAX:
            _, oldest = self._open.popitem(last=False)
            if oldest.key is not None:
                self._ends.pop(oldest.key, None)
            yield self._finished(oldest)

    def _goes_on(self, row: _Row) -> str:
        for block in reversed(row.blocks[1:]):
            name = self._ends.get(block)
            if name is None or name not in self._open:
                continue
            last = self._open[name].rows[-1]
            if row.input_tokens > last.input_tokens + last.output_tokens - self._block_size:
                return name
        return ""

    def _mark(self, conversation: _Open, row: _Row) -> None:
        if conversation.key is not None:
            self._ends.pop(conversation.key, None)
            conversation.key = None
        full = row.input_tokens // self._block_size
        # The first tokens are a system prompt that many have; they name nobody.
        if full * self._block_size > _SHARED_TOKENS and full <= len(row.blocks):
            conversation.key = row.blocks[full - 1]
            self._ends[conversation.key] = conversation.name

    def _finished(self, conversation: _Open) -> Imported:
        rows = conversation.rows
        times = [row.at_s for row in rows if row.at_s is not None]
        if conversation.is_told and len(times) == len(rows):
            rows = sorted(rows, key=lambda row: row.at_s or 0.0)
        zero = rows[0].at_s
        has_blocks = any(row.blocks for row in rows)
        if not has_blocks:
            rows = _whole_prompts(rows)
        recording = Recording(
            session_id=conversation.name[:1000],
            source=self._source,
            workload="chat",
            steps=tuple(
                _step(rows, index, zero=zero, block_size=self._block_size)
                for index in range(len(rows))
            ),
            token_source={"input": "recorded", "output": "recorded", "result": None},
            block_size=self._block_size if has_blocks else None,
            hash_scope=self._scope if has_blocks else None,
        )
        return Imported(recording=recording, epoch_s=zero)


def _whole_prompts(rows: list[_Row]) -> list[_Row]:
    """Rows with all of their prompts, where each tells only what is new in it."""
    turns = list(pairwise(rows))
    if all(row.input_tokens >= before.input_tokens for before, row in turns):
        return rows
    found = rows[:1]
    for row in rows[1:]:
        known = found[-1].input_tokens + found[-1].output_tokens
        found.append(replace(row, input_tokens=known + row.input_tokens))
    return found


def _step(rows: Sequence[_Row], index: int, *, zero: float | None, block_size: int) -> RecordedStep:
    row = rows[index]
    following = rows[index + 1] if index + 1 < len(rows) else None
    before = rows[index - 1] if index else None
    new: int | None = None
    seen: int | None = None
    if before is not None:
        seen = min(before.input_tokens, row.input_tokens)
        common = prefix_blocks(before.blocks, row.blocks)
        whole = min(len(before.blocks), before.input_tokens // block_size)
        if row.blocks and common < whole:
            # The turn is of this conversation, but what was said before was cut or rewritten.
            seen = min(common * block_size, row.input_tokens)
        else:
            new = grown_tokens(
                row.input_tokens, before=before.input_tokens, answer=before.output_tokens
            )
    t_s = None if zero is None or row.at_s is None else round(max(0.0, row.at_s - zero), 6)
    return RecordedStep(
        step=index,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        t_s=t_s,
        new_input_tokens=new,
        prefix_tokens=seen,
        gap_s=None if following is None else following.delay_s,
        gap_kind="user",
        # No answer's time is recorded: from one request to the next is a cycle.
        cycle_s=_cycle(row, following),
        hash_ids=runs_of(row.blocks) if row.blocks else None,
    )


def _cycle(row: _Row, following: _Row | None) -> float | None:
    if following is None or following.delay_s is not None:
        return None
    if row.at_s is None or following.at_s is None:
        return None
    return round(max(0.0, following.at_s - row.at_s), 6)


def _stem(file: InputFile) -> str:
    return file.path.name.split(".")[0] or "mooncake"
