"""What other replicas write is read once, also where it comes late."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from agentsched.store.database import Database, StoreError
from agentsched.store.following import Follower
from agentsched.store.records import TurnRecord
from agentsched.store.writing import Rows

SECOND = 10**9


@pytest.fixture
async def follower(url: str, database: Database) -> AsyncIterator[Follower]:
    made = Follower(url, stream="ours", since_ns=time.time_ns() - 60 * SECOND)
    yield made
    await made.aclose()


async def write(database: Database, *turns: tuple[str, int, int, bytes]) -> None:
    records = [TurnRecord(stream, handle, at, data) for stream, handle, at, data in turns]
    await Rows(database).insert(records, timeout_s=10)


async def test_others_turns_once_and_again_when_they_change(
    database: Database, follower: Follower
) -> None:
    now = time.time_ns()
    old = now - 3_600 * SECOND
    await write(
        database,
        ("theirs", 1, now - 2 * SECOND, b"a"),
        ("theirs", 2, now - SECOND, b"b"),
        ("ours", 3, now, b"c"),
        ("theirs", 4, old, b"long ago"),
    )
    assert [data for _, data in await follower.news()] == [b"a", b"b"]
    assert await follower.news() == []
    answered = time.time_ns()
    await write(database, ("theirs", 2, answered, b"b2"), ("third", 9, answered - 1, b"d"))
    assert [data for _, data in await follower.news()] == [b"d", b"b2"]
    assert await follower.news() == []


async def test_what_was_written_a_little_late_is_found(
    database: Database, follower: Follower
) -> None:
    assert await follower.news() == []
    late = time.time_ns() - 2 * SECOND  # before the look, but in the database after it
    await write(database, ("theirs", 1, late, b"late"))
    assert [data for _, data in await follower.news()] == [b"late"]


@pytest.mark.parametrize("away_s", [10, 120])
async def test_a_database_that_is_away_is_looked_at_from_where_it_went(
    database: Database, follower: Follower, monkeypatch: pytest.MonkeyPatch, away_s: int
) -> None:
    assert await follower.news() == []
    follower._since -= away_s * SECOND  # the last look that went well
    during = follower._since + SECOND

    async def fail() -> list[tuple[int, int, bytes]]:
        raise StoreError("away")

    with monkeypatch.context() as patched:
        patched.setattr(follower, "_read", fail)
        with pytest.raises(StoreError):
            await follower.news()
    assert await follower.news() == []
    # Another replica's spool heals only now, with what happened meanwhile.
    await write(database, ("theirs", 1, during, b"spooled"))
    assert [data for _, data in await follower.news()] == [b"spooled"]


async def test_more_than_one_look_brings(
    database: Database, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.store.following._ROWS_MAX", 10)
    began = time.time_ns() - 40 * SECOND
    turns = [("theirs", n, began + n * SECOND, b"%d" % n) for n in range(35)]
    await write(database, *turns)
    found: list[bytes] = []
    for _ in range(5):
        found += [data for _, data in await follower.news()]
        if not follower.is_behind:
            break
    assert found == [b"%d" % n for n in range(35)]
