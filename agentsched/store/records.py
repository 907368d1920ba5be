"""What is written, as plain values: into the database, or into the spool while it is away."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final, Protocol

import msgspec

from agentsched.kernel import JournalEntry, encode

NANOS_PER_SECOND: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * NANOS_PER_SECOND
_DAY_ONE: Final = date(1970, 1, 1).toordinal()


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


@lru_cache(maxsize=8)
def _day(number: int) -> date:
    """A day by its number since 1970."""
    return date.fromordinal(_DAY_ONE + number)


def journal_record(entry: JournalEntry, *, stream: str, epoch_ns: int) -> JournalRecord:
    """A journal entry for the table; its day is that of its own instant, in UTC."""
    program: str | None = getattr(entry.event, "program", None)
    if program is not None and "\0" in program:
        program = program.replace("\0", "\ufffd")  # PostgreSQL's texts cannot hold it
    return JournalRecord(
        stream=stream,
        seq=entry.seq,
        day=_day((epoch_ns + entry.now) // _DAY_NS),
        now=entry.now,
        kind=type(entry.event).__name__,
        program=program,
        line=encode(entry).decode(),
    )
