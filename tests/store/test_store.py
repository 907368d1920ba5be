"""A proxy's store, from its opening to its end, and the verbs that look after it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live import eventually
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text

from agentsched.cli import main
from agentsched.config import Config
from agentsched.kernel import Scheduler
from agentsched.model import ConfigError, TenantConfigured, TenantId
from agentsched.store.database import Database, read_url
from agentsched.store.keeper import KeeperSettings
from agentsched.store.metrics import StoreCollector
from agentsched.store.migrate import upgrade
from agentsched.store.reader import Image, claim, read_images, read_streams, span
from agentsched.store.records import TurnRecord, journal_record
from agentsched.store.spool import Spool
from agentsched.store.store import Store, _run_keeper, open_store
from agentsched.store.writing import Rows
from agentsched_bench.replay import replay_file
from agentsched_bench.services.postgres import LocalPostgres

pytestmark = pytest.mark.slow


def config(url: str, folder: Path, **store: Any) -> Config:
    engines = [{"id": "e0", "url": "http://127.0.0.1:9"}]
    given = {"url": url, "spool": folder / "spool", "replica": "r1", "flush_interval": "10ms"}
    return Config.model_validate({"engines": engines, "store": {**given, **store}})


def encode(turn: Any) -> tuple[int, int, bytes]:
    return turn.handle, turn.at, turn.data


@contextlib.asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Store]:
    async with open_store(config, encode_turn=encode) as store:
        yield store


def happen(store: Store, weight: float) -> Scheduler:
    """One event, as the host feeds it."""
    scheduler, clock = store.restored.scheduler, store.restored.clock
    scheduler.handle(TenantConfigured(tenant=TenantId("t"), weight=weight), now=clock.now())
    assert scheduler.latest is not None
    store.writer.write(scheduler.latest)
    return scheduler


async def test_a_life_after_another(url: str, tmp_path: Path) -> None:
    given = config(url, tmp_path)
    async with opened(given) as store:
        assert not store.restored.is_continued
        secret, stream = store.secret, store.restored.stream
        for weight in (2.0, 3.0):
            happen(store, weight)
    async with opened(given) as store:
        assert store.restored.is_continued
        assert (store.secret, store.restored.stream) == (secret, stream)
        assert store.restored.scheduler.tenants[TenantId("t")].weight == 3.0
        assert store.restored.scheduler.next_seq == 2
        happen(store, 4.0)
    async with opened(given) as store:
        assert store.restored.scheduler.tenants[TenantId("t")].weight == 4.0


async def test_two_processes_of_one_name_are_refused(tmp_path: Path) -> None:
    given = config(f"sqlite:///{tmp_path}/x.db", tmp_path)
    async with opened(given):
        with pytest.raises(ConfigError, match="another process"):
            async with opened(given):
                pass


async def test_a_spool_in_the_folder_for_temporary_files_is_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever else could write there could put words into the journal."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = config("postgresql://127.0.0.1:9/none", tmp_path, spool=None, restore_timeout="1ms")
    folder = tmp_path / f"agentsched-spool-{os.geteuid()}"
    async with opened(given):
        assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="not this user's alone"):
        async with opened(given):
            pass


async def test_a_spool_whose_journal_was_taken_over_stays_out_of_it(tmp_path: Path) -> None:
    given = config(f"sqlite:///{tmp_path}/x.db", tmp_path)
    async with opened(given) as store:
        stream = store.restored.stream
        entry = happen(store, 2.0).latest
    assert entry is not None
    async with contextlib.aclosing(Database(read_url(given.store.url.get_secret_value()))) as held:
        [found] = await read_streams(held)
        assert await claim(held, found, replica="heir", owner="heir")
        spool = Spool(tmp_path / "spool", bytes_max=1 << 20)
        spool.acquire()
        late = replace(entry, seq=entry.seq + 1)
        spool.append([journal_record(late, stream=stream, epoch_ns=found.epoch_ns)])
        spool.release()
        async with opened(given) as store:
            assert store.restored.stream != stream
        assert await span(held, stream) == (0, 0)


async def test_replicas_share_the_secret(url: str, tmp_path: Path) -> None:
    one = config(url, tmp_path / "one")
    other = config(url, tmp_path / "other", replica="r2")
    async with opened(one) as first, opened(other) as second:
        assert first.secret == second.secret
        assert first.restored.stream != second.restored.stream
    spools = [tmp_path / name / "spool" / "prompts" for name in ("one", "other")]
    assert spools[0].read_bytes() == spools[1].read_bytes()
    assert spools[0].stat().st_mode & 0o077 == 0


async def test_a_start_without_the_database_is_made_good(tmp_path: Path) -> None:
    """The file is damaged at the start; what happens meanwhile is there when it is mended."""
    file = tmp_path / "x.db"
    file.write_bytes(b"damaged " * 999)
    given = config(f"sqlite:///{file}", tmp_path)
    async with opened(given) as store:
        secret = store.secret
        happen(store, 2.0)
    file.unlink()
    async with opened(given) as store:
        assert store.restored.is_continued
        assert store.secret == secret
        assert store.restored.scheduler.tenants[TenantId("t")].weight == 2.0


@pytest.mark.services
async def test_a_server_that_starts_beside_us_is_waited_for(
    own_postgres: LocalPostgres, tmp_path: Path
) -> None:
    given = config(own_postgres.create("late"), tmp_path)
    async with opened(given) as store:
        happen(store, 2.0)
    own_postgres.kill()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(own_postgres.start))
        async with opened(given) as store:
            assert store.restored.is_continued
            assert store.restored.scheduler.tenants[TenantId("t")].weight == 2.0


@pytest.mark.services
async def test_the_wait_for_a_server_has_an_end(
    own_postgres: LocalPostgres, tmp_path: Path
) -> None:
    given = config(own_postgres.create("never"), tmp_path, restore_timeout="600ms")
    own_postgres.kill()
    async with asyncio.timeout(30), opened(given) as store:
        assert not store.restored.is_continued
        happen(store, 2.0)
    assert list((tmp_path / "spool").glob("*.ndjson"))


@pytest.mark.services
async def test_a_new_database_that_was_away_at_the_start_gets_its_tables(
    own_postgres: LocalPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = config(own_postgres.create("new"), tmp_path, restore_timeout="600ms")
    own_postgres.kill()
    async with opened(given) as store:
        happen(store, 2.0)
        await asyncio.to_thread(own_postgres.start)
        await eventually(lambda: store.writer.statistics().written_total == 2)
    assert "used twice" not in caplog.text  # by whom: its journal was not there yet
    async with opened(given) as store:
        assert store.restored.is_continued
        assert store.restored.scheduler.tenants[TenantId("t")].weight == 2.0


async def test_images_are_made_beside_the_proxy(url: str, tmp_path: Path) -> None:
    given = config(url, tmp_path, image_interval="50ms")
    database = Database(read_url(url))
    try:
        async with opened(given) as store:
            happen(store, 2.0)
            images: list[Image] = []
            async with asyncio.timeout(90):
                while not images:  # the first may have come before there was anything
                    await store.kept.wait()
                    store.kept.clear()
                    images = await read_images(database, store.restored.stream)
        assert images[0].seq == 1
    finally:
        await database.aclose()


async def test_metrics_tell_what_became_of_records(tmp_path: Path) -> None:
    given = config(f"sqlite:///{tmp_path}/x.db", tmp_path)
    async with opened(given) as store:
        happen(store, 2.0)
    registry = CollectorRegistry()
    registry.register(StoreCollector(store.writer))
    shown = generate_latest(registry).decode()
    # The opening of the stream, and one entry.
    assert 'agentsched_store_records_total{outcome="written"} 2.0' in shown
    assert 'agentsched_store_records_total{outcome="dropped"} 0.0' in shown
    assert "agentsched_store_up 1.0" in shown


def test_the_verbs(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["db", "status", "--url", url]) == 1
    assert "pending: 0001, 0002, 0003" in capsys.readouterr().out
    assert main(["db", "upgrade", "--url", url]) == 0
    assert "took 3 steps" in capsys.readouterr().out
    assert main(["db", "export", "--url", url]) == 1
    assert "no journal of any replica" in capsys.readouterr().err

    async def live() -> None:
        async with opened(config(url, tmp_path)) as store:
            for weight in (2.0, 3.0, 4.0):
                happen(store, weight)

    asyncio.run(live())
    assert main(["db", "status", "--json", "--url", url]) == 0
    told = json.loads(capsys.readouterr().out)
    [stream] = told["streams"]
    assert (stream["replica"], stream["first"], stream["last"]) == ("r1", 0, 2)
    assert not stream["is_live"]
    file = tmp_path / "journal.ndjson.gz"
    assert main(["db", "export", "--url", url, "-o", str(file), "--stream", "r1"]) == 0
    assert replay_file(file) is None
    assert main(["db", "export", "--url", url, "-o", str(file)]) == 2
    assert "never written over" in capsys.readouterr().err
    assert main(["db", "export", "--url", url, "--from", "2020-01-01", "--to", "2020-01-02"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1  # the header alone
    assert "0 entries" in captured.err
    assert main(["db", "export", "--url", url, "--from", "yesterday"]) == 2
    assert main(["db", "image", "--url", url]) == 0
    assert "replayed 3 entries" in capsys.readouterr().out
    assert main(["db", "prune", "--url", url]) == 0
    assert "forgot 0 days" in capsys.readouterr().out


def test_a_verb_needs_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["db", "status"]) == 2
    assert "no database is given" in capsys.readouterr().err


async def test_a_database_of_a_later_version_stops_nobody(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    database = Database(read_url(url))
    try:
        await upgrade(database)
        async with database.writing() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    finally:
        await database.aclose()
    async with opened(config(url, tmp_path)) as store:
        assert not store.restored.is_continued


async def test_what_the_keeper_went_on_without_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = config(f"sqlite:///{tmp_path}/x.db", tmp_path)
    assert given.store.url is not None
    url = given.store.url.get_secret_value()
    async with opened(given) as store:
        stream = store.restored.stream
        for weight in (2.0, 3.0):
            happen(store, weight)
    async with contextlib.aclosing(Database(read_url(url))) as database:
        async with database.writing() as connection:
            await connection.execute(text("UPDATE journal SET line = '{' WHERE seq = 0"))
        settings = KeeperSettings(
            url=url,
            stream=stream,
            keep_ns=given.store.journal_retention,
            turns_keep_ns=given.identity.idle_max,
        )
        await _run_keeper(settings)
        assert [image.seq for image in await read_images(database, stream)] == [2]
    assert "a journal entry cannot be read" in caplog.text


async def test_turns_that_replicas_write_late_are_followed(url: str, tmp_path: Path) -> None:
    """They are in the database when the flush is over, at the latest."""
    async with (
        opened(config(url, tmp_path, flush_interval="10s")) as store,
        contextlib.aclosing(store.follower()) as follower,
        contextlib.aclosing(Database(read_url(url))) as database,
    ):
        assert await follower.news() == []
        late = time.time_ns() - 9 * 10**9
        await Rows(database).insert([TurnRecord("theirs", 1, late, b"late")], timeout_s=10)
        assert await follower.news() == [(late, b"late")]
