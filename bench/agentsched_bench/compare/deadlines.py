"""Deadlines of a load's programs: multiples of the time that each takes alone.

No recording says when its program was wanted. A multiple of the time alone asks the same of short
programs as of long ones; several multiples make some programs urgent and others not, which is
what an order that heeds deadlines lives on.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from agentsched.model import ConfigError
from agentsched_bench.compare.load import Load
from agentsched_bench.compare.results import Program


def deadlines_of(alone_s: Mapping[str, float], multiples: Sequence[float]) -> dict[str, float]:
    """Seconds from its start within which each program is wanted; empty without multiples.

    Which of several multiples a program has is decided by its name: it is the same in every arm,
    in every repeat and in every comparison.

    Raises:
        ConfigError: there are multiples, and nothing is known of the time alone.
    """
    if not multiples:
        return {}
    if not alone_s:
        raise ConfigError(
            "measure.deadlines are multiples of the time alone: they need measure.alone = 'model', "
            "and programs of the trace (no real agent plays these)"
        )
    return {
        program: seconds * multiples[zlib.crc32(program.encode()) % len(multiples)]
        for program, seconds in alone_s.items()
    }


def telling(loads: Iterable[Load], deadlines_s: Mapping[str, float]) -> list[Load]:
    """The loads with what their clients say of deadlines, where their convention for ids can."""
    return [replace(load, deadlines_s=deadlines_s) for load in loads]


def in_time(programs: Iterable[Program], deadlines_s: Mapping[str, float]) -> float | None:
    """The share of programs that were done within their deadline; None where nobody has one.

    One that gave up was not done in time.
    """
    wanted = [program for program in programs if program.program in deadlines_s]
    if not wanted:
        return None
    kept = [p.jct_s is not None and p.jct_s <= deadlines_s[p.program] for p in wanted]
    return sum(kept) / len(kept)
