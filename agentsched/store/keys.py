"""API keys in the database: their hashes, whose they are, and until when they count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, or_, select, update

from agentsched.store.database import Database, StoreError
from agentsched.store.tables import ApiKeyRow

_TABLE = ApiKeyRow.__table__


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """One row. `hint` are the key's first characters; times are UTC."""

    key: str
    hash: bytes
    hint: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


async def add_key(database: Database, key: StoredKey) -> None:
    """Keep a new key.

    Raises:
        StoreError: the database cannot be used, or the key is there.
    """
    async with database.writing() as connection:
        await connection.execute(insert(ApiKeyRow).values(**_values(key)))


async def replace_key(database: Database, old: str, new: StoredKey, *, old_until: datetime) -> None:
    """Keep a new key beside an old one, which counts until `old_until` or its own end.

    Raises:
        StoreError: as `add_key`, or the old key is unknown or revoked.
    """
    async with database.writing() as connection:
        changed = await connection.execute(
            update(ApiKeyRow)
            .where(ApiKeyRow.key == old, ApiKeyRow.revoked_at.is_(None))
            .where(or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > old_until))
            .values(expires_at=old_until)
        )
        if not changed.rowcount:
            known = select(ApiKeyRow.key).where(
                ApiKeyRow.key == old, ApiKeyRow.revoked_at.is_(None)
            )
            if (await connection.execute(known)).first() is None:
                raise StoreError(f"no key {old} counts")
        await connection.execute(insert(ApiKeyRow).values(**_values(new)))


async def revoke_key(database: Database, key: str, *, now: datetime) -> bool:
    """Let a key count no more; False: no such key counted."""
    async with database.writing() as connection:
        changed = await connection.execute(
            update(ApiKeyRow)
            .where(ApiKeyRow.key == key, ApiKeyRow.revoked_at.is_(None))
            .values(revoked_at=now)
        )
    return bool(changed.rowcount)


async def read_keys(database: Database, *, tenant: str | None = None) -> list[StoredKey]:
    """All keys, those that count no more included, the oldest first."""
    wanted = select(_TABLE).order_by(ApiKeyRow.created_at, ApiKeyRow.key)
    if tenant is not None:
        wanted = wanted.where(ApiKeyRow.tenant == tenant)
    async with database.reading() as connection:
        return [_key(row) for row in await connection.execute(wanted)]


async def valid_keys(database: Database, *, now: datetime) -> list[StoredKey]:
    """The keys that count now."""
    wanted = select(_TABLE).where(
        ApiKeyRow.revoked_at.is_(None),
        or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now),
    )
    async with database.reading() as connection:
        return [_key(row) for row in await connection.execute(wanted)]


async def note_use(database: Database, keys: Iterable[str], *, now: datetime) -> None:
    """Note when keys were used last, to the minute or so."""
    ids = sorted(keys)
    async with database.writing() as connection:
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            await connection.execute(
                update(ApiKeyRow).where(ApiKeyRow.key.in_(some)).values(last_used_at=now)
            )


def _values(key: StoredKey) -> dict[str, object]:
    values = {name: getattr(key, name) for name in StoredKey.__slots__}
    values["scopes"] = list(key.scopes)
    return values


def _key(row: Row[tuple[object, ...]]) -> StoredKey:
    values: dict[str, Any] = dict(row._mapping)
    values["scopes"] = tuple(values["scopes"])  # JSON has lists only
    return StoredKey(**values)  # the table's own columns
