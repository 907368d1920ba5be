"""Checks on a trace beyond its types: order, counts that must add up, parents that must exist."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentsched_bench.workload.importers import ImportOptions, detect
from agentsched_bench.workload.importers.files import InputFile, has_objects
from agentsched_bench.workload.importers.native import Native
from agentsched_bench.workload.trace import (
    Recording,
    TraceError,
    read_numbered,
)

FINDINGS_MAX: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong with a trace. `is_error` says that a reader refuses the line."""

    path: str
    line: int | None
    message: str
    is_error: bool

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{where}: {'error' if self.is_error else 'warning'}: {self.message}"


@dataclass(slots=True, kw_only=True)
class Validation:
    """What a check of one file found. `findings` keeps the first ones; the counts are complete."""

    recordings: int = 0
    calls: int = 0
    errors: int = 0
    warnings: int = 0
    findings: list[Finding] = field(default_factory=list)

    def note(self, finding: Finding) -> None:
        if finding.is_error:
            self.errors += 1
        else:
            self.warnings += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


def validate_trace(path: Path) -> Validation:
    """Read the whole file and report everything found.

    A file of another format that we can import has one error, which says so.

    Raises:
        TraceError: it cannot be opened.
    """
    result = Validation()
    lines_by_id: dict[str, int] = {}
    parents: list[tuple[int, str]] = []
    for number, recording in _read(path, result):
        result.recordings += 1
        result.calls += len(recording.steps)
        messages = list(check_recording(recording))
        if recording.session_id in lines_by_id:
            first = lines_by_id[recording.session_id]
            messages.append(f"session_id {recording.session_id!r} was on line {first} already")
        lines_by_id.setdefault(recording.session_id, number)
        if recording.parent is not None:
            parents.append((number, recording.parent))
        for message in messages:
            result.note(Finding(path=str(path), line=number, message=message, is_error=False))
    for number, parent in parents:
        if parent not in lines_by_id:
            text = f"parent {parent!r} is not in the file"
            result.note(Finding(path=str(path), line=number, message=text, is_error=False))
    if result.errors and not result.recordings:
        return _foreign(path) or result
    return result


def _foreign(path: Path) -> Validation | None:
    """What there is to say about a file of another known format; None for any other file."""
    known = detect(InputFile(path=path))
    if known is None or known.name == Native().name:
        return None
    out = path.name.partition(".")[0] or "trace"
    command = f"agentsched trace import {known.name} {shlex.quote(str(path))}"
    command += f" --out {shlex.quote(f'{out}.trace.jsonl.gz')}"
    text = f"not a trace yet; it looks like {known.name} ({known.title}). Import it: {command}"
    result = Validation()
    result.note(Finding(path=str(path), line=None, message=text, is_error=True))
    return result


def _read(path: Path, result: Validation) -> Iterator[tuple[int, Recording]]:
    def note(error: TraceError) -> None:
        result.note(Finding(path=str(path), line=error.line, message=error.message, is_error=True))

    file = InputFile(path=path)
    known = detect(file)
    if known is None or known.name != Native().name or has_objects(file):
        yield from read_numbered(path, on_error=note)
        return
    # Indented, or in one list: recordings are counted instead of lines.
    found = known.read([file], ImportOptions(keeps_text=True), on_error=note)
    for number, imported in enumerate(found, 1):
        yield number, imported.recording


def check_recording(recording: Recording) -> list[str]:
    """What is odd about one recording; empty when all adds up."""
    found: list[str] = []
    clock = 0.0
    for index, step in enumerate(recording.steps):
        at = f"steps[{index}]"
        if step.step != index:
            found.append(f"{at}.step is {step.step}, not {index}")
        if step.t_s is not None:
            if step.t_s < clock:
                found.append(f"{at}.t_s goes back from {clock} to {step.t_s}")
            clock = max(clock, step.t_s)
        if step.prefix_tokens is not None and step.prefix_tokens > step.input_tokens:
            found.append(f"{at}.prefix_tokens is more than its input_tokens")
        if index and step.new_input_tokens is not None:
            before = recording.steps[index - 1]
            expected = before.input_tokens + before.output_tokens + step.new_input_tokens
            if expected != step.input_tokens:
                found.append(f"{at}.input_tokens is {step.input_tokens}, its parts give {expected}")
        found.extend(_check_hashes(recording, index))
        found.extend(_check_messages(recording, index))
    return found


def _check_messages(recording: Recording, index: int) -> list[str]:
    step, known = recording.steps[index], len(recording.messages)
    found: list[str] = []
    if step.prompt is not None and any(
        last < first or last >= known for first, last in step.prompt
    ):
        found.append(f"steps[{index}].prompt names messages that the recording does not have")
    if step.answer is not None and step.answer >= known:
        found.append(f"steps[{index}].answer names a message that the recording does not have")
    return found


def _check_hashes(recording: Recording, index: int) -> list[str]:
    step = recording.steps[index]
    if step.hash_ids is None:
        return []
    at = f"steps[{index}].hash_ids"
    if recording.block_size is None:
        return [f"{at} without a block_size on the recording"]
    if any(last < first for first, last in step.hash_ids):
        return [f"{at} has a run that ends before it begins"]
    blocks = sum(last - first + 1 for first, last in step.hash_ids)
    if blocks * recording.block_size > step.input_tokens + recording.block_size:
        return [f"{at} covers more than the prompt"]
    return []
