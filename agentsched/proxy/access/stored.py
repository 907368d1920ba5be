"""Follows the keys in the store: looks again and again, so that no request ever waits for it.

A database that is away changes nothing: the keys that were known go on counting, and one that was
revoked meanwhile ends when the database is back. That is said in the log and in the metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from agentsched.config import Config
from agentsched.model import in_seconds
from agentsched.proxy.access.gate import Gate
from agentsched.proxy.access.keys import KeyRecord

if TYPE_CHECKING:
    from agentsched.store.database import Database

log = logging.getLogger(__name__)

#: Between two notes of which keys are in use.
_NOTE_EVERY_S: Final = 60.0
_LAST_NOTE_S: Final = 2.0
#: Keys that ended so lately are read, too: one whose end is put off to sooner than the next look
#: (a rotation with little grace) must not seem to be revoked.
_LATELY: Final = timedelta(hours=1)


class StoredKeys:
    """Keeps a gate's ring in step with the table of keys."""

    def __init__(self, gate: Gate, database: Database, config: Config) -> None:
        self._gate = gate
        self._database = database
        self._interval_s = in_seconds(config.auth.refresh_interval)
        self._is_told = False
        self._noted_at = 0.0

    async def look(self) -> None:
        """Read the table once.

        Raises:
            StoreError: it cannot be read; the ring is as it was.
        """
        from agentsched.store.keys import valid_keys

        found = await valid_keys(self._database, now=datetime.now(UTC) - _LATELY)
        self._gate.ring.store(
            {
                key.key: KeyRecord(
                    id=key.key,
                    hash=key.hash,
                    tenant=key.tenant,
                    scopes=key.scopes,
                    name=key.name,
                    expires_at=None if key.expires_at is None else key.expires_at.timestamp(),
                )
                for key in found
            }
        )

    async def follow(self) -> None:
        """Look for ever."""
        clock = asyncio.get_running_loop()
        self._noted_at = clock.time()
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._try()
                if clock.time() - self._noted_at >= _NOTE_EVERY_S:
                    self._noted_at = clock.time()
                    await self.note()
            except Exception:
                # Who looks no more would let revoked keys count for ever.
                self._gate.refused["store"] += 1
                log.exception("a defect while following the store's keys")

    async def note(self) -> None:
        """Write down which keys were used since the last time."""
        from agentsched.store.database import StoreError
        from agentsched.store.keys import note_use

        used = self._gate.ring.take_used()
        if not used:
            return
        try:
            await note_use(self._database, used, now=datetime.now(UTC))
        except StoreError as error:
            log.warning("which keys are in use is not noted: %s", error)

    async def _try(self) -> None:
        from agentsched.store.database import StoreError

        try:
            await self.look()
        except StoreError as error:
            if not self._is_told:
                log.error("keys cannot be read; those that were known still count: %s", error)
            self._is_told = True
            self._gate.refused["store"] += 1
            return
        if self._is_told:
            log.info("keys can be read again")
        self._is_told = False


@contextlib.asynccontextmanager
async def followed(config: Config, gate: Gate) -> AsyncIterator[StoredKeys | None]:
    """The store's keys count while inside, where there is a store and keys are asked for.

    A start without its database goes on with the keys of the configuration, and says so.
    """
    if config.store.url is None or config.auth.mode == "open":
        yield None
        return
    from agentsched.store.database import Database, StoreError, read_url
    from agentsched.store.migrate import upgrade

    database = Database(read_url(config.store.url.get_secret_value()))
    keys = StoredKeys(gate, database, config)
    try:
        try:
            await upgrade(database)
        except StoreError as error:
            # A later version's keys are read all the same.
            log.warning("the store is not upgraded: %s", error)
        try:
            await keys.look()
        except StoreError as error:
            log.error("the store's keys do not count yet: %s", error)
        task = asyncio.create_task(keys.follow(), name="follow keys")
        try:
            yield keys
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(keys.note(), _LAST_NOTE_S)
    finally:
        await database.aclose()


@contextlib.asynccontextmanager
async def provided(config: Config, gate: Gate) -> AsyncIterator[None]:
    """Tokens of the identity provider count while inside, where there is one.

    Raises:
        ConfigError: the packages for it are not installed.
    """
    if config.auth.oidc is None:
        yield
        return
    try:
        from agentsched.proxy.access.tokens import TokenVerifier
    except ImportError as error:
        from agentsched.model import ConfigError

        raise ConfigError("auth.oidc needs `pip install agentsched[auth]`") from error
    gate.tokens = verifier = TokenVerifier(config.auth.oidc)
    task = asyncio.create_task(verifier.keep_keys(), name="fetch keys")
    try:
        with contextlib.suppress(TimeoutError):
            # The first requests should not be refused for a key that is on its way.
            await asyncio.wait_for(verifier.fetched.wait(), in_seconds(config.auth.oidc.timeout))
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
