"""A bounded queue on disk for what the database cannot take now: segments of JSON lines.

Segments are written in order and read in order; a segment is deleted only after its records are in
the database. Writing a record twice changes nothing, so a crash between the two costs nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

from agentsched.model import ConfigError
from agentsched.store.database import StoreError
from agentsched.store.records import Record

log = logging.getLogger(__name__)

_SEGMENT_BYTES: Final = 1 << 20
_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[Record]] = msgspec.json.Decoder(Record)


class Spool:
    """The spool in a folder, which is made when it is not there. One process at a time has it."""

    def __init__(self, folder: Path, *, bytes_max: int) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._lock: IO[bytes] | None = None
        #: Bytes of each segment, oldest first; the last one may still grow.
        self._segments: dict[int, int] = {}
        self._open: IO[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder

    @property
    def size(self) -> int:
        """Bytes that wait in it."""
        return sum(self._segments.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._segments

    def acquire(self) -> None:
        """Take the folder; what an earlier process left there waits again.

        Raises:
            ConfigError: another process has it, or it cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _open(self._folder / "lock")
        except OSError as error:
            raise ConfigError(f"store.spool {self._folder}: {error.strerror or error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ConfigError(
                f"store.spool {self._folder} is another process's: give each replica its own "
                "name (store.replica)"
            ) from None
        self._lock = lock
        numbers = sorted(int(p.stem) for p in self._folder.glob("*.ndjson") if p.stem.isdigit())
        self._segments = {n: self._path(n).stat().st_size for n in numbers}

    def release(self) -> None:
        """Give the folder back; what waits stays."""
        self.close_segment()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append(self, records: Iterable[Record]) -> int:
        """Add records; returns how many did not fit, or could not be written."""
        lines = [_ENCODER.encode(record) + b"\n" for record in records]
        room = self._bytes_max - self.size
        taken = 0
        for line in lines:
            room -= len(line)
            if room < 0:
                break
            taken += 1
        if not taken:
            return len(lines)
        try:
            self._write(b"".join(lines[:taken]))
        except OSError as error:
            log.error("the spool %s cannot be written: %s", self._folder, error)
            self.close_segment()
            return len(lines)
        return len(lines) - taken

    def oldest(self) -> int | None:
        """The segment to be read next; it grows no more."""
        number = next(iter(self._segments), None)
        if number is not None and number == next(reversed(self._segments)):
            self.close_segment()
        return number

    def read(self, segment: int) -> Sequence[Record]:
        """The records of a segment. A line cut short by a crash is left out.

        Raises:
            StoreError: it cannot be read now (too many open files, say); it must not be removed.
        """
        path = self._path(segment)
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []  # somebody else removed it, and it will not come back
        except OSError as error:
            raise StoreError(f"the spool {path}: {error.strerror or error}") from error
        records: list[Record] = []
        for line in lines:
            if line:
                try:
                    records.append(_DECODER.decode(line))
                except (msgspec.DecodeError, ValueError):
                    log.warning("the spool %s holds half a record", path)
        return records

    def remove(self, segment: int) -> None:
        """Forget a segment: its records are in the database."""
        del self._segments[segment]
        with contextlib.suppress(OSError):
            self._path(segment).unlink(missing_ok=True)

    def close_segment(self) -> None:
        """The next record begins a new segment."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.close()
            self._open = None

    def _write(self, data: bytes) -> None:
        if self._open is None:
            number = next(reversed(self._segments), 0) + 1
            self._open = _open(self._path(number))
            self._segments[number] = 0
        number = next(reversed(self._segments))
        left = memoryview(data)
        while left:  # a disk that is nearly full takes a part
            written = self._open.write(left)
            self._segments[number] += written
            left = left[written:]
        if self._segments[number] >= _SEGMENT_BYTES:
            os.fsync(self._open.fileno())
            self.close_segment()

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:08d}.ndjson"


def _open(path: Path) -> IO[bytes]:
    """Open to append. The journal names tenants and programs, so nobody else reads it."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)
