"""The journal as a file: one line an entry, written off the event loop, bounded, never blocking.

While the disk is slow, entries wait in memory, and are dropped and counted when too many do. When
it is full, what was written of entries that did not fit is taken back, so that the file goes on
with a whole line once there is room. When it does not answer, nobody waits for it for ever, not
even this proxy's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, TypeVar

from agentsched.kernel import JournalEntry, encode
from agentsched.model import ConfigError

log = logging.getLogger(__name__)

_FLUSH_EVERY_S: Final = 0.25
#: How long the end waits for a disk that does not answer.
_CLOSE_S: Final = 10.0
#: Of zlib: a stream of gzip with the largest window.
_GZIP: Final = 31

T = TypeVar("T")


class JournalFile:
    """An `EventSink` that appends to a new file.

    Entries wait in memory for the next flush; with `backlog_max` of them waiting, further ones are
    dropped and counted: a slow disk must not slow the data plane. Sequence numbers show the gap.
    """

    def __init__(
        self, path: Path, *, header: bytes, backlog_max: int, close_s: float = _CLOSE_S
    ) -> None:
        self._path = path
        self._header = header
        self._backlog_max = backlog_max
        self._close_s = close_s
        self._waiting: deque[JournalEntry] = deque()
        self._file: WholeLines | None = None
        self._ending = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self.dropped = 0
        #: Set where nothing was served: the file is removed when it is closed.
        self.is_void = False

    def write(self, entry: JournalEntry) -> None:
        """Take an entry in; it is in the file within a quarter of a second."""
        if len(self._waiting) >= self._backlog_max:
            self.dropped += 1
            return
        self._waiting.append(entry)

    async def __aenter__(self) -> Self:
        """Make the file. Raises `ConfigError` when that cannot be done or it exists already."""
        try:
            self._file = await _beside(self._open)
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
        """Write what waits, and close; all that waits is lost where the disk does not answer."""
        assert self._flusher is not None
        self._ending.set()
        done, _ = await asyncio.wait({self._flusher}, timeout=self._close_s)
        if not done:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
            log.error("%s lacks its end: the disk does not answer", self._path)
        elif self.dropped:
            log.warning("%s lacks %d entries", self._path, self.dropped)

    async def _keep_flushing(self) -> None:
        """The only one that writes, so that lines keep their order."""
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_EVERY_S):
                    await self._ending.wait()
            await self._flush()
        await self._flush()  # what came while the last of these was written
        try:
            await _beside(self._end)
        except OSError:
            log.exception("the journal cannot be ended")

    async def _flush(self) -> None:
        if self._waiting:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                await _beside(self._write_batch, batch)
            except OSError:
                self.dropped += len(batch)
                log.exception("the journal cannot be written; %d entries lost", len(batch))

    def _open(self) -> WholeLines:
        file = self._path.open("xb", buffering=0)
        lines = WholeLines(file, packs=self._path.suffix == ".gz")
        try:
            lines.write(self._header + b"\n")
        except OSError:
            file.close()
            self._path.unlink()  # else the next start would find a journal here
            raise
        return lines

    def _end(self) -> None:
        assert self._file is not None
        try:
            self._file.close()
        finally:
            if self.is_void:
                self._path.unlink(missing_ok=True)

    def _write_batch(self, batch: list[JournalEntry]) -> None:
        assert self._file is not None
        self._file.write(b"".join(encode(entry) + b"\n" for entry in batch))


class WholeLines:
    """A file that has all of what is written at once, or nothing of it."""

    def __init__(self, file: IO[bytes], *, packs: bool = False) -> None:
        """`file` is unbuffered and empty. `packs`: as gzip does, readable up to the last write."""
        self._file = file
        self._packer = zlib.compressobj(wbits=_GZIP) if packs else None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            OSError: it was not written, and nothing of it is there.
        """
        if self._packer is None:
            self._append(data)
            return
        packer = self._packer.copy()
        self._append(packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))
        self._packer = packer

    def close(self) -> None:
        """Write what ends the file, and close it. Raises OSError as `write` does."""
        try:
            if self._packer is not None:
                self._append(self._packer.flush())
        finally:
            self._file.close()

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]
        except OSError:
            # Half a line would make one of itself and the next, and all that follows unreadable.
            self._file.seek(self._size)
            self._file.truncate()
            raise
        self._size += len(data)


class _Beside(Executor):
    """A thread for each call, which dies with the process: `asyncio.to_thread` waits at its end."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        done: Future[Any] = Future()
        # From here on nobody can cancel it; whoever gave it up does not hear of its end.
        done.set_running_or_notify_cancel()

        def run() -> None:
            try:
                done.set_result(call(*args, **more))
            except Exception as error:
                done.set_exception(error)

        threading.Thread(target=run, name="journal file", daemon=True).start()
        return done


_BESIDE: Final = _Beside()


async def _beside(call: Callable[..., T], *args: Any) -> T:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_BESIDE, call, *args)
