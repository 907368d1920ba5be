"""Our own trace format, so that traces can be merged and converted like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.files import InputFile, OnError, has_objects, lines, values
from agentsched_bench.workload.importers.loose import as_object, flat
from agentsched_bench.workload.trace import (
    Recording,
    TraceError,
    decode_recording,
    header_of,
    is_header,
)


@dataclass(frozen=True, slots=True)
class Native:
    """Reads traces of our own format."""

    name: str = "agentsched"
    title: str = "agentsched's own trace format"

    def claims(self, head: Sequence[Any]) -> bool:
        return any(
            "agentsched_trace" in value or ("session_id" in value and "steps" in value)
            for value in map(as_object, flat(head[:2])[:2])
        )

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        for file in files:
            found = _of_lines if has_objects(file) else _of_documents
            for recording in found(file, on_error):
                if not options.keeps_text:
                    recording = without_text(recording)
                if options.source is not None:
                    recording = msgspec.structs.replace(recording, source=options.source)
                yield Imported(recording=recording, epoch_s=recording.start_s)


def _of_lines(file: InputFile, on_error: OnError) -> Iterator[Recording]:
    found = lines(file, on_error=on_error)
    while True:
        try:
            number, line = next(found)
            if is_header(line, number=number):
                header_of(line, path=file.path)
                continue
            recording = decode_recording(line, path=file.path, number=number)
        except StopIteration:
            return
        except TraceError as error:
            on_error(error)
            if error.line is None:
                return
            continue
        yield recording


def _of_documents(file: InputFile, on_error: OnError) -> Iterator[Recording]:
    """Recordings as other programs write JSON: indented, in a row, or in one list."""
    for found in values(file, on_error=on_error):
        parts = flat([found.value])
        for index, part in enumerate(parts):
            if "agentsched_trace" in as_object(part):
                continue
            line = json.dumps(part).encode()
            try:
                recording = decode_recording(line, path=file.path, number=found.line or 1)
            except TraceError as error:
                on_error(error)
                continue
            # What stands at the break of a document lost what came after it.
            is_cut = recording.is_cut or (found.is_cut and index == len(parts) - 1)
            yield msgspec.structs.replace(recording, is_cut=is_cut)


def without_text(recording: Recording) -> Recording:
    """The recording without messages and tools' definitions."""
    if not recording.messages and not recording.tool_definitions:
        return recording
    steps = tuple(msgspec.structs.replace(s, prompt=None, answer=None) for s in recording.steps)
    return msgspec.structs.replace(recording, steps=steps, messages=(), tool_definitions=())
