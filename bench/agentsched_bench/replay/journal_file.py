"""A journal in a file: a header line, then one line an entry; gzip where the name ends in `.gz`."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from agentsched.kernel import (
    JournalEntry,
    JournalError,
    JournalHeader,
    decode,
    decode_header,
    encode,
    encode_header,
)

#: No honest line comes near this; a file that is no journal should not fill the memory.
LINE_BYTES_MAX = 16 * 1024 * 1024


class JournalWriter:
    """Writes a journal; an `EventSink`. What was written reaches the disk on `close`."""

    def __init__(self, path: Path, header: JournalHeader) -> None:
        """Make the file anew. Raises OSError when it cannot be written."""
        self._file: IO[bytes] = _open(path, mode="wb")
        self._file.write(encode_header(header) + b"\n")

    def write(self, entry: JournalEntry) -> None:
        self._file.write(encode(entry) + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class JournalReader:
    """A journal's header, and its entries as they are asked for.

    A last line without a line end is what a crash leaves behind; it is left out, and `is_cut`
    then says so.
    """

    def __init__(self, file: IO[bytes], *, name: str) -> None:
        """Read the header. Raises JournalError when there is none."""
        self._file = file
        self._name = name
        self._line_number = 0
        self.is_cut = False
        first = self._read_line()
        if first is None:
            raise JournalError(f"{name}: empty, or its header is cut off")
        with self._located():
            self.header = decode_header(first)

    def __iter__(self) -> Iterator[JournalEntry]:
        """The entries that are left.

        Raises:
            JournalError: a line is no entry (the text says which), or does not follow its
                predecessor.
        """
        following: int | None = None
        while (line := self._read_line()) is not None:
            with self._located():
                entry = decode(line)
                if following is not None and entry.seq != following:
                    raise JournalError(f"entry {entry.seq} where {following} was to come")
                following = entry.seq + 1
            yield entry

    @contextmanager
    def _located(self) -> Iterator[None]:
        try:
            yield
        except JournalError as error:
            raise JournalError(f"{self._name}, line {self._line_number}: {error}") from error

    def _read_line(self) -> bytes | None:
        self._line_number += 1
        try:
            line = self._file.readline(LINE_BYTES_MAX)
        except EOFError:  # gzip: the stream ends in the middle
            self.is_cut = True
            return None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise JournalError(f"{self._name}: {error}") from error
        if len(line) == LINE_BYTES_MAX:
            raise JournalError(f"{self._name}, line {self._line_number}: too long for a journal")
        if line and not line.endswith(b"\n"):
            self.is_cut = True
            return None
        return line or None


@contextmanager
def open_journal(path: Path) -> Iterator[JournalReader]:
    """Open a journal to read it.

    Raises:
        JournalError: it has no header that we can read.
        OSError: the file cannot be opened.
    """
    with _open(path, mode="rb") as file:
        yield JournalReader(file, name=path.name)


def _open(path: Path, *, mode: str) -> IO[bytes]:
    if path.suffix != ".gz":
        return path.open(mode)
    # No time of writing in it: equal journals give equal files.
    return gzip.GzipFile(path, mode, mtime=0)  # type: ignore[return-value]  # it is binary I/O
