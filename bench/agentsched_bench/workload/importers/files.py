"""Opening what is to be imported: any compression, one object or many lines, whole or broken."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from agentsched_bench.workload.importers.loose import Json
from agentsched_bench.workload.trace import TraceError, lines_of, open_zstd

#: One JSON document is read whole; a larger one is refused rather than fill the memory.
DOCUMENT_BYTES_MAX: Final = 1 << 30
_PROBE_LINES: Final = 20
_DECODER: Final = msgspec.json.Decoder()
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]|,', re.DOTALL)
_BOM: Final = b"\xef\xbb\xbf"

OnError = Callable[[TraceError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file to import. `is_named`: the user named it, rather than a folder above it."""

    path: Path
    is_named: bool = True

    def open(self) -> IO[bytes]:
        """Its content, decompressed by what it begins with. Raises TraceError."""
        try:
            with self.path.open("rb") as raw:
                head = raw.read(6)
            if head.startswith(b"\x1f\x8b"):
                return cast("IO[bytes]", gzip.open(self.path, "rb"))
            if head.startswith(b"\xfd7zXZ\x00"):
                return lzma.open(self.path, "rb")
            if head.startswith(b"BZh"):
                return bz2.open(self.path, "rb")
            if head.startswith(b"\x28\xb5\x2f\xfd"):
                return open_zstd(self.path)
            return self.path.open("rb")
        except OSError as error:
            raise TraceError(error.strerror or str(error), path=self.path) from error


def lines(file: InputFile) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, without blank ones and a byte order mark. Raises TraceError."""
    with file.open() as opened:
        for number, line in lines_of(opened, path=file.path):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield number, line


def objects(file: InputFile, *, on_error: OnError) -> Iterator[tuple[int, Json]]:
    """The JSON value of each line with its number. A bad line is reported and left out."""
    found = lines(file)
    while True:
        try:
            number, line = next(found)
            value = decode(line, path=file.path, number=number)
        except StopIteration:
            return
        except TraceError as error:
            on_error(error)
            if error.line is None:
                return
            continue
        yield number, value


def decode(data: bytes, *, path: Path, number: int = 1) -> Json:
    """A JSON value; `number` is the line that it begins on.

    Python's own reader is asked where msgspec refuses: NaN, half surrogate pairs and bytes that are
    no UTF-8 occur in the wild.

    Raises:
        TraceError: it is not JSON; the text says where it broke.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    text = data.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise TraceError("JSON nested too deeply", path=path, line=number) from error
    except json.JSONDecodeError as error:
        where = f"column {error.colno}"
        # What ends inside of a string or before a closing bracket was cut off.
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        what = f"the JSON is cut short ({where})" if is_cut else f"not JSON: {error.msg} ({where})"
        raise TraceError(what, path=path, line=number + error.lineno - 1) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file that is one JSON value. `is_cut`: it broke off, and this is what came before."""

    value: Json
    is_cut: bool = False


def document(file: InputFile, *, on_error: OnError) -> Document | None:
    """The JSON value that a file is. A broken one is reported, and what came before it kept."""
    data, problem = _read_all(file, on_error=on_error)
    if data is None:
        return None
    data = data.removeprefix(_BOM)
    try:
        value = decode(data, path=file.path)
    except TraceError as error:
        on_error(problem or error)
        kept = salvage(data)
        return None if kept is None else Document(value=kept, is_cut=True)
    return Document(value=value)


def _read_all(file: InputFile, *, on_error: OnError) -> tuple[bytes | None, TraceError | None]:
    parts: list[bytes] = []
    size = 0
    try:
        with file.open() as opened:
            while part := opened.read(1 << 20):
                parts.append(part)
                size += len(part)
                if size > DOCUMENT_BYTES_MAX:
                    raise TraceError("the document is larger than 1 GiB", path=file.path)
    except TraceError as error:
        on_error(error)
        return None, None
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        line = 1 + sum(part.count(b"\n") for part in parts)
        text = f"cannot decompress: {error}" if str(error) else "the compressed file is cut short"
        return b"".join(parts), TraceError(text, path=file.path, line=line)
    return b"".join(parts), None


def salvage(data: bytes) -> Json:
    """The value that a broken document begins: up to its last whole element; None if none is.

    Brackets that are open there are closed. What stands after the break is lost.
    """
    end = len(data)
    try:
        json.loads(data.decode("utf-8", "replace"))
    except RecursionError:
        return None
    except json.JSONDecodeError as error:
        # Positions are in characters; with broken UTF-8 this is near enough, and cut earlier.
        end = len(data.decode("utf-8", "replace")[: error.pos].encode())
    stack: list[bytes] = []
    safe: tuple[int, bytes] | None = None
    for match in _TOKENS.finditer(data[:end]):
        token = match.group()
        if token in (b"{", b"["):
            stack.append(b"}" if token == b"{" else b"]")
        elif token in (b"}", b"]"):
            if not stack or stack.pop() != token:
                break
            safe = (match.end(), b"".join(reversed(stack)))
        elif token == b",":
            safe = (match.start(), b"".join(reversed(stack)))
    if safe is None:
        return None
    try:
        return json.loads((data[: safe[0]] + safe[1]).decode("utf-8", "replace"))
    except (json.JSONDecodeError, RecursionError):
        return None


def probe(file: InputFile) -> list[Any]:
    """The first values of a file, to tell its format by: of its lines, or the one that it is.

    Nothing is reported: whoever reads it for good will.
    """
    found: list[Any] = []
    ignored: list[TraceError] = []
    try:
        for count, (number, line) in enumerate(lines(file)):
            if count >= _PROBE_LINES:
                break
            try:
                found.append(decode(line, path=file.path, number=number))
            except TraceError:
                if not found:
                    # A document over many lines does not begin with a whole value.
                    break
    except TraceError:
        pass
    found = [value for value in found if isinstance(value, dict | list)]
    if found:
        return found
    whole = document(file, on_error=ignored.append)
    return [] if whole is None else [whole.value]


def is_lines(file: InputFile) -> bool:
    """Whether a file is JSON lines, rather than one document over one or many lines."""
    try:
        opened = lines(file)
        number, line = next(opened)
        decode(line, path=file.path, number=number)
    except (StopIteration, TraceError):
        return False
    try:
        return next(opened, None) is not None
    except TraceError:
        return True


def as_stream(data: bytes) -> IO[bytes]:
    """Bytes as an open file, for tests and for what is already in memory."""
    return io.BytesIO(data)
