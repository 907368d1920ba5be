"""SQLite: what a start and the keeper ask of a journal costs the same, however long it is."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from agentsched.store.database import Database, read_url
from agentsched.store.migrate import upgrade
from agentsched.store.pruning import partitions, prune
from agentsched.store.reader import span
from agentsched.store.records import JournalRecord
from agentsched.store.writing import Rows

TODAY = datetime.now(UTC).date()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with contextlib.aclosing(Database(read_url(f"sqlite:///{tmp_path}/x.db"))) as made:
        await upgrade(made)
        yield made


async def fill(
    database: Database, stream: str, *, first: int = 0, last: int, day: date = TODAY
) -> None:
    rows = [
        JournalRecord(
            stream=stream, seq=seq, day=day, now=seq, kind="TimerFired", program=None, line="{}"
        )
        for seq in range(first, last + 1)
    ]
    await Rows(database).insert(rows, timeout_s=30)


async def instructions(database: Database, work: Callable[[], Awaitable[object]]) -> int:
    """How many instructions of SQLite's machine the queries of this work take."""
    asked: list[tuple[str, Any]] = []

    def note(*told: Any) -> None:
        _, _, statement, parameters, *_ = told
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    engine = database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        await work()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    assert database.file is not None
    with contextlib.closing(sqlite3.connect(database.file)) as connection:
        connection.set_progress_handler(step, 1)
        for statement, parameters in asked:
            connection.execute(statement, parameters).fetchall()
    assert asked
    return count


@pytest.mark.parametrize("name", ["span", "prune"])
async def test_the_cost_does_not_grow_with_the_journal(database: Database, name: str) -> None:
    async def work() -> None:
        if name == "span":
            assert await span(database, "b") is not None
        else:
            await prune(database, keep=timedelta(days=7), turns_keep=timedelta(hours=1))

    for stream in "ab":
        await fill(database, stream, last=20)
    short = await instructions(database, work)
    for stream in "ab":
        await fill(database, stream, first=21, last=3_000)
    assert await instructions(database, work) <= short + 10


async def test_the_ends_of_a_journal(database: Database) -> None:
    assert await span(database, "b") is None
    await fill(database, "a", last=3)
    await fill(database, "b", first=5, last=9)
    assert await span(database, "b") == (5, 9)


async def test_old_days_go_from_each_stream_in_several_turns(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.store.pruning._ROWS", 2)
    days = [TODAY - timedelta(days=n) for n in (9, 8, 0)]
    for number, day in enumerate(days):
        await fill(database, "a", first=5 * number, last=5 * number + 4, day=day)
    await fill(database, "b", last=2, day=days[1])
    await fill(database, "c", last=2, day=days[2])
    done = await prune(database, keep=timedelta(days=7), turns_keep=timedelta(hours=1))
    assert (done.days, done.entries) == (2, 13)
    assert await partitions(database) == [days[2]]
    assert [await span(database, stream) for stream in "abc"] == [(10, 14), None, (0, 2)]
