"""Opening what is to be imported: any compression, one object or many lines, whole or broken."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from agentsched_bench.workload.importers.databases import is_database, tables_of
from agentsched_bench.workload.importers.loose import Json
from agentsched_bench.workload.trace import (
    DOCUMENT_BYTES_MAX,
    TraceError,
    decompress_errors,
    lines_of,
    open_packed,
)

_PROBE_LINES: Final = 20
_NONE: Final = object()
_BAD: Final = object()
_DECODER: Final = msgspec.json.Decoder()
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]|,|"', re.DOTALL)
_READER: Final = json.JSONDecoder()
#: What may stand between documents in a row: space, and RFC 7464's record separator.
_BETWEEN: Final = re.compile(r"[\s\x1e]*")

_ENDINGS: Final = (".gz", ".xz", ".bz2", ".zst", ".jsonl", ".ndjson", ".json", ".traj")
#: Names that each run's file has, in a folder of its own.
_USUAL: Final = frozenset({"", "trajectory", "traj", "messages", "history", "conversation"})

OnError = Callable[[TraceError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file to import. `is_named`: the user named it, rather than a folder above it."""

    path: Path
    is_named: bool = True

    @property
    def name(self) -> str:
        """What it is called without its endings; its folder, where it is called as all are."""
        name = self.path.name
        for ending in _ENDINGS:
            name = name.removesuffix(ending)
        return self.path.parent.name or name if name.lower() in _USUAL else name

    def open(self) -> IO[bytes]:
        """Its content, decompressed by what it begins with. Raises TraceError.

        Of what is damaged all is read that stands before the damage.
        """
        return _ToItsBreak(_Remembering(open_packed(self.path)), 1 << 16)


class _Remembering(io.RawIOBase):
    """A file that ends where it cannot be read on, and remembers why."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = cast("io.BufferedReader", file)
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.error is not None:
            return 0
        broken: tuple[type[Exception], ...] = (EOFError, ValueError, *decompress_errors())
        try:
            data = self._file.read1(len(buffer))
        except broken as error:
            self.error = error
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _ToItsBreak(io.BufferedReader):
    """Raises what is wrong with a file when all that stands before is read, and not with it.

    The library's own readers drop what they have of a line, or of a part, when the next byte fails.
    """

    raw: _Remembering

    def read(self, size: int | None = -1, /) -> bytes:
        return self._unless_broken(super().read(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._unless_broken(super().readline(size))

    def _unless_broken(self, data: bytes) -> bytes:
        if not data and self.raw.error is not None:
            raise self.raw.error
        return data


class Names:
    """Names for what is local to a file: a second file of the same name has another."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def of(self, name: str) -> str:
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}#{self._used[name]}"


def lines(
    file: InputFile, *, on_error: OnError | None = None, keeps_part: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, without blank ones and a byte order mark.

    A line that is too long is told to `on_error` and left out, if there is one. The line in which a
    file cannot be read on is that error's, and no line, unless `keeps_part`.

    Raises:
        TraceError: the file cannot be read on; or a line is too long, without `on_error`.
    """
    part: tuple[int, bytes] | None = None
    with file.open() as opened:
        try:
            for number, line in lines_of(opened, path=file.path, on_long=on_error):
                if keeps_part or line.endswith(b"\n"):
                    yield number, line
                else:
                    part = number, line
        except TraceError as error:
            if part is None:
                raise
            raise TraceError(error.message, path=file.path, line=part[0]) from error
    if part is not None:
        yield part


def objects(file: InputFile, *, on_error: OnError) -> Iterator[tuple[int, Json]]:
    """The JSON value of each line with its number. A bad line is reported and left out."""
    found = lines(file, on_error=on_error)
    while True:
        try:
            number, line = next(found)
        except StopIteration:
            return
        except TraceError as error:
            on_error(error)
            return
        try:
            value = decode(line, path=file.path, number=number)
        except TraceError as error:
            on_error(error)
            continue
        yield number, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One JSON value of a file. `line` None: it is the whole file. `is_cut`: it broke off.

    `place` counts it, from 1, among those of the list that it stood in.
    """

    value: Json
    line: int | None = None
    is_cut: bool = False
    place: int | None = None

    @property
    def mark(self) -> str:
        """What tells it from others of its file, behind the file's name; empty where it is all."""
        return "".join(f"/{n}" for n in (self.line, self.place) if n is not None)


def values(file: InputFile, *, on_error: OnError) -> Iterator[Value]:
    """What a file holds: a value a line, one over many lines, or several of those in a row.

    What cannot be read is reported; of a broken document what came before the break is kept.
    """
    if is_database(file.path):
        text = "a SQLite database, or what is left of one, and no JSON"
        on_error(TraceError(text, path=file.path))
        return
    if is_lines(file):
        for number, value in objects(file, on_error=on_error):
            yield Value(value=value, line=number)
        return
    data, problem = _read_all(file, on_error=on_error)
    if data is None:
        return
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        whole = decode(data, path=file.path)
    except TraceError as error:
        if problem is None and "Extra data" in error.message:
            yield from _in_a_row(data, path=file.path, on_error=on_error)
            return
        on_error(problem or error)
        kept = salvage(data)
        if kept is not None:
            yield Value(value=kept, is_cut=True)
        return
    yield Value(value=whole)


def documents(
    file: InputFile, *, on_error: OnError, is_one: Callable[[Json], bool] = lambda _: False
) -> Iterator[Value]:
    """What `values` gives, and of a list what it holds, unless the list itself `is_one`."""
    for found in values(file, on_error=on_error):
        if not isinstance(found.value, list) or is_one(found.value):
            yield found
            continue
        last = len(found.value)
        for place, value in enumerate(found.value, start=1):
            is_cut = found.is_cut and place == last
            yield Value(value=value, line=found.line, is_cut=is_cut, place=place)


def rows_of(file: InputFile, *, on_error: OnError) -> Iterator[tuple[int, Json]]:
    """Each of a file's rows with its number, also where they stand in one list."""
    for number, found in enumerate(documents(file, on_error=on_error), start=1):
        yield found.line or number, found.value


def _in_a_row(data: bytes, *, path: Path, on_error: OnError) -> Iterator[Value]:
    """Documents one after the other, as `jq` and OpenTelemetry's console exporter write them."""
    text = data.decode("utf-8", "replace")
    at, line = 0, 1
    while (begin := _BETWEEN.match(text, at)) and begin.end() < len(text):
        line += text.count("\n", at, begin.end())
        at = begin.end()
        try:
            value, end = _READER.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            rest = text[at:].encode()
            try:
                decode(rest, path=path, number=line)
            except TraceError as error:
                on_error(error)
            kept = salvage(rest)
            if kept is not None:
                yield Value(value=kept, line=line, is_cut=True)
            return
        yield Value(value=value, line=line)
        line += text.count("\n", at, end)
        at = end


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
    text = data.decode("utf-8", "replace").rstrip()
    if not text:
        raise TraceError("there is nothing in it", path=path, line=number)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise TraceError("JSON nested too deeply", path=path, line=number) from error
    except json.JSONDecodeError as error:
        where = f"column {error.colno}"
        # What ends inside of a string or before a closing bracket was cut off.
        is_cut = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        what = f"the JSON is cut short ({where})" if is_cut else f"not JSON: {error.msg} ({where})"
        raise TraceError(what, path=path, line=number + error.lineno - 1) from error


def _read_all(file: InputFile, *, on_error: OnError) -> tuple[bytes | None, TraceError | None]:
    broken: tuple[type[Exception], ...] = (EOFError, ValueError, *decompress_errors())
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
    except broken as error:
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
        elif token == b'"':
            break  # It broke inside of this string: brackets and commas in it are text.
    if safe is None:
        return None
    try:
        return json.loads((data[: safe[0]] + safe[1]).decode("utf-8", "replace"))
    except (json.JSONDecodeError, RecursionError):
        return None


def probe(file: InputFile) -> list[Any]:
    """The first values of a file, to tell its format by: of its lines, or the one that it is.

    Nothing is reported: whoever reads it for good will. Of a database its tables are told.
    """
    if is_database(file.path):
        return [{"tables": sorted(tables_of(file.path))}]
    found = [value for value in _first_values(file) if isinstance(value, dict | list)]
    if found:
        return found
    whole = next(values(file, on_error=lambda _: None), None)
    return [] if whole is None else [whole.value]


def is_lines(file: InputFile) -> bool:
    """Whether a file is JSON lines, rather than one document over one or many lines."""
    found = _first_values(file)
    first = next(found, _NONE)
    if first is _BAD:
        return any(isinstance(value, dict) for value in found)
    return first is not _NONE and next(found, _NONE) is not _NONE


def has_objects(file: InputFile) -> bool:
    """Whether a file's lines are objects, be it a single one that stands on one line."""
    found = _first_values(file)
    first = next(found, _NONE)
    return isinstance(first, dict) or (
        first is _BAD and any(isinstance(value, dict) for value in found)
    )


def _first_values(file: InputFile) -> Iterator[Any]:
    """What the first lines are by themselves, `_BAD` where that is no JSON.

    Nothing, where the first line only opens a document that goes on in the next ones.
    """
    try:
        for count, (number, line) in enumerate(
            lines(file, on_error=lambda _: None, keeps_part=True)
        ):
            if count >= _PROBE_LINES:
                return
            try:
                yield decode(line, path=file.path, number=number)
            except TraceError:
                if not count and line.rstrip().endswith((b"{", b"[", b",", b":")):
                    return
                yield _BAD
    except TraceError:
        return
