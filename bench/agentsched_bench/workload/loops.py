"""Closed loops of a composed trace: how many of their programs run at a time is in its header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agentsched_bench.workload.shape import PlannedProgram
from agentsched_bench.workload.trace import TraceHeader, read_trace


def closed_loops(
    plans: Sequence[PlannedProgram], trace: Path
) -> tuple[list[PlannedProgram], dict[str, int]]:
    """Plans of the programs of a trace, and how many of each of its closed loops run at a time.

    A loop that the trace's header does not know, as in what was cut out of a larger one, is none.
    """
    sizes: dict[str, int] = {}

    def note(header: TraceHeader) -> None:
        found = (header.workload or {}).get("pools")
        if isinstance(found, dict):
            sizes.update(
                {name: size for name, size in found.items() if isinstance(size, int) and size > 0}
            )

    if any(plan.pool is not None for plan in plans):
        next(read_trace(trace, on_header=note), None)
    known = [
        plan if plan.pool is None or plan.pool in sizes else replace(plan, pool=None)
        for plan in plans
    ]
    return known, sizes
