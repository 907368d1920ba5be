"""What the store holds, read back: streams, journal, images, turns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import Text, delete, func, insert, literal, select, update

from agentsched.store.database import Database
from agentsched.store.image import code_mark
from agentsched.store.tables import ImageRow, JournalRow, SecretRow, StreamRow, TurnRow
from agentsched.store.writing import LEASE_S, table, upsert

#: Journal lines that are read at once.
CHUNK: Final = 2_000
_IMAGES_KEPT: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One replica's journal. `epoch_ns` is its instant 0 in nanoseconds since 1970."""

    stream: str
    replica: str
    header: bytes
    epoch_ns: int
    opened_at: datetime
    owner: str
    lease_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A scheduler after the entries before `seq`."""

    seq: int
    data: bytes


async def read_streams(database: Database) -> list[Stream]:
    """All streams, the one opened last first.

    Raises:
        StoreError: here and below, as `Database.reading`.
    """
    async with database.reading() as connection:
        table = StreamRow.__table__
        ordered = select(table).order_by(StreamRow.opened_at.desc(), StreamRow.stream)
        rows = (await connection.execute(ordered)).mappings().all()
    return [
        Stream(
            stream=row["stream"],
            replica=row["replica"],
            header=row["header"].encode(),
            epoch_ns=row["epoch_ns"],
            opened_at=row["opened_at"],
            owner=row["owner"],
            lease_until=row["lease_until"],
        )
        for row in rows
    ]


async def claim(database: Database, found: Stream, *, replica: str, owner: str) -> bool:
    """Take a stream over; False: somebody else was quicker."""
    until = datetime.now(UTC) + timedelta(seconds=LEASE_S)
    async with database.writing() as connection:
        done = await connection.execute(
            update(StreamRow)
            .where(StreamRow.stream == found.stream, StreamRow.owner == found.owner)
            .values(owner=owner, replica=replica, lease_until=until)
        )
        return bool(done.rowcount)


async def span(database: Database, stream: str) -> tuple[int, int] | None:
    """The first and the last number of a stream's journal; None: it is empty."""
    # Each by itself is a look into the key; asked for both at once, SQLite reads the whole journal.
    is_its = JournalRow.stream == stream
    first = select(func.min(JournalRow.seq)).where(is_its).scalar_subquery()
    last = select(func.max(JournalRow.seq)).where(is_its).scalar_subquery()
    async with database.reading() as connection:
        row = (await connection.execute(select(first, last))).one()
    found: tuple[int | None, int | None] = (row[0], row[1])
    return None if found[0] is None or found[1] is None else (found[0], found[1])


async def read_lines(
    database: Database,
    stream: str,
    *,
    first: int = 0,
    days: tuple[date, date] | None = None,
    since: int | None = None,
    until: int | None = None,
) -> AsyncIterator[list[str]]:
    """Lines of a stream's journal from number `first` on, in order, some at a time.

    `since` and `until` bound the instants (until is left out), `days` the days they fall on.
    """
    asked = select(JournalRow.seq, JournalRow.line).where(JournalRow.stream == stream)
    if days is not None:
        asked = asked.where(JournalRow.day >= days[0], JournalRow.day <= days[1])
    if since is not None:
        asked = asked.where(JournalRow.now >= since)
    if until is not None:
        asked = asked.where(JournalRow.now < until)
    asked = asked.order_by(JournalRow.seq).limit(CHUNK)
    while True:
        # Chunk by chunk in transactions of their own: a long reader would keep old rows alive.
        async with database.reading() as connection:
            rows = (await connection.execute(asked.where(JournalRow.seq >= first))).all()
        if not rows:
            return
        yield [line for _, line in rows]
        first = rows[-1][0] + 1


async def read_images(database: Database, stream: str) -> list[Image]:
    """Images of a stream that this code can read, the latest first."""
    async with database.reading() as connection:
        rows = await connection.execute(
            select(ImageRow.seq, ImageRow.data)
            .where(ImageRow.stream == stream, ImageRow.code == code_mark())
            .order_by(ImageRow.seq.desc())
        )
        return [Image(seq=seq, data=data) for seq, data in rows]


async def save_image(database: Database, stream: str, image: Image) -> None:
    """Keep an image; of older ones one is kept, too."""
    row = {
        "stream": stream,
        "seq": image.seq,
        "taken_at": datetime.now(UTC),
        "code": code_mark(),
        "data": image.data,
    }
    async with database.writing() as connection:
        into = upsert(database, "images", update_columns=("taken_at", "code", "data"))
        await connection.execute(into, [row])
        kept = (
            select(ImageRow.seq)
            .where(ImageRow.stream == stream)
            .order_by(ImageRow.seq.desc())
            .limit(_IMAGES_KEPT)
        )
        numbers = [number for (number,) in await connection.execute(kept)]
        await connection.execute(
            delete(ImageRow).where(ImageRow.stream == stream, ImageRow.seq < min(numbers))
        )


async def read_turns(
    database: Database, stream: str, *, since_ns: int, turns_max: int
) -> list[bytes]:
    """The latest turns of a stream since a time of day, in the order of their coming."""
    async with database.reading() as connection:
        latest = (
            select(TurnRow.handle, TurnRow.data)
            .where(TurnRow.stream == stream, TurnRow.at_ns >= since_ns)
            .order_by(TurnRow.at_ns.desc(), TurnRow.handle.desc())
            .limit(turns_max)
        )
        rows = [(handle, data) for handle, data in await connection.execute(latest)]
    return [data for _, data in sorted(rows)]


async def copy_turns(database: Database, stream: str, *, into: str, since_ns: int) -> None:
    """Let a stream that begins have the turns of another one since a time of day, too."""
    found = select(literal(into, Text), TurnRow.handle, TurnRow.at_ns, TurnRow.data).where(
        TurnRow.stream == stream, TurnRow.at_ns >= since_ns
    )
    async with database.writing() as connection:
        columns = ["stream", "handle", "at_ns", "data"]
        await connection.execute(insert(table("turns")).from_select(columns, found))


async def shared_secret(database: Database, name: str, *, proposed: bytes) -> bytes:
    """The secret of this name, the same for all replicas: the first one proposed."""
    async with database.writing() as connection:
        into = upsert(database, "secrets")
        await connection.execute(into, [{"name": name, "value": proposed}])
        asked = select(SecretRow.value).where(SecretRow.name == name)
        value: bytes = (await connection.execute(asked)).scalar_one()
    return value
