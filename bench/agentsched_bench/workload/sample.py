"""Choosing programs from a trace: by field, and by lot with a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from agentsched.model import ConfigError
from agentsched_bench.workload.trace import RecordedProgram

#: How many sub-agents a program has; the others are its main recording's.
_SUB_AGENTS: Final = "sub_agents"
FIELDS: Final = (
    "session_id",
    "source",
    "workload",
    "agent",
    "model",
    "dataset",
    "group",
    _SUB_AGENTS,
)


def sample_programs(
    programs: Sequence[RecordedProgram],
    *,
    count: int | None,
    rng: random.Random,
    only: Sequence[str] = (),
) -> list[RecordedProgram]:
    """Up to `count` programs (None: all) that match every `FIELD=PATTERN`, in the file's order.

    Raises:
        ConfigError: a filter is not of that form, names no field, or leaves nothing.
    """
    filters = [_parse(text) for text in only]
    fitting = [
        program
        for program in programs
        if all(fnmatchcase(_value(program, name), pattern) for name, pattern in filters)
    ]
    if not fitting:
        reason = f"matches {' and '.join(only)}" if only else "is in the trace"
        raise ConfigError(f"no program {reason}")
    if count is None or count >= len(fitting):
        return fitting
    chosen = sorted(rng.sample(range(len(fitting)), count))
    return [fitting[index] for index in chosen]


def _value(program: RecordedProgram, name: str) -> str:
    if name == _SUB_AGENTS:
        return str(len(program.children))
    return str(getattr(program.main, name))


def _parse(text: str) -> tuple[str, str]:
    name, found, pattern = text.partition("=")
    if not found or name not in FIELDS:
        raise ConfigError(f"not a filter: {text!r} (write FIELD=PATTERN; {', '.join(FIELDS)})")
    return name, pattern


def parts_by_load(loads: Sequence[float], count: int) -> list[int]:
    """`count` in parts by their loads: the largest remainders get what rounding leaves."""
    whole = sum(loads)
    exact = [count * load / whole for load in loads]
    parts = [int(share) for share in exact]
    order = sorted(range(len(loads)), key=lambda i: (parts[i] - exact[i], i))
    for index in order[: count - sum(parts)]:
        parts[index] += 1
    return parts
