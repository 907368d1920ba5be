"""Forgets what is older than the operator wants it kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, select, text

from agentsched.store.database import Database
from agentsched.store.tables import ImageRow, JournalRow, LearnedRow, ProgramRow, StreamRow, TurnRow
from agentsched.store.writing import partition_of

#: Rows that one transaction deletes, so that the writer need not wait for long.
_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """How much was forgotten."""

    days: int = 0
    entries: int = 0
    turns: int = 0
    programs: int = 0
    streams: int = 0


async def prune(database: Database, *, keep: timedelta, turns_keep: timedelta) -> Pruned:
    """Forget whole days of journal, and programs, older than `keep`, turns older than `turns_keep`.

    Raises:
        StoreError: as `Database.writing`.
    """
    now = datetime.now(UTC)
    before = (now - keep).date()
    if database.is_postgres:
        days, entries = await _drop_partitions(database, before)
    else:
        days, entries = await _delete_days(database, before)
    turns = await _delete_turns(database, before_ns=int((now - turns_keep).timestamp() * 1e9))
    programs, streams = await _delete_rest(database, now - keep)
    return Pruned(days=days, entries=entries, turns=turns, programs=programs, streams=streams)


async def partitions(database: Database) -> list[date]:
    """The days that have a partition (PostgreSQL), or entries (SQLite), the oldest first."""
    if not database.is_postgres:
        async with database.reading() as connection:
            asked = select(JournalRow.day).distinct().order_by(JournalRow.day)
            return [day for (day,) in await connection.execute(asked)]
    listed = text(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'journal'::regclass ORDER BY c.relname"
    )
    async with database.reading() as connection:
        names = [name for (name,) in await connection.execute(listed)]
    # Others are the operator's own.
    return [
        datetime.strptime(name, "journal_%Y%m%d").replace(tzinfo=UTC).date()
        for name in names
        if len(name) == len("journal_20260101") and name[8:].isdigit()
    ]


async def _drop_partitions(database: Database, before: date) -> tuple[int, int]:
    days = entries = 0
    for day in await partitions(database):
        if day >= before:
            break
        async with database.writing() as connection:
            counted = await connection.execute(
                select(func.count()).select_from(JournalRow).where(JournalRow.day == day)
            )
            entries += counted.scalar_one()
            await connection.execute(text(f"DROP TABLE IF EXISTS {partition_of(day)}"))
        days += 1
    return days, entries


async def _delete_days(database: Database, before: date) -> tuple[int, int]:
    """Stream by stream, each from its first entry on: no index knows of days, and to look through
    a journal of some weeks takes longer than a transaction may.
    """
    days: set[date] = set()
    entries = 0
    for stream in await _journals(database):
        ordered = select(JournalRow.seq, JournalRow.day).where(JournalRow.stream == stream)
        ordered = ordered.order_by(JournalRow.seq)
        while await _begins_before(database, stream, before):
            async with database.writing() as connection:
                found = (await connection.execute(ordered.limit(_ROWS))).all()
                # Time goes on with the numbers.
                old = [(seq, day) for seq, day in found if day < before]
                if old:  # else somebody else was quicker
                    await connection.execute(
                        delete(JournalRow).where(
                            JournalRow.stream == stream,
                            JournalRow.seq <= old[-1][0],
                            JournalRow.day < before,
                        )
                    )
            days.update(day for _, day in old)
            entries += len(old)
    return len(days), entries


async def _journals(database: Database) -> list[str]:
    """The streams that have a journal, with one look for each."""
    found: list[str] = []
    asked = select(func.min(JournalRow.stream))
    async with database.reading() as connection:
        name: str | None = (await connection.execute(asked)).scalar_one()
        while name is not None:
            found.append(name)
            later = asked.where(JournalRow.stream > name)
            name = (await connection.execute(later)).scalar_one()
    return found


async def _begins_before(database: Database, stream: str, before: date) -> bool:
    days = select(JournalRow.day).where(JournalRow.stream == stream).order_by(JournalRow.seq)
    async with database.reading() as connection:
        first: date | None = (await connection.execute(days.limit(1))).scalar_one_or_none()
    return first is not None and first < before


async def _delete_turns(database: Database, *, before_ns: int) -> int:
    async with database.writing() as connection:
        done = await connection.execute(delete(TurnRow).where(TurnRow.at_ns < before_ns))
        return int(done.rowcount)


async def _delete_rest(database: Database, before: datetime) -> tuple[int, int]:
    async with database.writing() as connection:
        programs = await connection.execute(delete(ProgramRow).where(ProgramRow.last_at < before))
        gone = [
            stream
            for (stream,) in await connection.execute(
                select(StreamRow.stream).where(
                    StreamRow.lease_until < before,
                    ~select(JournalRow.seq).where(JournalRow.stream == StreamRow.stream).exists(),
                )
            )
        ]
        for stream in gone:
            for rows in (ImageRow, LearnedRow, TurnRow, StreamRow):
                await connection.execute(delete(rows).where(rows.stream == stream))
        return int(programs.rowcount), len(gone)
