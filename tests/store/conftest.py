"""Databases to test on: SQLite files, and one real PostgreSQL for all tests that ask for it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agentsched.store.database import Database, read_url
from agentsched.store.migrate import upgrade
from agentsched_bench.services.postgres import LocalPostgres

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[LocalPostgres]:
    """A real server that all tests share. Mark tests that use it `services`."""
    with LocalPostgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[LocalPostgres]:
    """A real server that the test may kill."""
    with LocalPostgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/agentsched.db"
    server: LocalPostgres = request.getfixturevalue("postgres")
    return server.create(f"test{next(_numbers)}")


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """A database with today's tables."""
    async with opened(url) as database:
        await upgrade(database)
        yield database


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(read_url(url))
    try:
        yield database
    finally:
        await database.aclose()


@pytest.fixture
def open_database() -> Callable[[str], contextlib.AbstractAsyncContextManager[Database]]:
    """Opens a database by its URL; nothing is upgraded."""
    return opened
