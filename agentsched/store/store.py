"""The store of one proxy: opened before it listens, closed after its last word.

Nothing here ends the proxy: a database that is away, damaged or of a later version costs what it
should have kept, and is told in the log and in the metrics. A wrong configuration does end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from agentsched.config import Config, StoreConfig
from agentsched.model import ConfigError, EngineId, in_seconds
from agentsched.store.database import Database, StoreError, read_url
from agentsched.store.following import Follower
from agentsched.store.keeper import KeeperSettings
from agentsched.store.migrate import upgrade
from agentsched.store.reader import read_streams, shared_secret
from agentsched.store.records import EncodeTurn
from agentsched.store.restore import RestoreConfig, Restored, begin, restore, told
from agentsched.store.spool import Spool
from agentsched.store.writer import StoreWriter, WriterConfig
from agentsched.store.writing import Rows

log = logging.getLogger(__name__)

_SECRET: Final = "prompts"  # its name in the table, and of its copy in the spool's folder
_SECRET_BYTES: Final = 8
_RETRY_S: Final = 0.5
_KEEPER_S_MAX: Final = 600.0
_KEEPER_END_S: Final = 5.0


class Store:
    """An open store: what was brought back, and the writer of what comes."""

    def __init__(
        self,
        *,
        config: StoreConfig,
        restored: Restored,
        secret: int,
        writer: StoreWriter,
        turns_keep_ns: int,
    ) -> None:
        self.restored = restored
        self.writer = writer
        #: Keys the hashes of prompts.
        self.secret = secret
        self._config = config
        self._turns_keep_ns = turns_keep_ns
        #: Set each time that the process that makes images has ended; whoever waits clears it.
        self.kept = asyncio.Event()

    def follower(self) -> Follower:
        """Reads the turns that other replicas write. Is the caller's to close."""
        assert self._config.url is not None
        return Follower(
            self._config.url.get_secret_value(),
            stream=self.restored.stream,
            since_ns=time.time_ns() - self._turns_keep_ns,
            flush_ns=self._config.flush_interval,
        )

    async def keep_images(self, settings: KeeperSettings) -> None:
        """Let a process beside this one make images, time and again. Runs until cancelled."""
        while True:
            await asyncio.sleep(in_seconds(self._config.image_interval))
            if self.writer.statistics().is_up:
                try:
                    await _run_keeper(settings)
                except OSError as error:
                    log.error("no image of the scheduler: %s", error)
                self.kept.set()


@contextlib.asynccontextmanager
async def open_store(config: Config, *, encode_turn: EncodeTurn) -> AsyncIterator[Store]:
    """Open the configured store, bring back what was, and write from then on.

    `encode_turn` is called on another thread.

    Raises:
        ConfigError: the URL is none, or the spool cannot be used.
    """
    given = config.store
    assert given.url is not None
    url = given.url.get_secret_value()
    database = Database(read_url(url))
    spool = Spool(_spool_folder(config, database), bytes_max=given.spool_bytes_max)
    spool.acquire()
    try:
        owner = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        restored, secret, is_seen = await _start(database, spool, config, owner)
        writer = StoreWriter(
            Database(database.url),
            spool,
            WriterConfig(
                stream=restored.stream,
                owner=owner,
                epoch_ns=restored.epoch_ns,
                backlog_max=given.backlog_max,
                flush_s=in_seconds(given.flush_interval),
                opening=restored.opening,
                is_unseen=not is_seen,
            ),
            encode_turn=encode_turn,
        )
        store = Store(
            config=given,
            restored=restored,
            secret=secret,
            writer=writer,
            turns_keep_ns=config.identity.idle_max,
        )
        if restored.is_continued:
            for entry in restored.entries:
                writer.write(entry)
        writer.start()
        settings = KeeperSettings(
            url=url,
            stream=restored.stream,
            keep_ns=given.journal_retention,
            turns_keep_ns=config.identity.idle_max,
        )
        images = asyncio.create_task(store.keep_images(settings), name="images of the scheduler")
        try:
            yield store
        finally:
            images.cancel()
            await asyncio.gather(images, return_exceptions=True)
            await asyncio.to_thread(writer.stop, timeout_s=in_seconds(given.shutdown_timeout))
    finally:
        spool.release()
        await database.aclose()


async def _start(
    database: Database, spool: Spool, config: Config, owner: str
) -> tuple[Restored, int, bool]:
    """What was, or a beginning; the secret; whether the database answered as it should. Bounded by
    the configured time."""
    given = config.store
    timeout_s = in_seconds(given.restore_timeout)
    began = time.monotonic()
    wanted = RestoreConfig(
        scheduler=config.scheduler(),
        engines=frozenset(EngineId(engine.name) for engine in config.engines),
        replica=given.replica or socket.gethostname(),
        owner=owner,
        timeout_s=timeout_s,
        events_max=given.restore_events_max,
        idle_ns=config.identity.idle_max,
    )
    while True:
        try:
            await upgrade(database)
            secret = await _secret(database, spool)
            await _bring_home(database, spool, replica=wanted.replica)
            restored = await restore(database, wanted)
            log.info("%s", told(restored, seconds=time.monotonic() - began))
            return restored, secret, True
        except StoreError as error:
            # A server may be starting beside us; a file that is damaged will not mend.
            if database.is_postgres and time.monotonic() - began < timeout_s:
                await asyncio.sleep(_RETRY_S)
                continue
            log.error("nothing is brought back, the store cannot be read: %s", error)
            return begin(wanted), _known_secret(spool), False


async def _bring_home(database: Database, spool: Spool, *, replica: str) -> None:
    """Write what an earlier process left in the spool, before the journal is read.

    Not where another replica took that journal over and goes on with it: its end would be put into
    the middle of another history.
    """
    if spool.is_empty:
        return
    now = datetime.now(UTC)
    streams = await read_streams(database)
    taken = {s.stream for s in streams if s.replica != replica and s.lease_until > now}
    rows = Rows(database)
    while (segment := spool.oldest()) is not None:
        found = spool.read(segment)
        records = [record for record in found if record.stream not in taken]
        if len(records) < len(found):
            lost = len(found) - len(records)
            log.error("%d spooled records are left out: their journal was taken over", lost)
        try:
            await rows.insert(records, timeout_s=rows.timeout_s)
        except StoreError as error:
            if not error.is_data:
                raise
            return  # the writer finds out which record it is
        spool.remove(segment)


async def _secret(database: Database, spool: Spool) -> int:
    proposed = _known_secret(spool).to_bytes(_SECRET_BYTES)
    secret = await shared_secret(database, _SECRET, proposed=proposed)
    if secret != proposed:
        _write_secret(spool, secret)
    return int.from_bytes(secret[:_SECRET_BYTES])


def _known_secret(spool: Spool) -> int:
    """The copy beside the spool, for a start without the database; made when there is none."""
    with contextlib.suppress(OSError):
        secret = (spool.folder / _SECRET).read_bytes()
        if len(secret) == _SECRET_BYTES:
            return int.from_bytes(secret)
    secret = secrets.token_bytes(_SECRET_BYTES)
    _write_secret(spool, secret)
    return int.from_bytes(secret)


def _write_secret(spool: Spool, secret: bytes) -> None:
    path = spool.folder / _SECRET
    try:
        path.touch(mode=0o600)
        path.write_bytes(secret)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)


def _spool_folder(config: Config, database: Database) -> Path:
    if config.store.spool is not None:
        return config.store.spool
    if database.file is not None:
        return database.file.with_name(database.file.name + ".spool")
    replica = config.store.replica or socket.gethostname()
    return _own_folder(Path(tempfile.gettempdir()) / f"agentsched-spool-{os.geteuid()}") / replica


def _own_folder(folder: Path) -> Path:
    """A folder where everybody may make one: it has to be ours alone.

    Whoever else could write there could put words into the journal, and choose the key that hashes
    prompts.

    Raises:
        ConfigError: somebody else made it, or others may write to it.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(f"store.spool {folder}: {error.strerror or error}") from error
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{folder} is not this user's alone: name another folder (store.spool) or remove it"
        )
    return folder


async def _run_keeper(settings: KeeperSettings) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "agentsched.store.keeper"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_KEEPER_S_MAX):
            _, said = await process.communicate(msgspec.json.encode(settings))
    except TimeoutError:
        log.error("no image of the scheduler: it took more than %d s", _KEEPER_S_MAX)
        return
    finally:
        if process.returncode is None:
            process.kill()
            # Who waits for a disk cannot be killed, and nobody waits for that.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KEEPER_END_S):
                    await process.wait()
    text = said.decode(errors="replace").strip()[-500:]
    if process.returncode:
        log.error("no image of the scheduler: %s", text)
    elif text:
        # It went on without: a policy that no image can hold, or entries that cannot be read.
        log.warning("the keeper of images says: %s", text)
