"""The journal as a file: one line an entry, written off the event loop, bounded, never blocking."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from agentsched.kernel import JournalEntry, encode
from agentsched.model import ConfigError

log = logging.getLogger(__name__)

_FLUSH_EVERY_S: Final = 0.25


class JournalFile:
    """An `EventSink` that appends to a new file.

    Entries wait in memory for the next flush; with `backlog_max` of them waiting, further ones are
    dropped and counted: a slow disk must not slow the data plane. Sequence numbers show the gap.
    """

    def __init__(self, path: Path, *, header: bytes, backlog_max: int) -> None:
        self._path = path
        self._header = header
        self._backlog_max = backlog_max
        self._waiting: deque[JournalEntry] = deque()
        self._file: IO[bytes] | None = None
        self._flusher: asyncio.Task[None] | None = None
        self.dropped = 0

    def write(self, entry: JournalEntry) -> None:
        """Take an entry in; it is in the file within a quarter of a second."""
        if len(self._waiting) >= self._backlog_max:
            self.dropped += 1
            return
        self._waiting.append(entry)

    async def __aenter__(self) -> Self:
        """Make the file. Raises `ConfigError` when that cannot be done or it exists already."""
        try:
            self._file = await asyncio.to_thread(self._open)
        except FileExistsError:
            raise ConfigError(f"{self._path} exists; a journal is never written over") from None
        except OSError as error:
            raise ConfigError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._flusher = asyncio.create_task(self._keep_flushing(), name="journal file")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what waits, and close."""
        assert self._flusher is not None
        self._flusher.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)
        await self._flush()
        await asyncio.to_thread(self._close)

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            # Shielded: a batch that was taken from the queue is written also when we are stopped.
            await asyncio.shield(self._flush())

    async def _flush(self) -> None:
        if self._waiting:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                await asyncio.to_thread(self._write_batch, batch)
            except OSError:
                self.dropped += len(batch)
                log.exception("the journal cannot be written; %d entries lost", len(batch))

    def _open(self) -> IO[bytes]:
        file: IO[bytes]
        if self._path.suffix == ".gz":
            file = gzip.GzipFile(self._path, "xb")  # type: ignore[assignment]
        else:
            file = self._path.open("xb")
        file.write(self._header + b"\n")
        return file

    def _write_batch(self, batch: list[JournalEntry]) -> None:
        assert self._file is not None
        self._file.write(b"".join(encode(entry) + b"\n" for entry in batch))
        self._file.flush()

    def _close(self) -> None:
        assert self._file is not None
        if self.dropped:
            log.warning("%s lacks %d entries", self._path, self.dropped)
        self._file.close()
