"""The batching writer: a sink of the journal whose thread fills the database, or else the spool.

Theory. The data plane leaves references in a bounded queue and goes on; that is all it pays. The
thread takes what is there every `flush_s`, encodes it, and writes one transaction; what came
meanwhile waits for the next, for transactions cost far more than rows. When that fails
the batch goes to the spool, and so does all that follows until the spool has been written back: the
journal reaches the database in order. Every write can be repeated, so a transaction of which nobody
knows whether it took place is simply made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentsched.kernel import JournalEntry
from agentsched.store.database import Database, StoreError
from agentsched.store.migrate import upgrade
from agentsched.store.records import (
    EncodeTurn,
    JournalRecord,
    Record,
    StreamRecord,
    Turn,
    TurnRecord,
    journal_record,
)
from agentsched.store.spool import Spool
from agentsched.store.writing import Rows, StreamTaken, renew_lease

log = logging.getLogger(__name__)

_BATCH_MAX: Final = 500
_BACKOFF_FIRST_S: Final = 0.25
_BACKOFF_MAX_S: Final = 5.0
_LEASE_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStatistics:
    """Counts since the start, and what is so now."""

    written_total: int
    dropped_total: int
    refused_total: int
    spooled_total: int
    failures_total: int
    backlog: int
    spool_bytes: int
    is_up: bool
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterConfig:
    """How the writer works. `stream` and `owner` say whose journal it is."""

    stream: str
    owner: str
    epoch_ns: int
    backlog_max: int
    flush_s: float
    #: The journal's first record, where it is not in the database yet.
    opening: StreamRecord | None = None
    #: The database was away at the start: nobody has looked whether it has our tables.
    is_unseen: bool = False


class StoreWriter:
    """An `EventSink`. `write` and `keep` are called by the data plane; all else is the thread's."""

    def __init__(
        self, database: Database, spool: Spool, config: WriterConfig, *, encode_turn: EncodeTurn
    ) -> None:
        self._database = database
        self._rows = Rows(database, owner=config.owner)
        self._spool = spool
        self._config = config
        self._encode_turn = encode_turn
        #: Appended to by the data plane, taken from by the thread; both are atomic.
        self._waiting: deque[JournalEntry | Turn] = deque()
        #: Of them those that the thread is writing.
        self._in_hand = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = threading.Event()
        self._wake: asyncio.Event | None = None
        self._give_up_at = float("inf")
        self._retry_at = 0.0
        self._backoff = _BACKOFF_FIRST_S
        self._lease_at = 0.0
        self._is_up = True
        #: Our journal is in the database.
        self._has_begun = config.opening is None
        #: Another process goes on with our journal, and that was said.
        self._is_taken = False
        self._last_error = ""
        self._dropped = self._written = self._refused = self._spooled = self._failures = 0

    # The data plane's side.

    def write(self, entry: JournalEntry) -> None:
        """Take in a journal entry; it is on disk within a few flushes."""
        if len(self._waiting) < self._config.backlog_max:
            self._waiting.append(entry)
        else:
            self._dropped += 1

    def keep(self, turn: Turn) -> None:
        """Take in a turn that is new or has changed; it is read when it is written."""
        if len(self._waiting) < self._config.backlog_max:
            self._waiting.append(turn)
        else:
            self._dropped += 1

    def statistics(self) -> WriterStatistics:
        """An immutable record of counts."""
        return WriterStatistics(
            written_total=self._written,
            dropped_total=self._dropped,
            refused_total=self._refused,
            spooled_total=self._spooled,
            failures_total=self._failures,
            backlog=len(self._waiting) + self._in_hand,
            spool_bytes=self._spool.size,
            is_up=self._is_up,
            last_error=self._last_error,
        )

    def start(self) -> None:
        """Begin to write."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._main, name="store", daemon=True)
        self._thread.start()

    def stop(self, *, timeout_s: float) -> bool:
        """Write what waits, to the spool if need be, and end. Blocks; False: it took too long."""
        assert self._thread is not None
        # A part of the time is for the spool, should the database not answer.
        self._give_up_at = time.monotonic() + 0.6 * timeout_s
        self._ending.set()
        loop = self._loop
        if loop is not None and self._wake is not None:
            try:
                loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:
                log.debug("the store's thread has ended already")
        self._thread.join(timeout_s)
        is_done = not self._thread.is_alive()
        if not is_done or self._dropped:
            lost = self._dropped + len(self._waiting)
            log.warning("the store lacks %d records of this run", lost)
        return is_done

    # The thread's side.

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except Exception:
            log.exception("a defect in the store's thread: nothing more is stored")
            self._is_up = False

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        try:
            if self._config.opening is not None:
                await self._put([self._config.opening])
            while not self._ending.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._config.flush_s)
                await self._turn()
            while self._waiting:
                await self._turn()
            await self._turn()
            if self._spool.is_empty:
                await self._renew(seconds=0.0)  # whoever comes next need not wait
        finally:
            await self._database.aclose()

    async def _turn(self) -> None:
        """One round: write what waits, then what the spool holds.

        What comes meanwhile is left for the next round unless it fills a transaction: under load
        something always comes, and a transaction costs as much as a hundred rows.
        """
        if not self._is_up and self._has_begun and self._may_try():
            await self._renew()  # first, before anybody takes this replica for dead
        left = len(self._waiting)
        while left > 0 or len(self._waiting) >= _BATCH_MAX:
            # Counted before they leave the queue, so that at no time they seem to be done.
            self._in_hand = min(_BATCH_MAX, len(self._waiting))
            left -= self._in_hand
            await self._put(self._take())
            self._in_hand = 0
        if not self._spool.is_empty:
            await self._heal()
        if self._is_up and time.monotonic() >= self._lease_at:
            await self._renew()

    def _take(self) -> list[Record]:
        entries: list[Record] = []
        turns: dict[int, Turn] = {}
        waiting, config = self._waiting, self._config
        for _ in range(self._in_hand):
            item = waiting.popleft()
            if isinstance(item, JournalEntry):
                entries.append(journal_record(item, stream=config.stream, epoch_ns=config.epoch_ns))
            else:
                turns[item.handle] = item
        for turn in turns.values():
            handle, at, data = self._encode_turn(turn)
            entries.append(
                TurnRecord(
                    stream=config.stream, handle=handle, at_ns=config.epoch_ns + at, data=data
                )
            )
        return entries

    async def _put(self, records: Sequence[Record]) -> None:
        if self._spool.is_empty and self._may_try() and await self._insert(records):
            return
        lost = self._spool.append(records)
        self._spooled += len(records) - lost
        self._dropped += lost

    async def _heal(self) -> None:
        """Bring the spool's records home, oldest first, for as long as that works."""
        while self._may_try() and (segment := self._spool.oldest()) is not None:
            try:
                records = self._spool.read(segment)
            except StoreError as error:
                self._fail(error)
                return
            for start in range(0, len(records), _BATCH_MAX):
                if not await self._insert(records[start : start + _BATCH_MAX]):
                    return
            self._spool.remove(segment)
        if self._spool.is_empty:
            log.info("the store has caught up: the spool is empty")

    def _may_try(self) -> bool:
        return self._retry_at <= time.monotonic() < self._give_up_at

    async def _insert(self, records: Sequence[Record]) -> bool:
        try:
            await self._make_tables()
            await self._rows.insert(records, timeout_s=self._timeout())
        except StreamTaken as error:
            return await self._leave(records, error)
        except StoreError as error:
            if error.is_data:
                return await self._insert_singly(records)
            self._fail(error)
            return False
        self._written += len(records)
        self._succeed()
        return True

    async def _make_tables(self) -> None:
        """A database that was away at the start may be a new one, or an earlier version's."""
        if self._config.is_unseen and not self._has_begun:
            # What is wrong with it the write says as well; a later version's will do.
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(self._timeout()):
                    await upgrade(self._database)

    async def _leave(self, records: Sequence[Record], error: StreamTaken) -> bool:
        """This replica was taken for dead, and its journal goes on elsewhere: turns alone are kept.

        A restart begins a journal of its own; until then the metrics say what is refused.
        """
        if not self._is_taken:
            self._is_taken = True
            log.error("%s: the journal is not kept any more; restart this replica", error)
        turns = [r for r in records if isinstance(r, TurnRecord)]
        self._refused += len(records) - len(turns)
        return await self._insert(turns) if turns else True

    async def _insert_singly(self, records: Sequence[Record]) -> bool:
        """One record is refused: leave out those that are, so that they do not block the rest.

        False: the database is away, so that nobody knows of the others.
        """
        for record in records:
            try:
                await self._rows.insert([record], timeout_s=self._timeout())
                self._written += 1
            except StoreError as error:
                if not error.is_data:
                    self._fail(error)
                    return False
                self._refused += 1
                log.error("the database refuses a record of %s: %s", _name(record), error)
        self._succeed()
        return True

    def _timeout(self) -> float:
        return max(0.1, min(self._rows.timeout_s, self._give_up_at - time.monotonic()))

    def _succeed(self) -> None:
        if not self._is_up:
            log.info("the store is back")
        self._is_up, self._last_error, self._backoff = True, "", _BACKOFF_FIRST_S
        self._has_begun = True

    def _fail(self, error: StoreError) -> None:
        if self._is_up or str(error) != self._last_error:
            log.error("the store is away, what it should keep goes to the spool: %s", error)
        self._failures += 1
        self._is_up, self._last_error = False, str(error)
        self._retry_at = time.monotonic() + self._backoff
        self._backoff = min(_BACKOFF_MAX_S, 2 * self._backoff)

    async def _renew(self, *, seconds: float | None = None) -> None:
        self._lease_at = time.monotonic() + _LEASE_EVERY_S
        config = self._config
        try:
            is_ours = await renew_lease(
                self._database, config.stream, owner=config.owner, seconds=seconds
            )
        except StoreError as error:
            self._fail(error)
            return
        if not is_ours:
            log.error("another process writes the journal of this replica: is its name used twice?")


def _name(record: Record) -> str:
    match record:
        case JournalRecord():
            return f"the journal ({record.kind} {record.seq})"
        case TurnRecord():
            return "a program"
        case _:
            return "a stream"
