"""Records into rows: one transaction a batch, which may be repeated without harm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Table, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from agentsched.store.database import TRANSACTION_S, Database, StoreError
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


def upsert(
    database: Database, name: str, *, update_columns: Sequence[str] = (), by: str | None = None
) -> Any:
    """An insert of rows that may be there already: they stay, or these columns are replaced.

    `by`: a row that is later by this column stays as it is.
    """
    into = table(name)
    statement: Any = (insert_postgres if database.is_postgres else insert_sqlite)(into)
    keys = [column.name for column in into.primary_key]
    if not update_columns:
        return statement.on_conflict_do_nothing(index_elements=keys)
    changed = {column: statement.excluded[column] for column in update_columns}
    is_due = into.c[by] <= statement.excluded[by] if by is not None else None
    return statement.on_conflict_do_update(index_elements=keys, set_=changed, where=is_due)


class StreamTaken(StoreError):
    """Another process goes on with this stream: what it is not told of is not part of it."""

    def __init__(self, owner: str) -> None:
        super().__init__(f"{owner} has taken over the journal of this replica")


class Rows:
    """Writes records. Keeps in mind which days have their partition.

    With an `owner` the journal of streams that are another's is refused.
    """

    def __init__(self, database: Database, *, owner: str | None = None) -> None:
        self._database = database
        self._owner = owner
        self._days: set[date] = set()
        self.timeout_s = TRANSACTION_S
        self._journal = upsert(database, "journal")
        self._streams = upsert(database, "streams")
        self._turns = upsert(database, "turns", update_columns=("at_ns", "data"))

    async def insert(self, records: Sequence[Record], *, timeout_s: float) -> None:
        """Write all of them, or none.

        Raises:
            StreamTaken: the journal is another owner's by now.
            StoreError: as `Database.writing`.
        """
        journal = [r for r in records if isinstance(r, JournalRecord)]
        # One statement must not meet a row twice: of one handle the last record counts.
        turns = {(r.stream, r.handle): r for r in records if isinstance(r, TurnRecord)}
        days = {r.day for r in journal} - self._days
        try:
            await self._write(records, journal, turns, days, timeout_s=timeout_s)
        except StoreError:
            # A partition may have been dropped under us: look for it the next time.
            self._days -= {r.day for r in journal}
            raise
        self._days |= days

    async def _write(
        self,
        records: Sequence[Record],
        journal: Sequence[JournalRecord],
        turns: Mapping[tuple[str, int], TurnRecord],
        days: Collection[date],
        *,
        timeout_s: float,
    ) -> None:
        async with self._database.writing(timeout_s=timeout_s) as connection:
            await self._check_owner(connection, {r.stream for r in journal})
            for day in sorted(days):
                await self._make_partition(connection, day)
            for record in records:
                if isinstance(record, StreamRecord):
                    await connection.execute(self._streams, [_stream_row(record)])
            if journal:
                await connection.execute(self._journal, [_journal_row(r) for r in journal])
            if turns:
                await connection.execute(self._turns, [_turn_row(r) for r in turns.values()])

    async def _check_owner(self, connection: AsyncConnection, streams: Collection[str]) -> None:
        """Two processes that write one journal would make of it a history that never was."""
        if self._owner is None or not streams:
            return
        held = select(StreamRow.owner).where(StreamRow.stream.in_(streams))
        if self._database.is_postgres:
            held = held.with_for_update(read=True)  # nobody takes it over before this is written
        for (owner,) in await connection.execute(held):
            if owner != self._owner:
                raise StreamTaken(owner)

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
