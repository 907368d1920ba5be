"""The trace format: one recording a line, as JSON, plain or compressed with gzip or xz.

The files call a line a *session*. Here a line is a `Recording`: the main conversation of one
program, or one of its sub-agents (then `parent` names the main recording). Field names are the
files' own.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Final, cast

import msgspec

from agentsched.model import AgentschedError

#: A longer line is refused: no recording comes near, and a corrupt file must not fill the memory.
LINE_BYTES_MAX: Final = 64 * 1024 * 1024

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class TraceError(AgentschedError):
    """A trace cannot be read; the text names the file and, where there is one, the line."""

    def __init__(self, message: str, *, path: Path | str, line: int | None = None) -> None:
        where = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{where}: {message}")
        self.path = str(path)
        self.line = line
        self.message = message


class RecordedTool(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call between two LLM calls. `duration_s` is None where it was not recorded."""

    name: str
    duration_s: Seconds | None = None
    result_tokens: Count | None = None


class RecordedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One LLM call and the pause after it.

    `new_input_tokens` is what came from outside the model since the step before: None on the first
    step and where the prompt was cut or reasoning was dropped. `cycle_s` is the time from this call
    to the next where calls and tools were not told apart.
    """

    step: Count
    input_tokens: Count
    output_tokens: Count
    t_s: Seconds | None = None
    new_input_tokens: Count | None = None
    prefix_tokens: Count | None = None
    llm_s: Seconds | None = None
    ttft_s: Seconds | None = None
    gap_s: Seconds | None = None
    gap_kind: str = "unknown"
    cycle_s: Seconds | None = None
    reasoning_tokens: Count = 0
    tools: tuple[RecordedTool, ...] = ()
    hash_ids: tuple[tuple[Count, Count], ...] | None = None


class Recording(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a trace. `synthetic` is true on what our own generator made."""

    session_id: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    source: str
    steps: tuple[RecordedStep, ...]
    workload: str | None = None
    agent: str | None = None
    model: str | None = None
    start_s: Seconds | None = None
    token_source: dict[str, str | None] = {}
    parent: str | None = None
    parent_t_s: Seconds | None = None
    block_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tool_tokens: Count | None = None
    system_tokens: Count | None = None
    dataset: str | None = None
    group: str | None = None
    synthetic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedProgram:
    """One agent run: its main recording and those of its sub-agents, in file order."""

    main: Recording
    children: tuple[Recording, ...] = ()

    @property
    def calls(self) -> int:
        return sum(len(r.steps) for r in (self.main, *self.children))


_DECODER: Final = msgspec.json.Decoder(Recording)


def open_trace(path: Path) -> IO[bytes]:
    """Open for reading, decompressing by the file's name. Raises TraceError if it cannot."""
    try:
        match path.suffix:
            case ".gz":
                return cast("IO[bytes]", gzip.open(path, "rb"))
            case ".xz":
                return lzma.open(path, "rb")
            case _:
                return path.open("rb")
    except OSError as error:
        raise TraceError(error.strerror or str(error), path=path) from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, counted from 1; blank lines are left out.

    Raises:
        TraceError: the file cannot be opened, is truncated or corrupt, or has too long a line.
    """
    number = 0
    with open_trace(path) as file:
        while True:
            number += 1
            try:
                line = file.readline(LINE_BYTES_MAX + 1)
            except EOFError as error:
                message = "the compressed file is cut short"
                raise TraceError(message, path=path, line=number) from error
            except (OSError, lzma.LZMAError, zlib.error) as error:
                message = f"cannot decompress: {error}"
                raise TraceError(message, path=path, line=number) from error
            if not line:
                return
            if len(line) > LINE_BYTES_MAX:
                raise TraceError("the line is longer than 64 MiB", path=path, line=number)
            if line.strip():
                yield number, line


def decode_recording(line: bytes, *, path: Path | str, number: int) -> Recording:
    """One line as a recording. Raises TraceError with file and line number."""
    try:
        recording = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceError(str(error), path=path, line=number) from error
    if not recording.steps:
        raise TraceError("no steps - at `$.steps`", path=path, line=number)
    return recording


def read_trace(
    path: Path, *, on_error: Callable[[TraceError], None] | None = None
) -> Iterator[Recording]:
    """The recordings of a file, one at a time: memory is bounded by the longest line.

    With `on_error`, a bad line is reported there and the rest is kept; a file that breaks off is
    reported too, and what came before it has been yielded. Without it the first error is raised.

    Raises:
        TraceError: the file cannot be opened, or (without `on_error`) a line is bad.
    """
    lines = read_lines(path)
    while True:
        try:
            number, line = next(lines)
            recording = decode_recording(line, path=path, number=number)
        except StopIteration:
            return
        except TraceError as error:
            if on_error is None or error.line is None:
                raise
            on_error(error)
            continue
        yield recording


def group_programs(recordings: Iterable[Recording]) -> list[RecordedProgram]:
    """Join sub-agents to their programs, in the order of the main recordings.

    A sub-agent of a sub-agent belongs to the same program; one whose parent is not in the file is
    a program of its own.
    """
    rows = list(recordings)
    by_id = {row.session_id: row for row in rows}
    children: dict[str, list[Recording]] = {}
    mains: list[Recording] = []
    for row in rows:
        root = _root_of(row, by_id)
        if root is row:
            mains.append(row)
        else:
            children.setdefault(root.session_id, []).append(row)
    return [
        RecordedProgram(main=main, children=tuple(children.get(main.session_id, ())))
        for main in mains
    ]


def _root_of(row: Recording, by_id: dict[str, Recording]) -> Recording:
    seen = {row.session_id}
    while row.parent is not None and row.parent in by_id and row.parent not in seen:
        seen.add(row.parent)
        row = by_id[row.parent]
    return row


def encode_recording(recording: Recording) -> bytes:
    """One line of a trace, with its newline."""
    return msgspec.json.encode(recording) + b"\n"


def write_trace(recordings: Iterable[Recording], path: Path) -> int:
    """Write a trace, compressed by the file's name; returns the number of lines.

    Equal recordings give equal bytes: no time or name goes into the gzip header.
    """
    data = b"".join(encode_recording(recording) for recording in recordings)
    match path.suffix:
        case ".gz":
            packed = gzip.compress(data, compresslevel=9, mtime=0)
        case ".xz":
            packed = lzma.compress(data)
        case _:
            packed = data
    path.write_bytes(packed)
    return data.count(b"\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of the file as it lies on disk, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
