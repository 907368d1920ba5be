"""Migrations: from empty and from each step, twice at once, and what a later version made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from agentsched.store.database import Database, StoreError
from agentsched.store.migrate import schema_status, upgrade
from agentsched.store.migrations import REVISIONS, STEPS
from agentsched.store.tables import METADATA

Open = Callable[[str], AbstractAsyncContextManager[Database]]


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, METADATA))


def test_all_steps_are_listed() -> None:
    folder = Path(__file__).parents[2] / "agentsched/store/migrations"
    assert sorted(p.name for p in folder.glob("step_*.py")) == list(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("start", [None, *REVISIONS])
async def test_upgrades_from_every_step(url: str, open_database: Open, start: str | None) -> None:
    async with open_database(url) as database:
        if start is not None:
            await upgrade(database, to=start)
            assert (await schema_status(database)).current == start
        done = REVISIONS.index(start) + 1 if start else 0
        assert await upgrade(database) == REVISIONS[done:]
        assert (await schema_status(database)).is_current
        async with database.reading() as connection:
            assert await connection.run_sync(differences) == []


@pytest.mark.slow
async def test_two_replicas_upgrade_at_once(url: str, open_database: Open) -> None:
    async with open_database(url) as one, open_database(url) as other:
        taken = await asyncio.gather(upgrade(one), upgrade(other), upgrade(one))
        assert sorted(taken) == [(), (), REVISIONS]
        assert (await schema_status(one)).is_current


@pytest.mark.slow
async def test_a_later_versions_database_is_left_alone(url: str, open_database: Open) -> None:
    async with open_database(url) as database:
        await upgrade(database)
        async with database.writing() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreError, match=r"9999.*a later agentsched made it"):
            await upgrade(database)
        with pytest.raises(StoreError, match="does not know"):
            await schema_status(database)


@pytest.mark.slow
async def test_an_upgrade_that_fails_leaves_no_half(
    url: str, open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are one transaction, on both databases."""
    async with open_database(url) as database:
        async with database.writing() as connection:
            # The third step will find its table taken.
            await connection.execute(text("CREATE TABLE api_keys (key TEXT)"))
        with pytest.raises(StoreError):
            await upgrade(database)
        status = await schema_status(database)
        assert (status.current, status.pending) == (None, REVISIONS)
        async with database.writing() as connection:
            await connection.execute(text("DROP TABLE api_keys"))
        assert await upgrade(database) == REVISIONS
