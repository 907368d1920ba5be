"""Our traces in other tools' formats, so that they can replay them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

from agentsched.model import ConfigError
from agentsched_bench.workload.exporters.mooncake import (
    AGENTIC_BLOCK,
    MOONCAKE_BLOCK,
    agentic_lines,
    mooncake_lines,
)
from agentsched_bench.workload.exporters.otel import otel_lines
from agentsched_bench.workload.shape import SharedPrompts
from agentsched_bench.workload.trace import RecordedProgram, write_lines

__all__ = ["Format", "export_trace"]


class Format(StrEnum):
    """What can be written."""

    AGENTIC_MOONCAKE = "agentic-mooncake"
    AGENTIC_MOONCAKE_2 = "agentic-mooncake-2"
    MOONCAKE = "mooncake"
    OTEL = "otel"


_BLOCKS: Final = {
    Format.AGENTIC_MOONCAKE: AGENTIC_BLOCK,
    Format.AGENTIC_MOONCAKE_2: AGENTIC_BLOCK,
    Format.MOONCAKE: MOONCAKE_BLOCK,
}


def export_trace(
    programs: Iterable[RecordedProgram],
    out: Path,
    format_: Format,
    *,
    shared: SharedPrompts,
    block_size: int | None = None,
    keeps_text: bool = False,
) -> int:
    """Write programs in another format; returns the number of lines.

    Raises:
        ConfigError: a block size is given to a format without blocks.
        TraceError: the file cannot be written.
    """
    if block_size is not None and format_ not in _BLOCKS:
        raise ConfigError(f"{format_} has no blocks")
    size = block_size or _BLOCKS.get(format_, 0)
    return write_lines(_lines(programs, format_, shared, size, keeps_text), out)


def _lines(
    programs: Iterable[RecordedProgram],
    format_: Format,
    shared: SharedPrompts,
    size: int,
    keeps_text: bool,
) -> Iterator[bytes]:
    match format_:
        case Format.MOONCAKE:
            return mooncake_lines(programs, block_size=size, shared=shared)
        case Format.OTEL:
            return otel_lines(programs, keeps_text=keeps_text)
        case Format.AGENTIC_MOONCAKE:
            return agentic_lines(programs, block_size=size, shared=shared, version=1)
        case Format.AGENTIC_MOONCAKE_2:
            return agentic_lines(programs, block_size=size, shared=shared, version=2)
