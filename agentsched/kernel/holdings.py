"""Who holds how much of an engine's cache, as a map: shared prefixes once, pins marked.

The resident conversations are rows, put in such an order that those with equal beginnings are
neighbours; a block is a stretch of tokens that one row or several neighbouring rows hold. So the
blocks' tokens add up to what the engine holds, and a shared prefix is one block beside many rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final

from agentsched.kernel.records import ConversationRecord
from agentsched.kernel.residency import Residency
from agentsched.kernel.scheduler import Scheduler
from agentsched.model import ConversationId, EngineId, Instant, Pin, PrefixId, ProgramId, TenantId

#: A pause that is the last with this probability is taken for the last.
_PROBABLY: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One resident conversation. `own_tokens` would be free if it alone went."""

    conversation: ConversationId
    program: ProgramId
    tenant: TenantId
    tokens: int
    own_tokens: int
    running_steps: int
    paused_at: Instant | None
    pinned_until: Instant | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Tokens `begins` to `begins + tokens` of the rows `row` to `row + rows`, held once."""

    row: int
    rows: int
    begins: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """The map of one engine's cache, as we believe it to be.

    `held_tokens` counts what is shared once, over all conversations; `left_out` of them, those
    placed first, are not among the rows.
    """

    engine: EngineId
    capacity_tokens: int | None
    held_tokens: int
    pinned_tokens: int
    wanted_tokens: int
    rows: tuple[Row, ...]
    blocks: tuple[Block, ...]
    left_out: int


def holdings(scheduler: Scheduler, engine: EngineId, *, rows_max: int = 400) -> Holdings:
    """The map of an engine that has reported; takes time in proportion to what is shown."""
    books = scheduler._books
    residency = books.residency
    everyone = list(residency.conversations(engine))
    # Whoever was placed last is the likeliest still to be there.
    shown = everyone[max(0, len(everyone) - rows_max) :]
    chains = {key: residency.chain(key) for key in shown}
    seen: dict[PrefixId, int] = {}
    order: dict[ConversationId, tuple[int, ...]] = {}
    for key, (segments, _) in chains.items():
        order[key] = tuple(seen.setdefault(name, len(seen)) for name, _, _ in segments)
    shown.sort(key=lambda key: (order[key], key))
    record = books.engines[engine]
    return Holdings(
        engine=engine,
        capacity_tokens=record.capabilities.kv_tokens,
        held_tokens=residency.tokens(engine),
        pinned_tokens=record.pinned_tokens,
        wanted_tokens=record.wanted_tokens,
        rows=tuple(_row(scheduler, books.conversations[key], residency) for key in shown),
        blocks=tuple(_blocks([chains[key] for key in shown])),
        left_out=len(everyone) - len(shown),
    )


def pin_of(scheduler: Scheduler, conversation: ConversationId) -> Pin | None:
    """The pin that a conversation holds."""
    return scheduler._books.pins.of_conversation(conversation)


def pins_on(scheduler: Scheduler, engine: EngineId) -> tuple[Pin, ...]:
    """Pins on an engine, oldest first."""
    return scheduler._books.pins.on_engine(engine)


def conversation_of(scheduler: Scheduler, key: ConversationId) -> ConversationRecord | None:
    """A live program's conversation. Read only."""
    return scheduler._books.conversations.get(key)


def held_tokens(scheduler: Scheduler, engine: EngineId) -> int:
    """What lies in an engine's cache, as far as we know; what is shared counts once."""
    return scheduler._books.residency.tokens(engine)


def wanted_tokens(scheduler: Scheduler, engine: EngineId) -> int:
    """Of that, what somebody probably comes back for: the rest is given up as soon as it must."""
    books = scheduler._books
    keys = books.residency.conversations(engine)
    return books.residency.tokens_of(
        engine, (key for key in keys if _is_wanted(books.conversations[key], scheduler))
    )


def _is_wanted(record: ConversationRecord, scheduler: Scheduler) -> bool:
    if record.active_steps or pin_of(scheduler, record.conversation) is not None:
        return True
    if not record.may_go_on:
        return False
    graph = scheduler.world.graph(record.program)
    return graph is None or graph.last_pause_chance(record.conversation) <= _PROBABLY


def _row(scheduler: Scheduler, record: ConversationRecord, residency: Residency) -> Row:
    segments, tail = residency.chain(record.conversation)
    pin = pin_of(scheduler, record.conversation)
    return Row(
        conversation=record.conversation,
        program=record.program,
        tenant=scheduler.programs[record.program].tenant,
        tokens=tail + sum(tokens for _, tokens, _ in segments),
        own_tokens=tail + sum(tokens for _, tokens, owners in segments if owners == 1),
        running_steps=record.running_steps,
        paused_at=record.paused_at,
        pinned_until=pin.expires_at if pin is not None else None,
    )


@dataclass(slots=True)
class _Open:
    """A block that the next row may share."""

    name: PrefixId
    row: int
    begins: int
    tokens: int
    rows: int = 1


def _blocks(chains: list[tuple[list[tuple[PrefixId, int, int]], int]]) -> list[Block]:
    """The stretches of all rows; neighbours with equal beginnings share them."""
    finished: list[_Open] = []
    open_now: list[_Open] = []
    for row, (segments, tail) in enumerate(chains):
        same = 0
        for (name, _, _), above in zip(segments, open_now, strict=False):
            if name != above.name:
                break
            above.rows += 1
            same += 1
        finished += open_now[same:]
        del open_now[same:]
        begins = open_now[-1].begins + open_now[-1].tokens if open_now else 0
        for name, tokens, _ in islice(segments, same, None):
            open_now.append(_Open(name, row, begins, tokens))
            begins += tokens
        if tail:
            # What lies behind the last name is this conversation's alone.
            finished.append(_Open(PrefixId(""), row, begins, tail))
    return _merged(finished + open_now)


def _merged(blocks: list[_Open]) -> list[Block]:
    """Blocks that follow each other and have the same rows are one."""
    blocks.sort(key=lambda b: (b.row, -b.rows, b.begins))
    merged: list[Block] = []
    for block in blocks:
        last = merged[-1] if merged else None
        begins, tokens = block.begins, block.tokens
        if (
            last is not None
            and (last.row, last.rows) == (block.row, block.rows)
            and last.begins + last.tokens == begins
        ):
            merged.pop()
            begins, tokens = last.begins, last.tokens + tokens
        merged.append(Block(row=block.row, rows=block.rows, begins=begins, tokens=tokens))
    return merged
