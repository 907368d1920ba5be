"""The writer: batches, bounds, outages; nothing is lost but what is counted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from agentsched.compose import SchedulerConfig, build_scheduler, journal_header
from agentsched.kernel import JournalEntry, decode, encode_header
from agentsched.model import Instant, TenantConfigured, TenantId
from agentsched.store.database import Database, read_url
from agentsched.store.migrate import upgrade
from agentsched.store.pruning import partitions
from agentsched.store.reader import claim, read_lines, read_streams, read_turns, span
from agentsched.store.records import StreamRecord
from agentsched.store.spool import Spool
from agentsched.store.writer import StoreWriter, WriterConfig
from agentsched.store.writing import partition_of
from agentsched_bench.services.postgres import LocalPostgres

STREAM = "a" * 32
HEADER = encode_header(journal_header(SchedulerConfig()))
EPOCH = 1_795_000_000 * 10**9


class Turn:
    def __init__(self, handle: int, data: bytes = b"x") -> None:
        self.handle = handle
        self.at = handle
        self.data = data


def encode_turn(turn: Any) -> tuple[int, int, bytes]:
    return turn.handle, turn.at, turn.data


@contextlib.contextmanager
def writing(
    url: str, folder: Path, *, backlog_max: int = 100_000, spool_max: int = 1 << 26
) -> Iterator[StoreWriter]:
    spool = Spool(folder / "spool", bytes_max=spool_max)
    spool.acquire()
    opening = StreamRecord(
        stream=STREAM,
        replica="r",
        header=HEADER.decode(),
        epoch_ns=EPOCH,
        opened_ns=EPOCH,
        owner="me",
    )
    config = WriterConfig(
        stream=STREAM,
        owner="me",
        epoch_ns=EPOCH,
        backlog_max=backlog_max,
        flush_s=0.01,
        opening=opening,
    )
    writer = StoreWriter(Database(read_url(url)), spool, config, encode_turn=encode_turn)
    writer.start()
    try:
        yield writer
    finally:
        if writer._thread is not None and writer._thread.is_alive():
            writer.stop(timeout_s=20)
        spool.release()


class Journal:
    """Makes journal entries, one after another."""

    def __init__(self) -> None:
        self.scheduler = build_scheduler(SchedulerConfig())
        self.entries: list[JournalEntry] = []

    def more(self, count: int = 1) -> list[JournalEntry]:
        made = []
        for _ in range(count):
            change = TenantConfigured(tenant=TenantId("t"), weight=1.0 + len(self.entries))
            self.scheduler.handle(change, now=Instant(len(self.entries)))
            assert self.scheduler.latest is not None
            made.append(self.scheduler.latest)
            self.entries.append(made[-1])
        return made


@pytest.fixture
def journal() -> Journal:
    return Journal()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- what it asks for happens on another thread
            await asyncio.sleep(0.01)


async def begun(writer: StoreWriter, journal: Journal) -> None:
    """Three entries are in the database, and what opens the journal."""
    for entry in journal.more(3):
        writer.write(entry)
    await until(lambda: writer.statistics().written_total == 4)


@contextlib.asynccontextmanager
async def at(url: str) -> AsyncIterator[Database]:
    database = Database(read_url(url))
    try:
        yield database
    finally:
        await database.aclose()


async def stored(url: str) -> list[JournalEntry]:
    async with at(url) as database:
        return [
            decode(line.encode()) async for lines in read_lines(database, STREAM) for line in lines
        ]


async def ready(url: str) -> None:
    async with at(url) as database:
        await upgrade(database)


@pytest.mark.slow
async def test_what_is_written_is_in_the_database(
    url: str, tmp_path: Path, journal: Journal
) -> None:
    await ready(url)
    with writing(url, tmp_path) as writer:
        for entry in journal.more(1_200):
            writer.write(entry)
        writer.keep(Turn(7, b"old"))
        writer.keep(Turn(3))
        writer.keep(Turn(7, b"new"))
        assert writer.stop(timeout_s=20)
        now = writer.statistics()
    assert (now.dropped_total, now.backlog, now.spooled_total) == (0, 0, 0)
    assert now.is_up
    assert await stored(url) == journal.entries
    async with at(url) as database:
        [stream] = await read_streams(database)
        assert (stream.header, stream.epoch_ns, stream.owner) == (HEADER, EPOCH, "me")
        assert await span(database, STREAM) == (0, 1_199)
        turns = await read_turns(database, STREAM, since_ns=0, turns_max=10)
        assert turns == [b"x", b"new"]
        assert await read_turns(database, STREAM, since_ns=0, turns_max=1) == [b"new"]
        assert await read_turns(database, STREAM, since_ns=EPOCH + 5, turns_max=9) == [b"new"]


async def test_the_data_plane_never_waits(tmp_path: Path, journal: Journal) -> None:
    """With the writer's thread dead, writing costs no more, and what is too much is counted."""
    spool = Spool(tmp_path / "spool", bytes_max=1 << 20)
    config = WriterConfig(stream=STREAM, owner="me", epoch_ns=EPOCH, backlog_max=10, flush_s=0.01)
    database = Database(read_url(f"sqlite:///{tmp_path}/x.db"))
    writer = StoreWriter(database, spool, config, encode_turn=encode_turn)
    [entry] = journal.more()
    for _ in range(25):
        writer.write(entry)
    writer.keep(Turn(1))
    assert (writer.statistics().backlog, writer.statistics().dropped_total) == (10, 16)


@pytest.mark.slow
async def test_an_outage_is_healed_from_the_spool(tmp_path: Path, journal: Journal) -> None:
    """A database without tables refuses everything; when it has them nothing is missing."""
    url = f"sqlite:///{tmp_path}/agentsched.db"
    with writing(url, tmp_path) as writer:
        for entry in journal.more(50):
            writer.write(entry)
        await until(lambda: writer.statistics().spooled_total >= 50)
        assert not writer.statistics().is_up
        assert "db upgrade" in writer.statistics().last_error
        for entry in journal.more(700):
            writer.write(entry)
        await until(lambda: writer.statistics().spooled_total >= 750)
        await ready(url)
        await until(lambda: writer.statistics().is_up and not writer.statistics().spool_bytes)
        for entry in journal.more(10):
            writer.write(entry)
    assert writer.statistics().dropped_total == 0
    assert await stored(url) == journal.entries


@pytest.mark.slow
async def test_what_is_left_at_the_end_is_in_the_spool(tmp_path: Path, journal: Journal) -> None:
    url = f"sqlite:///{tmp_path}/agentsched.db"
    with writing(url, tmp_path) as writer:
        for entry in journal.more(30):
            writer.write(entry)
        assert writer.stop(timeout_s=20)
    await ready(url)
    with writing(url, tmp_path) as writer:  # the next process brings it home
        await until(lambda: not writer.statistics().spool_bytes)
    assert await stored(url) == journal.entries


@pytest.mark.slow
async def test_a_full_spool_drops_and_counts(tmp_path: Path, journal: Journal) -> None:
    url = f"sqlite:///{tmp_path}/agentsched.db"
    with writing(url, tmp_path, spool_max=4_000) as writer:
        for entry in journal.more(200):
            writer.write(entry)
        await until(lambda: writer.statistics().backlog == 0)
        await until(lambda: writer.statistics().dropped_total > 0)
        await ready(url)
        await until(lambda: writer.statistics().is_up and not writer.statistics().spool_bytes)
        for entry in journal.more(5):
            writer.write(entry)
        await until(lambda: writer.statistics().backlog == 0)
    kept = await stored(url)
    # The opening record is the one that is not in the journal.
    assert len(kept) + writer.statistics().dropped_total == len(journal.entries)
    assert kept[-5:] == journal.entries[-5:]


@pytest.mark.slow
async def test_the_same_again_changes_nothing(url: str, tmp_path: Path, journal: Journal) -> None:
    """A transaction of which nobody knows whether it took place is made again."""
    await ready(url)
    entries = journal.more(20)
    with writing(url, tmp_path) as writer:
        for entry in [*entries, *entries]:
            writer.write(entry)
    assert await stored(url) == entries


@pytest.mark.slow
async def test_a_record_that_is_refused_does_not_block_the_rest(
    url: str, tmp_path: Path, journal: Journal
) -> None:
    await ready(url)
    with writing(url, tmp_path) as writer:
        entries = journal.more(5)
        for entry in entries[:3]:
            writer.write(entry)
        writer.keep(Turn(1 << 70))  # no database has such a number
        for entry in entries[3:]:
            writer.write(entry)
        await until(lambda: writer.statistics().refused_total == 1)
    assert writer.statistics().dropped_total == 0
    assert await stored(url) == entries


async def test_the_journal_of_a_replica_that_was_taken_for_dead(
    url: str, tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Its heir goes on with the journal; two histories must not become one.

    That something was refused before must not keep it from being said.
    """
    await ready(url)
    with writing(url, tmp_path) as writer:
        await begun(writer, journal)
        writer.keep(Turn(1 << 70))  # no database has such a number
        await until(lambda: writer.statistics().refused_total == 1)
        async with at(url) as database:
            [stream] = await read_streams(database)
            assert await claim(database, stream, replica="heir", owner="heir")
        kept = list(journal.entries)
        for entry in journal.more(2):
            writer.write(entry)
        writer.keep(Turn(7))
        await until(lambda: writer.statistics().refused_total == 3)
        await until(lambda: writer.statistics().written_total == 5)
    assert await stored(url) == kept
    assert "heir has taken over the journal of this replica" in caplog.text
    async with at(url) as database:
        assert await read_turns(database, STREAM, since_ns=0, turns_max=9) == [b"x"]


async def test_a_spool_that_cannot_be_read_for_a_moment_is_kept(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/agentsched.db"
    spool = Spool(tmp_path / "spool", bytes_max=1 << 20)
    spool.acquire()
    config = WriterConfig(stream=STREAM, owner="me", epoch_ns=EPOCH, backlog_max=9, flush_s=9)
    async with at(url) as database:
        writer = StoreWriter(database, spool, config, encode_turn=encode_turn)
        for entry in journal.more(3):
            writer.write(entry)
        await writer._turn()  # there are no tables yet
        await upgrade(database)

        def fail(path: Path) -> bytes:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", fail)
            await until_heard(writer, "Too many open files")
        while not spool.is_empty:
            await writer._turn()
            await asyncio.sleep(0.01)
    spool.release()
    assert await stored(url) == journal.entries


@pytest.mark.services
async def test_a_days_partition_that_was_dropped_is_made_again(
    postgres: LocalPostgres, tmp_path: Path, journal: Journal
) -> None:
    url = postgres.create("dropped")
    await ready(url)
    with writing(url, tmp_path) as writer:
        await begun(writer, journal)
        async with at(url) as database:
            [day] = await partitions(database)
            async with database.writing() as connection:
                await connection.execute(text(f"DROP TABLE {partition_of(day)}"))
        later = journal.more(2)
        for entry in later:
            writer.write(entry)
        await until(lambda: writer.statistics().written_total == 6)
        assert writer.statistics().refused_total == 0
    assert await stored(url) == later


async def until_heard(writer: StoreWriter, error: str) -> None:
    async with asyncio.timeout(30):
        while error not in writer.statistics().last_error:
            await writer._turn()
            await asyncio.sleep(0.01)


async def test_an_outage_in_the_middle_of_a_refusal_is_no_refusal(
    tmp_path: Path, journal: Journal
) -> None:
    """What was not tried, or could not be, is not lost for the one record that is at fault."""
    url = f"sqlite:///{tmp_path}/x.db"
    spool = Spool(tmp_path / "spool", bytes_max=1 << 20)
    spool.acquire()
    config = WriterConfig(stream=STREAM, owner="me", epoch_ns=EPOCH, backlog_max=2_000, flush_s=9)
    begun, is_away = 0, True

    def begin(connection: Connection) -> None:
        nonlocal begun
        begun += 1
        if is_away and begun > 3:  # all of them at once, and two singly
            raise sqlite3.OperationalError("disk I/O error")

    async with at(url) as database:
        await upgrade(database)
        event.listen(database._engine.sync_engine, "begin", begin)
        writer = StoreWriter(database, spool, config, encode_turn=encode_turn)
        for entry in journal.more(5):
            writer.write(entry)
        writer.keep(Turn(1 << 70))  # no database has such a number
        await writer._turn()
        told = writer.statistics()
        assert (told.refused_total, told.is_up) == (0, False)
        is_away = False
        while not spool.is_empty:
            await writer._turn()
            await asyncio.sleep(0.01)
        told = writer.statistics()
        assert (told.refused_total, told.dropped_total, told.is_up) == (1, 0, True)
    assert await stored(url) == journal.entries
    spool.release()


@pytest.mark.slow
@pytest.mark.services
async def test_a_server_killed_under_load_loses_nothing(
    own_postgres: LocalPostgres, tmp_path: Path, journal: Journal
) -> None:
    url = own_postgres.create("killed")
    await ready(url)
    ending = threading.Event()

    with writing(url, tmp_path) as writer:

        async def load() -> None:
            while not ending.is_set():
                for entry in journal.more(20):
                    writer.write(entry)
                writer.keep(Turn(len(journal.entries)))
                await asyncio.sleep(0.005)

        task = asyncio.create_task(load())
        await until(lambda: writer.statistics().written_total > 500)
        for _ in range(2):
            own_postgres.kill()
            spooled = writer.statistics().spooled_total
            await until(lambda before=spooled: writer.statistics().spooled_total > before + 500)  # type: ignore[misc]
            assert not writer.statistics().is_up
            await asyncio.to_thread(own_postgres.start)
            await until(lambda: writer.statistics().is_up and not writer.statistics().spool_bytes)
        ending.set()
        await task
    assert (writer.statistics().dropped_total, writer.statistics().refused_total) == (0, 0)
    assert [e.seq for e in await stored(url)] == list(range(len(journal.entries)))
    assert await stored(url) == journal.entries


@pytest.mark.slow
async def test_a_full_disk_is_an_outage(tmp_path: Path, journal: Journal) -> None:
    url = f"sqlite:///{tmp_path}/agentsched.db"
    await ready(url)
    pages = 60

    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with writing(url, tmp_path) as writer:
        event.listen(writer._database._engine.sync_engine, "begin", limit)
        for entry in journal.more(3_000):
            writer.write(entry)
        await until(lambda: not writer.statistics().is_up)
        assert "disk is full (make room" in writer.statistics().last_error
        pages = 1_000_000
        await until(lambda: writer.statistics().is_up and not writer.statistics().spool_bytes)
    assert await stored(url) == journal.entries


@pytest.mark.slow
async def test_a_locked_file_is_an_outage(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.store.database._BUSY_MS", 50)
    url = f"sqlite:///{tmp_path}/agentsched.db"
    await ready(url)
    async with at(url) as other:
        with writing(url, tmp_path) as writer:
            await until(lambda: writer.statistics().written_total > 0)
            async with other.writing() as connection:
                await connection.execute(text("DELETE FROM journal"))
                for entry in journal.more(5):
                    writer.write(entry)
                await until(lambda: not writer.statistics().is_up)
                assert "locked (another process" in writer.statistics().last_error
            await until(lambda: writer.statistics().is_up and not writer.statistics().spool_bytes)
    assert await stored(url) == journal.entries


@pytest.mark.slow
async def test_a_damaged_file_is_an_outage(tmp_path: Path, journal: Journal) -> None:
    url = f"sqlite:///{tmp_path}/agentsched.db"
    (tmp_path / "agentsched.db").write_bytes(b"this is no database at all " * 400)
    with writing(url, tmp_path) as writer:
        for entry in journal.more(5):
            writer.write(entry)
        await until(lambda: writer.statistics().spooled_total > 5)
        assert "damaged" in writer.statistics().last_error
        (tmp_path / "agentsched.db").unlink()  # the operator moves it away
        await ready(url)
        await until(lambda: writer.statistics().is_up and not writer.statistics().spool_bytes)
    assert await stored(url) == journal.entries


async def test_what_comes_while_a_transaction_is_written_waits_for_the_next(
    tmp_path: Path, journal: Journal
) -> None:
    """Else a busy proxy writes without a pause, and transactions cost far more than rows."""
    url = f"sqlite:///{tmp_path}/x.db"
    spool = Spool(tmp_path / "spool", bytes_max=1 << 20)
    spool.acquire()
    config = WriterConfig(stream=STREAM, owner="me", epoch_ns=EPOCH, backlog_max=2_000, flush_s=9)
    meanwhile = [1, 700, 3]

    def encode(turn: Any) -> tuple[int, int, bytes]:
        for entry in journal.more(meanwhile.pop(0) if meanwhile else 0):
            writer.write(entry)
        return encode_turn(turn)

    async with at(url) as database:
        await upgrade(database)
        writer = StoreWriter(database, spool, config, encode_turn=encode)
        writer.keep(Turn(1))
        await writer._turn()
        told = writer.statistics()
        assert (told.written_total, told.backlog) == (1, 1)
        # What fills a transaction does not wait.
        writer.keep(Turn(2))
        await writer._turn()
        told = writer.statistics()
        assert (told.written_total, told.backlog) == (1 + 2 + 500, 200)
        await writer._turn()
        assert writer.statistics().backlog == 0
    spool.release()
