"""Brings a database to today's tables: safe for two replicas that start at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import Connection, inspect, text

from agentsched.store.database import Database, StoreError
from agentsched.store.migrations import REVISIONS
from agentsched.store.tables import METADATA

# Each start would otherwise tell ten lines of how it was done; `upgrade` returns what was.
logging.getLogger("alembic").setLevel(logging.WARNING)

_STEPS_AT: Final = Path(__file__).parent / "migrations"
#: The advisory lock of upgrades: any number, the same for all replicas.
_LOCK: Final = 0x6167656E74
_UPGRADE_S: Final = 600.0
_VERSIONS: Final = "alembic_version"


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

    Whoever comes second waits, and then finds nothing to do. Where nothing is to be done nobody is
    waited for: whoever died in the middle of an upgrade may hold its lock for minutes.

    Raises:
        StoreError: the database cannot be written, or was made by a later version.
    """
    if (await schema_status(database)).is_current:
        return ()
    slow = Database(database.url, statement_s=_UPGRADE_S)
    try:
        async with slow.writing(timeout_s=_UPGRADE_S) as connection:
            if slow.is_postgres:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            return await connection.run_sync(_upgrade, slow.shown, to)
    finally:
        await slow.aclose()


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSIONS):
        return None
    revision = connection.execute(text(f"SELECT version_num FROM {_VERSIONS}")).scalar()
    return None if revision is None else str(revision)


def _status(connection: Connection, shown: str) -> SchemaStatus:
    current = _current(connection)
    if current is not None and current not in REVISIONS:
        raise StoreError(
            f"{shown} is at revision {current}, which this version does not know (its own is "
            f"{REVISIONS[-1]}): a later agentsched made it"
        )
    done = 0 if current is None else REVISIONS.index(current) + 1
    return SchemaStatus(current=current, head=REVISIONS[-1], pending=REVISIONS[done:])


def _upgrade(connection: Connection, shown: str, to: str) -> tuple[str, ...]:
    if _status(connection, shown).is_current:
        return ()
    # Imported late: most starts have nothing to upgrade, and Alembic takes half a second.
    from alembic.config import Config as AlembicConfig
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(_STEPS_AT), version_locations=[str(_STEPS_AT)])
    taken: list[str] = []

    def note(*, step: Any, **_: object) -> None:
        taken.extend(step.up_revision_ids)

    def steps(revision: Any, context: object) -> Sequence[Any]:
        return scripts._upgrade_revs(to, revision)

    with EnvironmentContext(AlembicConfig(), scripts, fn=steps, destination_rev=to) as environment:
        environment.configure(
            connection=connection, target_metadata=METADATA, on_version_apply=cast("Any", note)
        )
        environment.run_migrations()
    return tuple(taken)
