"""Records into rows: one transaction a batch, which may be repeated without harm."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Table, text, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from agentsched.store.database import TRANSACTION_S, Database
from agentsched.store.records import (
    JournalRecord,
    Record,
    StreamRecord,
    TurnRecord,
    at_time,
)
from agentsched.store.tables import METADATA, StreamRow

LEASE_S: Final = 30.0
#: Two replicas that make a day's partition at once would each find it missing.
_PARTITION_LOCK: Final = 0x64617973


def table(name: str) -> Table:
    """A table by name."""
    return METADATA.tables[name]


def upsert(database: Database, name: str, *, update_columns: Sequence[str] = ()) -> Any:
    """An insert of rows that may be there already: they stay, or these columns are replaced."""
    into = table(name)
    statement: Any = (insert_postgres if database.is_postgres else insert_sqlite)(into)
    keys = [column.name for column in into.primary_key]
    if not update_columns:
        return statement.on_conflict_do_nothing(index_elements=keys)
    changed = {column: statement.excluded[column] for column in update_columns}
    return statement.on_conflict_do_update(index_elements=keys, set_=changed)


class Rows:
    """Writes records. Keeps in mind which days have their partition."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._days: set[date] = set()
        self.timeout_s = TRANSACTION_S
        self._journal = upsert(database, "journal")
        self._streams = upsert(database, "streams")
        self._turns = upsert(database, "turns", update_columns=("at_ns", "data"))

    async def insert(self, records: Sequence[Record], *, timeout_s: float) -> None:
        """Write all of them, or none.

        Raises:
            StoreError: as `Database.writing`.
        """
        journal = [r for r in records if isinstance(r, JournalRecord)]
        # One statement must not meet a row twice: of one handle the last record counts.
        turns = {(r.stream, r.handle): r for r in records if isinstance(r, TurnRecord)}
        days = {r.day for r in journal} - self._days
        async with self._database.writing(timeout_s=timeout_s) as connection:
            for day in sorted(days):
                await self._make_partition(connection, day)
            for record in records:
                if isinstance(record, StreamRecord):
                    await connection.execute(self._streams, [_stream_row(record)])
            if journal:
                await connection.execute(self._journal, [_journal_row(r) for r in journal])
            if turns:
                await connection.execute(self._turns, [_turn_row(r) for r in turns.values()])
        self._days |= days

    async def _make_partition(self, connection: AsyncConnection, day: date) -> None:
        if not self._database.is_postgres:
            return
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_PARTITION_LOCK})"))
        after = day + timedelta(days=1)
        await connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {partition_of(day)} PARTITION OF journal "
                f"FOR VALUES FROM ('{day.isoformat()}') TO ('{after.isoformat()}')"
            )
        )


def partition_of(day: date) -> str:
    """The name of a day's partition."""
    return f"journal_{day:%Y%m%d}"


async def renew_lease(
    database: Database, stream: str, *, owner: str, seconds: float | None = None
) -> bool:
    """Go on holding a stream; False: it is another process's.

    Raises:
        StoreError: as `Database.writing`.
    """
    until = datetime.now(UTC) + timedelta(seconds=LEASE_S if seconds is None else seconds)
    async with database.writing() as connection:
        done = await connection.execute(
            update(StreamRow)
            .where(StreamRow.stream == stream, StreamRow.owner == owner)
            .values(lease_until=until)
        )
        return bool(done.rowcount)


def _journal_row(record: JournalRecord) -> dict[str, Any]:
    return {
        "stream": record.stream,
        "seq": record.seq,
        "day": record.day,
        "now": record.now,
        "kind": record.kind,
        "program": record.program,
        "line": record.line,
    }


def _turn_row(record: TurnRecord) -> dict[str, Any]:
    return {
        "stream": record.stream,
        "handle": record.handle,
        "at_ns": record.at_ns,
        "data": record.data,
    }


def _stream_row(record: StreamRecord) -> dict[str, Any]:
    opened_at = at_time(record.opened_ns)
    return {
        "stream": record.stream,
        "replica": record.replica,
        "header": record.header,
        "epoch_ns": record.epoch_ns,
        "opened_at": opened_at,
        "owner": record.owner,
        "lease_until": opened_at + timedelta(seconds=LEASE_S),
    }
