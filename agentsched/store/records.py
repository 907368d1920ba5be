"""What is written, as plain values: into the database, or into the spool while it is away."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Final, Protocol

import msgspec

from agentsched.kernel import JournalEntry, encode

NANOS_PER_SECOND: Final = 1_000_000_000


class JournalRecord(msgspec.Struct, frozen=True, array_like=True, tag="j"):
    """One journal entry."""

    stream: str
    seq: int
    day: date
    now: int
    kind: str
    program: str | None
    line: str


class TurnRecord(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """One turn of a program; a later record of the same handle replaces it."""

    stream: str
    handle: int
    at_ns: int
    data: bytes


class StreamRecord(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A journal that begins; `epoch_ns` is its instant 0 in nanoseconds since 1970."""

    stream: str
    replica: str
    header: str
    epoch_ns: int
    opened_ns: int
    owner: str


Record = JournalRecord | TurnRecord | StreamRecord


class Turn(Protocol):
    """What the index of programs knows of a request; only the one who gave it can encode it."""

    handle: int


#: A turn as (handle, instant, data). Called on the writer's thread.
EncodeTurn = Callable[[Turn], tuple[int, int, bytes]]


def at_time(ns: int) -> datetime:
    """Nanoseconds since 1970 as a moment; what lies below a microsecond is lost."""
    seconds, rest = divmod(ns, NANOS_PER_SECOND)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1_000)


def journal_record(entry: JournalEntry, *, stream: str, epoch_ns: int) -> JournalRecord:
    """A journal entry for the table; its day is that of its own instant, in UTC."""
    program: str | None = getattr(entry.event, "program", None)
    if program is not None and "\0" in program:
        program = program.replace("\0", "\ufffd")  # PostgreSQL's texts cannot hold it
    return JournalRecord(
        stream=stream,
        seq=entry.seq,
        day=at_time(epoch_ns + entry.now).date(),
        now=entry.now,
        kind=type(entry.event).__name__,
        program=program,
        line=encode(entry).decode(),
    )
