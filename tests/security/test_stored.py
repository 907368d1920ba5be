"""The store's keys count as the database says, and as it last said while it is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from live import eventually
from sqlalchemy import text

from agentsched.config import Config
from agentsched.model import MILLISECOND
from agentsched.proxy.access.gate import Gate
from agentsched.proxy.access.keys import hash_key, new_key
from agentsched.proxy.access.stored import StoredKeys, followed
from agentsched.store.database import Database, read_url
from agentsched.store.keys import StoredKey, add_key, read_keys, revoke_key
from agentsched.store.migrate import upgrade


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "db" / "keys.db"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    file.parent.mkdir()
    opened = Database(read_url(f"sqlite:///{file}"))
    yield opened
    await opened.aclose()


@pytest.fixture
def config(file: Path) -> Config:
    return Config(
        auth={"mode": "keys", "refresh_interval": "1h"},  # type: ignore[arg-type]
        store={"url": f"sqlite:///{file}"},  # type: ignore[arg-type]
    )


@pytest.fixture
def gate(config: Config) -> Gate:
    return Gate(lambda: config)


@pytest.fixture
def move_away(file: Path) -> Callable[[], None]:
    """The folder is gone, as with a disk that was not mounted; called again, it is back."""

    def move() -> None:
        away = file.parent.with_name("away")
        if away.exists():
            away.rename(file.parent)
        else:
            file.parent.rename(away)

    return move


async def made(database: Database, tenant: str) -> str:
    key, token = new_key()
    row = StoredKey(
        key=key,
        hash=hash_key(token),
        hint=token[:8],
        name="",
        tenant=tenant,
        scopes=("data",),
        created_at=datetime.now(UTC),
    )
    await add_key(database, row)
    return token


def whose(gate: Gate, token: str) -> str | None:
    found = gate.ring.find(token, now=time.time())
    return None if found is None else str(found.tenant)


async def test_a_key_counts_until_it_is_revoked(
    config: Config, gate: Gate, database: Database
) -> None:
    async with followed(config, gate) as keys:
        assert keys is not None
        token = await made(database, "red")
        assert whose(gate, token) is None
        await keys.look()
        assert whose(gate, token) == "red"
        assert await revoke_key(database, token[4:16], now=datetime.now(UTC))
        await keys.look()
        assert whose(gate, token) is None


async def test_while_the_database_is_away_known_keys_count_and_it_is_said_once(
    config: Config,
    gate: Gate,
    database: Database,
    move_away: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with followed(config, gate) as keys:
        assert keys is not None
        token = await made(database, "red")
        await keys.look()
        await database.aclose()
        move_away()
        for _ in range(2):
            await keys._try()
        assert whose(gate, token) == "red"
        await keys.note()  # that it was used is not noted, and nothing fails
        move_away()
        await keys._try()
        assert whose(gate, token) == "red"
    assert gate.refused["store"] == 2
    said = [text for text in caplog.messages if "keys" in text]
    assert [text.partition(";")[0].partition(":")[0] for text in said] == [
        "keys cannot be read",
        "which keys are in use is not noted",
        "keys can be read again",
    ]


async def test_a_start_without_the_database_has_the_configurations_keys(
    config: Config, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(config, gate) as keys:
        assert isinstance(keys, StoredKeys)
    assert "do not count yet" in caplog.text


async def test_keys_in_a_later_versions_database_count_from_the_start(
    config: Config, gate: Gate, database: Database
) -> None:
    await upgrade(database)
    token = await made(database, "red")
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    async with followed(config, gate):
        assert whose(gate, token) == "red"


async def test_which_keys_are_in_use_is_noted_at_the_end(
    config: Config, gate: Gate, database: Database
) -> None:
    async with followed(config, gate) as keys:
        assert keys is not None
        used, unused = await made(database, "red"), await made(database, "blue")
        await keys.look()
        assert whose(gate, used) == "red"
    noted = {key.key: key.last_used_at for key in await read_keys(database)}
    assert noted[unused[4:16]] is None
    assert noted[used[4:16]] is not None


async def test_a_row_that_nobody_can_read_does_not_end_the_looking(
    config: Config, gate: Gate, database: Database
) -> None:
    """A key that was put into the table by hand must not let revoked ones count for ever."""
    often = config.model_copy(
        update={"auth": config.auth.model_copy(update={"refresh_interval": MILLISECOND})}
    )
    async with followed(often, gate):
        token = await made(database, "red")
        await eventually(lambda: whose(gate, token) == "red")
        by_hand = await made(database, "blue")
        strange = text("UPDATE api_keys SET scopes = 'null' WHERE tenant = 'blue'")
        async with database.writing() as connection:
            await connection.execute(strange)
        await eventually(lambda: gate.refused["store"] > 0)
        assert await revoke_key(database, token[4:16], now=datetime.now(UTC))
        assert await revoke_key(database, by_hand[4:16], now=datetime.now(UTC))
        await eventually(lambda: whose(gate, token) is None)
