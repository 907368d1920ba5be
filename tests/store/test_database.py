"""URLs and errors: one clear line, no password in it, and nothing else is changed."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from agentsched.model import ConfigError
from agentsched.store.database import Database, StoreError, read_url


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("postgresql://me:secret@host/db", "postgresql+asyncpg"),
        ("postgres://me@host/db", "postgresql+asyncpg"),
        ("postgresql+psycopg2://me@host/db", "postgresql+asyncpg"),
    ],
)
def test_urls_get_our_driver(given: str, driver: str) -> None:
    assert read_url(given).drivername == driver


@pytest.mark.parametrize(
    "given", ["", "nonsense", "mysql://me:secret@host/db", "sqlite://", "sqlite:///:memory:"]
)
def test_other_urls_are_told(given: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.url") as caught:
        read_url(given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", {}),
        ("?sslmode=require", {"ssl": "require"}),
        ("?ssl=verify-full&prepared_statement_cache_size=0", {"ssl": "verify-full"}),
    ],
)
def test_tls_is_asked_for_as_everybody_does(given: str, told: dict[str, str]) -> None:
    options = dict(read_url(f"postgresql://me:secret@host/db{given}").query)
    options.pop("prepared_statement_cache_size", None)
    assert options == told


@pytest.mark.parametrize("option", ["sslrootcert", "channel_binding", "connect_timeout"])
def test_an_option_that_the_driver_has_not_is_told(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"^store\.url: {option} is no option") as caught:
        read_url(f"postgresql://me:secret@host/db?sslmode=require&{option}=5")
    assert "secret" not in str(caught.value)


async def broken(url: str) -> str:
    database = Database(read_url(url))
    try:
        with pytest.raises(StoreError) as caught:
            async with database.writing() as connection:
                await connection.execute(text("CREATE TABLE x (y INTEGER)"))
        return str(caught.value)
    finally:
        await database.aclose()


async def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"something else " * 500)
    said = await broken(f"sqlite:///{tmp_path}/x.db")
    assert "not a database" in said
    assert "restore a backup" in said or "damaged" in said


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "does the folder exist" in await broken(f"sqlite:///{tmp_path}/no/x.db")


async def test_no_thread_outlives_a_database_that_is_closed(tmp_path: Path) -> None:
    # A thread that speaks to a loop that is gone fails, at a moment when nobody knows whose it was.
    before = set(threading.enumerate())
    await broken(f"sqlite:///{tmp_path}/no/x.db")
    left = [thread for thread in set(threading.enumerate()) - before if "worker" in thread.name]
    assert left == []


async def test_a_new_file_that_another_begins_at_the_same_time(tmp_path: Path) -> None:
    # SQLite refuses a change of the journal mode at once, whatever `busy_timeout` says.
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asyncio.get_running_loop().call_later(0.1, other.rollback)
    database = Database(read_url(f"sqlite:///{tmp_path}/x.db"))
    try:
        async with database.writing() as connection:
            await connection.execute(text("CREATE TABLE x (y INTEGER)"))
    finally:
        await database.aclose()
        other.close()


async def test_many_begin_a_new_file_at_once(tmp_path: Path) -> None:
    databases = [Database(read_url(f"sqlite:///{tmp_path}/x.db")) for _ in range(6)]

    async def begin(database: Database) -> None:
        async with database.writing() as connection:
            await connection.execute(text("SELECT 1"))

    try:
        await asyncio.gather(*map(begin, databases))
    finally:
        for database in databases:
            await database.aclose()


async def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    # Opened read-only, as from a read-only volume: file permissions would not stop root.
    path = tmp_path / "x.db"
    path.touch()
    said = await broken(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert "readonly" in said
    assert "must be writable" in said


@pytest.mark.parametrize("how", ["", "?sslmode=require"])
async def test_nobody_listens(how: str) -> None:
    said = await broken(f"postgresql://me:secret@127.0.0.1:1/db{how}")
    assert "Connect call failed" in said
    assert "secret" not in said


@pytest.mark.slow
async def test_readers_keep_no_writer_waiting(url: str) -> None:
    database = Database(read_url(url))
    try:
        async with database.writing() as connection:
            await connection.execute(text("CREATE TABLE x (y INTEGER)"))
        async with database.reading() as reader:
            count = text("SELECT count(*) FROM x")
            assert (await reader.execute(count)).scalar() == 0
            async with database.writing() as writer:
                await writer.execute(text("INSERT INTO x VALUES (1)"))
            assert (await reader.execute(count)).scalar() == 0  # one view
        async with database.reading() as reader:
            assert (await reader.execute(count)).scalar() == 1
    finally:
        await database.aclose()


@pytest.mark.slow
async def test_a_block_that_fails_changes_nothing(url: str) -> None:
    database = Database(read_url(url))
    try:
        with contextlib.suppress(ZeroDivisionError):
            async with database.writing() as connection:
                await connection.execute(text("CREATE TABLE x (y INTEGER)"))
                raise ZeroDivisionError
        with pytest.raises(StoreError):
            async with database.reading() as connection:
                await connection.execute(text("SELECT * FROM x"))
    finally:
        await database.aclose()
