"""What an importer is: it knows its format when it sees it, and reads it a recording at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.files import InputFile, OnError


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What is wanted of an import. `source` overrides the name that recordings give their source.

    With `keeps_text` messages are kept where the source has them; else only their sizes.
    """

    keeps_text: bool = False
    source: str | None = None


class Importer(Protocol):
    """Reads one format. `name` is what the command line calls it, `title` is for people."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def claims(self, head: Sequence[Any]) -> bool:
        """Whether a file that begins with these JSON values is of this format."""
        ...

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        """The recordings of `files`. What cannot be read is reported; the rest is kept."""
        ...
