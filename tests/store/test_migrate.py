"""Migrations: from empty and from each step, twice at once, and what a later version made."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from agentsched.config import Config
from agentsched.model import TenantConfigured, TenantId
from agentsched.store import migrate
from agentsched.store.database import Database, StoreError
from agentsched.store.migrate import schema_status, upgrade
from agentsched.store.migrations import REVISIONS, STEPS
from agentsched.store.store import Store, open_store
from agentsched.store.tables import METADATA
from agentsched_bench.services.postgres import LocalPostgres

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


@pytest.mark.services
@pytest.mark.slow
async def test_where_nothing_is_to_be_done_nobody_is_waited_for(
    own_postgres: LocalPostgres, open_database: Open
) -> None:
    """Whoever died in the middle of an upgrade may hold its lock for minutes."""
    url = own_postgres.create("locked")
    async with open_database(url) as database, open_database(url) as other:
        await upgrade(database)
        async with other.writing() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({migrate._LOCK})"))
            async with asyncio.timeout(10):
                assert await upgrade(database) == ()


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


#: A step of a later version: new columns in the tables that are written most, and an index.
TOMORROW = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0004", "0003", None, None

def upgrade():
    op.add_column("journal", sa.Column("of_tomorrow", sa.Text, nullable=True))
    op.add_column("turns", sa.Column("weight", sa.Integer, nullable=False, server_default="1"))
    op.create_index("ix_journal_of_tomorrow", "journal", ["of_tomorrow"])
"""


def happen(store: Store, weight: float) -> None:
    scheduler, clock = store.restored.scheduler, store.restored.clock
    scheduler.handle(TenantConfigured(tenant=TenantId("t"), weight=weight), now=clock.now())
    assert scheduler.latest is not None
    store.writer.write(scheduler.latest)


@pytest.mark.slow
async def test_a_later_version_upgrades_while_this_one_writes(
    url: str, open_database: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a rolling upgrade: the first new replica migrates, the old ones go on writing."""
    given = {"url": url, "spool": tmp_path / "spool", "replica": "old", "flush_interval": "5ms"}
    engines = [{"id": "e0", "url": "http://127.0.0.1:9"}]
    config = Config.model_validate({"engines": engines, "store": given})
    written = 0
    async with open_store(config, encode_turn=lambda turn: (0, 0, b"")) as store:
        steps = tmp_path / "steps"
        shutil.copytree(Path(migrate.__file__).parent / "migrations", steps)
        (steps / "step_0004_tomorrow.py").write_text(TOMORROW)
        monkeypatch.setattr(migrate, "_STEPS_AT", steps)
        monkeypatch.setattr(migrate, "REVISIONS", (*REVISIONS, "0004"))
        async with open_database(url) as database:
            migrating = asyncio.create_task(upgrade(database))
            while not migrating.done() or written < 100:
                happen(store, 1.0 + written)
                written += 1
                await asyncio.wait({migrating}, timeout=0.002)
            assert await migrating == ("0004",)
            for _ in range(20):
                happen(store, 1.0 + written)
                written += 1
    seen = store.writer.statistics()
    assert (seen.dropped_total, seen.refused_total, seen.spool_bytes) == (0, 0, 0)
    async with open_database(url) as database, database.reading() as connection:
        query = text("SELECT count(*), min(seq), max(seq), count(of_tomorrow) FROM journal")
        assert tuple((await connection.execute(query)).one()) == (written, 0, written - 1, 0)
