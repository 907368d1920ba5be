"""What the overhead benchmark measured, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Final

import msgspec

from agentsched_bench.overhead.arms import DIRECT, INFERRED, PROGRAMS, WITH_IDS

SCHEMA: Final = "agentsched.overhead/1"
_CPU_RATIO_MAX: Final = {"8KB": 1.6, "130KB": 1.0}
_MEMORY_BYTES_MAX: Final = 64 << 10


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of traffic."""

    shape: str
    is_stream: bool
    concurrency: int

    def __str__(self) -> str:
        kind = "stream" if self.is_stream else "whole"
        return f"{self.shape} {kind} x{self.concurrency}"


class ArmRow(msgspec.Struct, kw_only=True):
    """One side. `missing` is empty if it ran."""

    name: str
    about: str
    version: str
    missing: str = ""


class Sample(msgspec.Struct, kw_only=True):
    """One block of requests on one arm. Times are in microseconds; CPU is the proxy's alone."""

    repeat: int
    cell: Cell
    arm: str
    requests: int
    body_bytes: int
    cpu_us: float | None
    total_p50_us: float
    total_p99_us: float
    first_p50_us: float
    first_p99_us: float
    wall_s: float
    continuations: int
    recognised: int


class MemorySample(msgspec.Struct, kw_only=True):
    """Resident memory before and after `programs` whole programs."""

    arm: str
    programs: int
    messages: int
    requests: int
    before_bytes: int
    after_bytes: int
    recognised_share: float | None

    @property
    def per_program_bytes(self) -> float:
        return (self.after_bytes - self.before_bytes) / self.programs


class Figure(msgspec.Struct, kw_only=True):
    """Median over the repeats, and the extremes."""

    median: float
    low: float
    high: float


class Row(msgspec.Struct, kw_only=True):
    """One arm in one cell. `added` is the arm's percentile less direct's in the same repeat;
    `ratio` is its CPU over that of vllm-router's program mode in the same repeat.
    """

    cell: Cell
    arm: str
    cpu_us: Figure | None
    ratio: Figure | None
    added_p50_us: Figure | None
    added_p99_us: Figure | None
    added_first_p50_us: Figure | None
    added_first_p99_us: Figure | None
    recognised_share: float | None


class Goal(msgspec.Struct, kw_only=True):
    """One aim and whether it was met; `value` over `limit` says by how much it was not."""

    what: str
    limit: float
    value: float
    is_met: bool


class Result(msgspec.Struct, kw_only=True):
    """A whole run."""

    schema: str = SCHEMA
    started_at: str
    machine: dict[str, str]
    settings: dict[str, int | bool | str]
    arms: list[ArmRow]
    samples: list[Sample] = []
    memory: list[MemorySample] = []
    rows: list[Row] = []
    goals: list[Goal] = []
    is_complete: bool = False


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summarise(samples: Iterable[Sample]) -> list[Row]:
    """One row for each cell and arm, in the order in which they were first measured."""
    by_cell: dict[Cell, dict[str, dict[int, Sample]]] = {}
    for sample in samples:
        arms = by_cell.setdefault(sample.cell, {})
        arms.setdefault(sample.arm, {})[sample.repeat] = sample
    return [
        _row(cell, arm, own, direct=arms.get(DIRECT, {}), peer=arms.get(PROGRAMS, {}))
        for cell, arms in by_cell.items()
        for arm, own in arms.items()
    ]


def goals(rows: Iterable[Row], memory: Iterable[MemorySample]) -> list[Goal]:
    """The aims of this project for its own default profile, as far as they were measured."""
    found: list[Goal] = []
    for row in rows:
        limit = _CPU_RATIO_MAX.get(row.cell.shape)
        if row.arm in (INFERRED, WITH_IDS) and row.ratio is not None and limit is not None:
            what = f"{row.arm}: CPU at {row.cell} over that of {PROGRAMS}"
            found.append(_goal(what, limit=limit, value=row.ratio.median))
    for sample in memory:
        if sample.arm in (INFERRED, WITH_IDS):
            what = f"{sample.arm}: bytes per live program of {sample.messages} messages"
            found.append(_goal(what, limit=_MEMORY_BYTES_MAX, value=sample.per_program_bytes))
    return found


def _goal(what: str, *, limit: float, value: float) -> Goal:
    return Goal(what=what, limit=limit, value=value, is_met=value <= limit)


def _row(
    cell: Cell,
    arm: str,
    own: dict[int, Sample],
    *,
    direct: dict[int, Sample],
    peer: dict[int, Sample],
) -> Row:
    def added(read: Callable[[Sample], float]) -> Figure | None:
        if arm == DIRECT:
            return None
        return _figure(read(own[r]) - read(direct[r]) for r in own if r in direct)

    asked = sum(s.continuations for s in own.values())
    return Row(
        cell=cell,
        arm=arm,
        cpu_us=_figure(s.cpu_us for s in own.values() if s.cpu_us is not None),
        ratio=_figure(
            mine / theirs
            for r, sample in own.items()
            if (mine := sample.cpu_us) and r in peer and (theirs := peer[r].cpu_us)
        ),
        added_p50_us=added(lambda s: s.total_p50_us),
        added_p99_us=added(lambda s: s.total_p99_us),
        added_first_p50_us=added(lambda s: s.first_p50_us),
        added_first_p99_us=added(lambda s: s.first_p99_us),
        recognised_share=sum(s.recognised for s in own.values()) / asked if asked else None,
    )


def _figure(values: Iterable[float]) -> Figure | None:
    drawn = list(values)
    if not drawn:
        return None
    return Figure(median=median(drawn), low=min(drawn), high=max(drawn))
