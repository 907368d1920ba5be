"""Brings a database to today's tables: safe for two replicas that start at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from alembic.config import Config as AlembicConfig
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from agentsched.store.database import Database, StoreError
from agentsched.store.migrations import STEPS
from agentsched.store.tables import METADATA

_STEPS_AT: Final = Path(__file__).parent / "migrations"
#: The advisory lock of upgrades: any number, the same for all replicas.
_LOCK: Final = 0x6167656E74
_UPGRADE_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaStatus:
    """Where a database is. `current` None: it is empty. `pending` are steps to come, in order."""

    current: str | None
    head: str
    pending: tuple[str, ...]

    @property
    def is_current(self) -> bool:
        """Whether nothing has to be done."""
        return not self.pending


async def schema_status(database: Database) -> SchemaStatus:
    """Look where a database is; changes nothing.

    Raises:
        StoreError: it cannot be read, or was made by a later version.
    """
    async with database.reading() as connection:
        return await connection.run_sync(_status, database.shown)


async def upgrade(database: Database, *, to: str = "head") -> tuple[str, ...]:
    """Take the steps up to `to`, in one transaction; returns those that were taken.

    Whoever comes second waits, and then finds nothing to do.

    Raises:
        StoreError: the database cannot be written, or was made by a later version.
    """
    slow = Database(database.url, statement_s=_UPGRADE_S)
    try:
        async with slow.writing(timeout_s=_UPGRADE_S) as connection:
            if slow.is_postgres:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            return await connection.run_sync(_upgrade, slow.shown, to)
    finally:
        await slow.aclose()


def _scripts() -> ScriptDirectory:
    scripts = ScriptDirectory(str(_STEPS_AT), version_locations=[str(_STEPS_AT)])
    assert len(list(scripts.walk_revisions())) == len(STEPS)
    return scripts


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _status(connection: Connection, shown: str) -> SchemaStatus:
    scripts, current = _scripts(), _current(connection)
    head = scripts.get_current_head()
    assert head is not None
    path = [script.revision for script in scripts.walk_revisions()][::-1]
    if current is not None and current not in path:
        raise StoreError(
            f"{shown} is at revision {current}, which this version does not know (its own is "
            f"{head}): a later agentsched made it"
        )
    pending = path if current is None else path[path.index(current) + 1 :]
    return SchemaStatus(current=current, head=head, pending=tuple(pending))


def _upgrade(connection: Connection, shown: str, to: str) -> tuple[str, ...]:
    _status(connection, shown)  # refuses what a later version made
    scripts = _scripts()
    taken: list[str] = []

    def note(*, step: MigrationInfo, **_: object) -> None:
        taken.extend(step.up_revision_ids)

    def steps(revision: Any, context: MigrationContext) -> Sequence[Any]:
        return scripts._upgrade_revs(to, revision)

    with EnvironmentContext(AlembicConfig(), scripts, fn=steps, destination_rev=to) as environment:
        environment.configure(
            connection=connection, target_metadata=METADATA, on_version_apply=cast("Any", note)
        )
        environment.run_migrations()
    return tuple(taken)
