"""Our own trace format, so that traces can be merged and converted like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.files import InputFile, OnError, lines
from agentsched_bench.workload.importers.loose import as_object
from agentsched_bench.workload.trace import TraceError, decode_recording, is_header


@dataclass(frozen=True, slots=True)
class Native:
    """Reads traces of our own format."""

    name: str = "agentsched"
    title: str = "agentsched's own trace format"

    def claims(self, head: Sequence[Any]) -> bool:
        return any(
            "agentsched_trace" in value or ("session_id" in value and "steps" in value)
            for value in map(as_object, head[:2])
        )

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        for file in files:
            found = lines(file)
            while True:
                try:
                    number, line = next(found)
                    if is_header(line, number=number):
                        continue
                    recording = decode_recording(line, path=file.path, number=number)
                except StopIteration:
                    break
                except TraceError as error:
                    on_error(error)
                    if error.line is None:
                        break
                    continue
                if not options.keeps_text:
                    recording = without_text(recording)
                if options.source is not None:
                    recording = msgspec.structs.replace(recording, source=options.source)
                yield Imported(recording=recording, epoch_s=recording.start_s)


def without_text(recording: Any) -> Any:
    """The recording without messages and tools' definitions."""
    if not recording.messages and not recording.tool_definitions:
        return recording
    steps = tuple(msgspec.structs.replace(s, prompt=None, answer=None) for s in recording.steps)
    return msgspec.structs.replace(recording, steps=steps, messages=(), tool_definitions=())
