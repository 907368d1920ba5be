"""Recordings from other people's formats: who reads what, and the import of many files."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from agentsched.model import ConfigError
from agentsched_bench.workload.importers.agentic_mooncake import AgenticMooncake
from agentsched_bench.workload.importers.base import Importer, ImportOptions
from agentsched_bench.workload.importers.claude_code import ClaudeCode
from agentsched_bench.workload.importers.codex import Codex
from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.files import InputFile, OnError, has_objects, probe, values
from agentsched_bench.workload.importers.journal import Journal
from agentsched_bench.workload.importers.kv_cache_tester import KvCacheTester
from agentsched_bench.workload.importers.mini_swe_agent import MiniSweAgent
from agentsched_bench.workload.importers.mooncake import Mooncake
from agentsched_bench.workload.importers.native import Native, without_text
from agentsched_bench.workload.importers.opencode import OpenCode
from agentsched_bench.workload.importers.openhands import OpenHands
from agentsched_bench.workload.importers.otel import Otel
from agentsched_bench.workload.importers.qwen_code import QwenCode
from agentsched_bench.workload.importers.swe_agent import SweAgent
from agentsched_bench.workload.trace import (
    LINE_BYTES_MAX,
    RecordedTool,
    Recording,
    TraceError,
    TraceHeader,
    TraceWriter,
    can_be_read,
    decode_recording,
    encode_recording,
    read_lines,
)

__all__ = [
    "AUTO",
    "IMPORTERS",
    "ImportOptions",
    "ImportReport",
    "Importer",
    "as_trace",
    "import_trace",
]

AUTO: Final = "auto"
#: In the order in which they are asked whether a file is theirs: the most particular first.
IMPORTERS: Final[tuple[Importer, ...]] = (
    Native(),
    Journal(),
    Otel(),
    SweAgent(),
    MiniSweAgent(),
    OpenHands(),
    KvCacheTester(),
    AgenticMooncake(),
    Mooncake(),
    Codex(),
    QwenCode(),
    OpenCode(),
    ClaudeCode(),
)
#: In a folder these are looked at; a file that is named is looked at whatever it is called.
_SUFFIXES: Final = (".traj", ".json", ".jsonl", ".ndjson", ".db")
_PACKED: Final = (".gz", ".xz", ".bz2", ".zst")
_ERRORS_KEPT: Final = 1000
#: Instants from here on (2001) count from 1970; smaller ones from the source's own beginning.
_CALENDAR_S: Final = 1e9
_KEEPS: Final = "agentsched trace import auto FILES -o OUT keeps the rest, which can be read"


class TextLeftOut(TraceError):
    """A recording was kept without its texts."""


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """What came of an import. `errors` holds the first ones; `errors_count` is complete."""

    recordings: int = 0
    programs: int = 0
    calls: int = 0
    files: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    errors_count: int = 0
    errors: list[TraceError] = field(default_factory=list)

    def note(self, error: TraceError) -> None:
        self.errors_count += 1
        if len(self.errors) < _ERRORS_KEPT:
            self.errors.append(error)


def importer(name: str) -> Importer:
    """The importer called `name`. Raises ConfigError with the names there are."""
    for known in IMPORTERS:
        if known.name == name.lower().replace("_", "-"):
            return known
    names = ", ".join([AUTO, *(known.name for known in IMPORTERS)])
    raise ConfigError(f"no format {name!r} (there are: {names})")


def detect(file: InputFile) -> Importer | None:
    """Whose format a file has, by its content; None if nobody's."""
    head = probe(file)
    if not head:
        return None
    return next((known for known in IMPORTERS if known.claims(head)), None)


def input_files(paths: Iterable[Path], *, out: Path | None = None) -> list[InputFile]:
    """The files that are named, and those below named folders that may be traces, sorted.

    `out` is where the trace goes: what an earlier import left there is no recording of a folder.

    Raises:
        ConfigError: a path does not exist, or nothing is left.
    """
    found: list[InputFile] = []
    written = out.resolve() if out is not None else None
    for path in paths:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.is_file() and _may_be_trace(p))
            below = [p for p in below if p.resolve() != written]
            found.extend(InputFile(path=p, is_named=False) for p in below)
        elif path.exists():
            found.append(InputFile(path=path))
        else:
            raise ConfigError(f"{path}: no such file or folder")
    if not found:
        raise ConfigError("nothing to import: no .traj, .json, .jsonl, .ndjson or .db file in it")
    return found


def _may_be_trace(path: Path) -> bool:
    name = path.name.lower()
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    return name.endswith(_SUFFIXES) and not name.endswith(".meta.json")


def read_all(
    files: Sequence[InputFile], *, format_name: str, options: ImportOptions, report: ImportReport
) -> Iterator[Imported]:
    """The recordings of all files, format by format where each is to be detected."""
    if format_name != AUTO:
        chosen = importer(format_name)
        report.files[chosen.name] += len(files)
        yield from _read(chosen, files, options, report)
        return
    groups: dict[str, list[InputFile]] = {}
    for file in files:
        known = detect(file)
        if known is not None:
            groups.setdefault(known.name, []).append(file)
        elif file.is_named:
            text = _unknown(file)
            report.note(TraceError(text, path=file.path))
        else:
            report.skipped += 1
    for known in IMPORTERS:
        if known.name in groups:
            report.files[known.name] += len(groups[known.name])
            yield from _read(known, groups[known.name], options, report)


def _unknown(file: InputFile) -> str:
    errors: list[TraceError] = []
    next(values(file, on_error=errors.append), None)
    names = ", ".join(known.name for known in IMPORTERS)
    why = f"; {errors[0].message}" if errors else ""
    return f"of no format that is known ({names}){why}"


def _read(
    chosen: Importer, files: Sequence[InputFile], options: ImportOptions, report: ImportReport
) -> Iterator[Imported]:
    try:
        for imported in chosen.read(files, options, on_error=report.note):
            is_calendar = imported.epoch_s is not None and imported.epoch_s >= _CALENDAR_S
            yield replace(imported, clock="calendar" if is_calendar else chosen.name)
    except TraceError as error:
        report.note(error)


def import_trace(
    paths: Iterable[Path],
    out: Path,
    *,
    format_name: str = AUTO,
    options: ImportOptions | None = None,
    on_error: OnError | None = None,
) -> ImportReport:
    """Import files to a trace; memory holds one session (of OTel and agentic Mooncake: one input).

    What cannot be read is in the report (and told to `on_error` as it is found); the rest is kept.
    Nothing is written when nothing could be read. Starts count from the earliest session: where a
    source does not say when it began, from the earliest of its format.

    Raises:
        ConfigError: an unknown format, or nothing to import.
        TraceError: the trace cannot be written.
    """
    options = ImportOptions() if options is None else options
    report = _Telling(on_error) if on_error is not None else ImportReport()
    paths = list(paths)
    files = input_files(paths, out=out)
    where = paths[0] if len(paths) == 1 else out
    starts = _Starts()
    sources: dict[str, dict[str, str | None]] = {}
    with tempfile.TemporaryDirectory(prefix="agentsched-import-") as folder:
        spool = Path(folder) / "recordings.jsonl"
        with spool.open("wb") as spooled:
            for recording, imported in _named_once(
                read_all(files, format_name=format_name, options=options, report=report)
            ):
                # The true instant; made relative below, when the earliest is known.
                start_s = _positive(imported.epoch_s)
                timed = msgspec.structs.replace(recording, start_s=start_s)
                line = _line(timed, where=where, report=report)
                if line is None:
                    continue
                spooled.write(line)
                starts.add(imported)
                report.recordings += 1
                report.programs += recording.parent is None
                report.calls += len(recording.steps)
                if len(sources) < 100:
                    sources.setdefault(recording.source, dict(recording.token_source))
        if report.recordings:
            _write(spool, out, header=_header(report, options, sources), starts=starts)
    return report


class _Starts:
    """When recordings began, by their clocks: each counts from the earliest of its own."""

    def __init__(self) -> None:
        self._clocks: list[str] = []
        self._earliest: dict[str, float] = {}

    def add(self, imported: Imported) -> None:
        """The next recording."""
        clock, at = imported.clock, imported.epoch_s
        self._clocks.append(clock)
        if at is not None:
            self._earliest[clock] = min(at, self._earliest.get(clock, at))

    def zero_s(self, index: int) -> float:
        """What the clock of recording `index` said when the first of that clock began."""
        return max(0.0, self._earliest.get(self._clocks[index], 0.0))


def _line(recording: Recording, *, where: Path, report: ImportReport) -> bytes | None:
    """A recording's line; without its texts, or none at all, where nobody could read it back."""
    line = encode_recording(recording)
    if can_be_read(line):
        return line
    bare = encode_recording(without_text(recording))
    is_kept = can_be_read(bare) and bool(recording.messages)
    what = "its texts are left out" if is_kept else "left out"
    limit = f"more than {LINE_BYTES_MAX >> 20} MiB"
    error = TextLeftOut if is_kept else TraceError
    report.note(error(f"{recording.session_id}: {what}: {limit}", path=where))
    return bare if is_kept else None


def _positive(epoch_s: float | None) -> float | None:
    return None if epoch_s is None else max(0.0, epoch_s)


def _write(spool: Path, out: Path, *, header: TraceHeader, starts: _Starts) -> None:
    """Replace `out` as a whole; a pipe or a terminal is written to. Raises TraceError."""
    target = Path(os.path.realpath(out))
    is_stream = target.exists() and not target.is_file()
    draft = out if is_stream else target.with_name(f".{os.getpid()}.{target.name}")
    try:
        with TraceWriter(draft, header=header) as writer:
            for index, (number, line) in enumerate(read_lines(spool)):
                recording = decode_recording(line, path=spool, number=number)
                if recording.start_s is not None:
                    start_s = round(max(0.0, recording.start_s - starts.zero_s(index)), 6)
                    recording = msgspec.structs.replace(recording, start_s=start_s)
                writer.write(recording)
        if draft is not out:
            draft.replace(target)
    except TraceError as error:
        raise TraceError(error.message, path=out) from error
    except OSError as error:
        raise TraceError(error.strerror or str(error), path=out) from error
    finally:
        if draft is not out:
            draft.unlink(missing_ok=True)


def _header(
    report: ImportReport, options: ImportOptions, sources: dict[str, dict[str, str | None]]
) -> TraceHeader:
    imported = {
        "formats": dict(report.files),
        "keeps_text": options.keeps_text,
        "left_out": report.errors_count,
        "token_sources": sources,
    }
    return TraceHeader(made_by="agentsched trace import", imported=imported)


def _named_once(found: Iterable[Imported]) -> Iterator[tuple[Recording, Imported]]:
    """Recordings with names that occur once: a second of the same name gets a number.

    Its sub-agents, which come after it, go with it: what they call their parent is the last of
    that name, and the tool calls that started them name the next of theirs.
    """
    used: Counter[str] = Counter()
    last: dict[str, str] = {}

    def named(name: str, count: int) -> str:
        return name if count == 1 else f"{name[:980]}#{count}"

    def with_child(tool: RecordedTool) -> RecordedTool:
        child = named(tool.child or "", used[tool.child or ""] + 1)
        return tool if tool.child is None else msgspec.structs.replace(tool, child=child)

    for imported in found:
        recording = imported.recording
        own = recording.session_id or "session"
        used[own] += 1
        name = named(own, used[own])
        if name != own:
            used[name] += 1
            last[own] = name
        parent = recording.parent
        if name != recording.session_id or parent in last:
            steps = tuple(
                msgspec.structs.replace(step, tools=tuple(map(with_child, step.tools)))
                for step in recording.steps
            )
            recording = msgspec.structs.replace(
                recording,
                session_id=name,
                parent=None if parent is None else last.get(parent, parent),
                steps=steps,
            )
        yield recording, imported


@contextmanager
def as_trace(path: Path, *, on_error: OnError | None = None) -> Iterator[Path]:
    """A trace of our own format for `path`: itself, or what the import makes of it, for a while.

    Folders and files of other formats are imported with their texts. What is of no known format is
    passed on as it is: whoever reads it says what is wrong. Without `on_error` the first thing that
    cannot be read is raised (TraceError); texts that are too long for a line are none.
    """
    if not path.is_dir():
        file = InputFile(path=path)
        known = detect(file) if path.exists() else None
        if known is None or (known.name == Native().name and has_objects(file)):
            yield path
            return
    with tempfile.TemporaryDirectory(prefix="agentsched-trace-") as folder:
        out = Path(folder) / "imported.jsonl"
        report = import_trace(
            [path], out, options=ImportOptions(keeps_text=True), on_error=on_error
        )
        wrong = [error for error in report.errors if not isinstance(error, TextLeftOut)]
        if wrong and on_error is None:
            first = wrong[0]
            text = f"{first.message} ({_KEEPS})" if report.recordings else first.message
            raise TraceError(text, path=first.path, line=first.line) from first
        if not report.recordings:
            raise ConfigError(f"{path}: nothing in it could be read as a trace")
        yield out


class _Telling(ImportReport):
    """A report that tells each error at once."""

    def __init__(self, on_error: OnError) -> None:
        super().__init__()
        self._tell = on_error

    def note(self, error: TraceError) -> None:
        super().note(error)
        self._tell(error)
