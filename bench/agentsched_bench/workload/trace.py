"""The trace format: one recording a line, as JSON, plain or compressed with gzip or xz.

The files call a line a *session*. Here a line is a `Recording`: the main conversation of one
program, or one of its sub-agents (then `parent` names the main recording). Field names are the
files' own. A first line may be a `TraceHeader` that says how the file came about.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Final, cast

import msgspec

from agentsched.model import AgentschedError

#: A longer line is refused: no recording comes near, and a corrupt file must not fill the memory.
LINE_BYTES_MAX: Final = 64 * 1024 * 1024
#: Raised when a line of this version means something else than one of the version before.
TRACE_VERSION: Final = 1
#: What is read whole is no larger: more is refused rather than fill the memory.
DOCUMENT_BYTES_MAX: Final = 1 << 30
#: What commands say of the trace that they take.
TRACE_HELP: Final = (
    "A trace (.jsonl, .jsonl.gz or .jsonl.xz); or a folder or a file of another format, which is "
    "imported (`agentsched trace import --help`)."
)
#: A start takes no more than so many characters.
_START_DIGITS: Final = 32
#: How packed files begin, and the endings of their names.
_MAGIC: Final = (
    (b"\x1f\x8b", ".gz"),
    (b"\xfd7zXZ\x00", ".xz"),
    (b"BZh", ".bz2"),
    (b"\x28\xb5\x2f\xfd", ".zst"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEADER_BEGINS: Final = b'{"agentsched_trace":'

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


class RecordedTool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tool call between two LLM calls. `duration_s` is None where it was not recorded.

    Several in one step were asked for at once. `command` is the first word of a shell command, or
    the sub-command of a tool that has some. `child` is the `session_id` of the sub-agent that the
    call started.
    """

    name: str
    duration_s: Seconds | None = None
    result_tokens: Count | None = None
    command: str | None = None
    call_id: str | None = None
    is_error: bool = False
    child: str | None = None


class RecordedToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call as an answer words it; `arguments` is JSON in a string, as it was sent."""

    id: str
    name: str
    arguments: str = ""


class RecordedMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message. `text` None: it was not recorded, and something `tokens` long stands for it.

    `tokens` is recorded or estimated, as `token_source` says; `call_id` is the tool call whose
    result this is.
    """

    role: str
    text: str | None = None
    tokens: Count | None = None
    tool_calls: tuple[RecordedToolCall, ...] = ()
    call_id: str | None = None


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool that was offered to the model; `parameters` is its JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class RecordedStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One LLM call and the pause after it.

    `new_input_tokens` is what came from outside the model since the step before: None on the first
    step and where the prompt was cut or reasoning was dropped. `cycle_s` is the time from this call
    to the next where calls and tools were not told apart. `reasoning_tokens` are among
    `output_tokens` and come back in no later prompt. `prompt` are runs `[first, last]` of the
    recording's messages, and `answer` is one of them. `is_compaction` marks the first step whose
    prompt was rewritten to make it shorter.
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
    prompt: tuple[tuple[Count, Count], ...] | None = None
    answer: Count | None = None
    is_compaction: bool = False
    model: str | None = None


class RecordedLoad(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a composed workload wants a recording replayed; it goes before a command's options.

    `start_s` of such a recording is in seconds of the replay. Without one it belongs to a closed
    loop, called `pool`. `has_ids` false: its calls do not say whose they are.
    """

    traffic: str = "agent"
    has_ids: bool = True
    pool: str | None = None
    scale_tokens: float = 1.0
    scale_time: float = 1.0
    gap_cap_s: Seconds | None = None


class Recording(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a trace. `synthetic` is true on what our own generator made.

    `parent_step` is the parent's step after which a sub-agent starts and `join_step` the parent's
    step that waits for it, where the source says so; else times decide. Hash ids are equal only
    within `hash_scope` (None: within the source). `is_cut`: the source broke off in the middle.
    `load` is there on what a composed workload asks for.
    """

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
    parent_step: Count | None = None
    join_step: Count | None = None
    block_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    hash_scope: str | None = None
    tool_tokens: Count | None = None
    system_tokens: Count | None = None
    dataset: str | None = None
    group: str | None = None
    exit_status: str | None = None
    synthetic: bool = False
    is_cut: bool = False
    tenant: str | None = None
    load: RecordedLoad | None = None
    messages: tuple[RecordedMessage, ...] = ()
    tool_definitions: tuple[ToolDefinition, ...] = ()


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True):
    """How a trace came about: the import, or the whole specification of a composed workload."""

    agentsched_trace: int = TRACE_VERSION
    made_by: str = ""
    imported: dict[str, Any] | None = None
    workload: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedProgram:
    """One agent run: its main recording and those of its sub-agents, in file order."""

    main: Recording
    children: tuple[Recording, ...] = ()

    @property
    def calls(self) -> int:
        return sum(len(r.steps) for r in (self.main, *self.children))


_DECODER: Final = msgspec.json.Decoder(Recording)
_HEADERS: Final = msgspec.json.Decoder(TraceHeader)
_HEADER_ENCODER: Final = msgspec.json.Encoder()


def open_trace(path: Path) -> IO[bytes]:
    """Open for reading, decompressing by what it begins with; by its name where that says nothing.

    Raises:
        TraceError: it cannot be opened.
    """
    return open_packed(path, default=path.suffix)


def open_packed(path: Path, *, default: str = "") -> IO[bytes]:
    """Open for reading: decompressed by what it begins with, and UTF-16 as UTF-8.

    `default` is the ending of the packing that is taken where nothing tells it. Raises TraceError.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(6)
        match next((kind for begin, kind in _MAGIC if head.startswith(begin)), default):
            case ".gz":
                return cast("IO[bytes]", gzip.open(path, "rb"))
            case ".xz":
                return lzma.open(path, "rb")
            case ".bz2":
                return bz2.open(path, "rb")
            case ".zst":
                return open_zstd(path)
            case "utf-16":
                return _recoded(path)
            case _:
                return path.open("rb")
    except OSError as error:
        raise TraceError(error.strerror or str(error), path=path) from error


def _recoded(path: Path) -> IO[bytes]:
    """A file in UTF-16, as Windows' shells write what is sent to one, in UTF-8."""
    if path.stat().st_size > DOCUMENT_BYTES_MAX:
        raise TraceError("a file in UTF-16 of more than 1 GiB: write it as UTF-8", path=path)
    return io.BytesIO(path.read_bytes().decode("utf-16", "replace").encode("utf-8", "replace"))


def open_zstd(path: Path) -> IO[bytes]:
    """A Zstandard file, decompressed as it is read. Raises TraceError without the package."""
    try:
        import zstandard
    except ImportError as error:
        text = "Zstandard needs the package zstandard (pip install 'agentsched[zstd]')"
        raise TraceError(text, path=path) from error
    return cast("IO[bytes]", io.BufferedReader(zstandard.open(path, "rb"), 1 << 20))


def decompress_errors() -> tuple[type[Exception], ...]:
    try:
        import zstandard
    except ImportError:
        return (OSError, lzma.LZMAError, zlib.error)
    return (OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)


def read_lines(
    path: Path, *, on_long: Callable[[TraceError], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, counted from 1; blank lines are left out.

    A line that is too long is told to `on_long` and left out, if there is one.

    Raises:
        TraceError: the file cannot be opened, is truncated or corrupt, or (without `on_long`) has
            too long a line.
    """
    with open_trace(path) as file:
        yield from lines_of(file, path=path, on_long=on_long)


def lines_of(
    file: IO[bytes], *, path: Path, on_long: Callable[[TraceError], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Each line of an open file with its number, without blank ones and a byte order mark.

    One too long is the end, or told to `on_long`.
    """
    number = 0
    is_rest = False
    broken = decompress_errors()
    while True:
        number += not is_rest
        try:
            line = file.readline(LINE_BYTES_MAX + 1)
        except EOFError as error:
            message = "the compressed file is cut short"
            raise TraceError(message, path=path, line=number) from error
        except broken as error:
            message = f"cannot decompress: {error}"
            raise TraceError(message, path=path, line=number) from error
        if not line:
            return
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 and not is_rest else line
        if is_rest or len(line) > LINE_BYTES_MAX:
            if not is_rest:
                text = f"the line is longer than {LINE_BYTES_MAX >> 20} MiB"
                if on_long is None:
                    raise TraceError(text, path=path, line=number)
                on_long(TraceError(text, path=path, line=number))
            is_rest = not line.endswith(b"\n")
        elif line.strip():
            yield number, line


def is_header(line: bytes, *, number: int) -> bool:
    """Whether the first line of a trace is its header, not a recording."""
    return number == 1 and line.startswith(_HEADER_BEGINS)


def header_of(line: bytes, *, path: Path | str) -> TraceHeader:
    """The header in a trace's first line.

    Raises:
        TraceError: it is none (and names the line, what follows may be read), or it is that of
            another version (and names none, for nothing of it can be read).
    """
    try:
        header = _HEADERS.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceError(str(error), path=path, line=1) from error
    if header.agentsched_trace != TRACE_VERSION:
        text = f"trace version {header.agentsched_trace}; this reads {TRACE_VERSION}"
        raise TraceError(text, path=path)
    return header


def decode_recording(line: bytes, *, path: Path | str, number: int) -> Recording:
    """One line as a recording; nulls count as left out, 3.0 as 3. Raises TraceError."""
    try:
        recording = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        try:
            recording = _as_meant(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TraceError(str(error), path=path, line=number) from error
    if not recording.steps:
        raise TraceError("no steps - at `$.steps`", path=path, line=number)
    return recording


def _as_meant(line: bytes) -> Recording:
    """The recording that a line means whose writer knew no types. Raises what msgspec does."""

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: told(part) for key, part in value.items() if part is not None}
        if isinstance(value, list):
            return [told(part) for part in value]
        is_whole = isinstance(value, float) and value.is_integer()
        return int(value) if is_whole else value

    return _DECODER.decode(msgspec.json.encode(told(msgspec.json.decode(line))))


def read_trace(
    path: Path,
    *,
    on_error: Callable[[TraceError], None] | None = None,
    on_header: Callable[[TraceHeader], None] | None = None,
) -> Iterator[Recording]:
    """The recordings of a file, one at a time: memory is bounded by the longest line.

    A folder, or a file of another tool's format, is imported on the way. `on_header` is
    told the header, where there is one, before the first recording.

    With `on_error`, a bad line is reported there and the rest is kept; a file that breaks off is
    reported too, and what came before it has been yielded. Without it the first error is raised.

    Raises:
        TraceError: the file cannot be opened, or (without `on_error`) a line is bad.
    """
    # The importers stand on this module.
    from agentsched_bench.workload.importers import as_trace

    with as_trace(path, on_error=on_error) as own:
        for _, recording in read_numbered(own, on_error=on_error, on_header=on_header):
            yield recording


def read_numbered(
    path: Path,
    *,
    on_error: Callable[[TraceError], None] | None = None,
    on_header: Callable[[TraceHeader], None] | None = None,
) -> Iterator[tuple[int, Recording]]:
    """Read a file in this format only; recordings with the numbers of their lines.

    With `on_error` a bad line is told and passed over.

    Raises:
        TraceError: the file cannot be opened, or (without `on_error`) a line is bad.
    """
    lines = read_lines(path, on_long=on_error)
    while True:
        try:
            number, line = next(lines)
            if is_header(line, number=number):
                header = header_of(line, path=path)
                if on_header is not None:
                    on_header(header)
                continue
            recording = decode_recording(line, path=path, number=number)
        except StopIteration:
            return
        except TraceError as error:
            if on_error is None or error.line is None:
                raise
            on_error(error)
            continue
        yield number, recording


def group_programs(recordings: Iterable[Recording]) -> list[RecordedProgram]:
    """Join sub-agents to their programs, in the order of the main recordings.

    A sub-agent of a sub-agent belongs to the same program; one whose parent is not in the file is
    a program of its own. Of recordings that name each other the first is the main one, and of two
    with one name the last has the sub-agents.
    """
    rows = list(recordings)
    by_id = {row.session_id: row for row in rows}
    order = {name: place for place, name in enumerate(by_id)}
    children: dict[int, list[Recording]] = {}
    mains: list[Recording] = []
    for row in rows:
        root = _root_of(row, by_id, order)
        if root is row:
            mains.append(row)
        else:
            children.setdefault(id(root), []).append(row)
    return [
        RecordedProgram(main=main, children=tuple(children.get(id(main), ()))) for main in mains
    ]


def _root_of(row: Recording, by_id: Mapping[str, Recording], order: Mapping[str, int]) -> Recording:
    above = {row.session_id: row}
    while row.parent is not None and row.parent in by_id:
        if row.parent in above:
            names = list(above)
            ring = names[names.index(row.parent) :]
            return above[min(ring, key=order.__getitem__)]
        row = by_id[row.parent]
        above[row.session_id] = row
    return row


def encode_recording(recording: Recording) -> bytes:
    """One line of a trace, with its newline."""
    return msgspec.json.encode(recording) + b"\n"


def can_be_read(line: bytes) -> bool:
    """Whether a recording's line is short enough, also with a start that takes more digits."""
    return len(line) + _START_DIGITS <= LINE_BYTES_MAX


class TraceWriter:
    """Writes a trace a line at a time, compressed by the file's name.

    Equal recordings give equal bytes: no time or name goes into the gzip header.
    """

    def __init__(self, path: Path, *, header: TraceHeader | None = None) -> None:
        """Make the file anew. Raises TraceError when it cannot be written."""
        try:
            self._raw = path.open("wb")
        except OSError as error:
            raise TraceError(error.strerror or str(error), path=path) from error
        self._file: IO[bytes] = _compressing(self._raw, suffix=path.suffix, path=path)
        #: Recordings written so far.
        self.count = 0
        if header is not None:
            self._file.write(_HEADER_ENCODER.encode(header) + b"\n")

    def write(self, recording: Recording) -> None:
        self._file.write(encode_recording(recording))
        self.count += 1

    def write_line(self, line: bytes) -> None:
        """Write a line as it is; it is not counted as a recording."""
        self._file.write(line)

    def close(self) -> None:
        if self._file is not self._raw:
            self._file.close()
        self._raw.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _compressing(raw: IO[bytes], *, suffix: str, path: Path) -> IO[bytes]:
    match suffix:
        case ".gz":
            packed = gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0)
            return cast("IO[bytes]", packed)
        case ".xz":
            return lzma.open(raw, "wb")
        case ".zst":
            try:
                import zstandard
            except ImportError as error:
                text = "Zstandard needs the package zstandard (pip install 'agentsched[zstd]')"
                raise TraceError(text, path=path) from error
            writer = zstandard.ZstdCompressor(level=10).stream_writer(raw, closefd=False)
            return cast("IO[bytes]", writer)
        case _:
            return raw


def write_trace(
    recordings: Iterable[Recording], path: Path, *, header: TraceHeader | None = None
) -> int:
    """Write a trace, compressed by the file's name; returns the number of recordings."""
    with TraceWriter(path, header=header) as writer:
        for recording in recordings:
            writer.write(recording)
    return writer.count


def write_lines(lines: Iterable[bytes], path: Path) -> int:
    """Write lines of any format, compressed by the file's name; returns how many."""
    count = 0
    with TraceWriter(path) as writer:
        for line in lines:
            writer.write_line(line)
            count += 1
    return count


def sha256_of(path: Path) -> str:
    """The SHA-256 of the file as it lies on disk, in hexadecimal; of a folder, of all in it."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            whole.update(f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n".encode())
        return whole.hexdigest()
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
