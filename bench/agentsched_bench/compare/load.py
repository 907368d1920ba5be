"""The load of a comparison: which programs start when, and whose they are. All arms get it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentsched.model import ConfigError
from agentsched_bench.live.results import TraceRow
from agentsched_bench.workload.generate import sample_path
from agentsched_bench.workload.sample import sample_programs
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.spec import (
    SAMPLE,
    Bursty,
    Closed,
    Poisson,
    RecordedArrivals,
    Regular,
    Source,
    Workload,
)
from agentsched_bench.workload.trace import group_programs, read_trace, sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What arrives. `concurrency` bounds how many programs run at a time, None: no bound."""

    plans: Sequence[PlannedProgram]
    starts_s: Sequence[float]
    concurrency: int | None = None
    tenants: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    trace: TraceRow

    @property
    def calls(self) -> int:
        return sum(plan.calls for plan in self.plans)

    @property
    def tokens_max(self) -> int:
        """An upper bound on all that a cache could be filled with."""
        return sum(
            sum(piece.tokens for piece in call.pieces) + call.output_tokens
            for plan in self.plans
            for conversation in plan.conversations
            for call in conversation.calls
        )


def make_load(workload: Workload, *, seed: int, beside: Path) -> Load:
    """The load that `workload` and `seed` come to. Paths are relative to the folder `beside`.

    Raises:
        TraceError: a trace cannot be read.
        ConfigError: nothing is left of the traces.
    """
    rng = random.Random(f"load/{workload.seed}/{seed}")
    plans: list[PlannedProgram] = []
    rows: list[TraceRow] = []
    for source in workload.sources:
        found, row = _plans(source, workload, seed=seed, beside=beside)
        plans += found
        rows.append(row)
    wanted = workload.programs or len(plans)
    order = list(plans)
    if not isinstance(workload.arrivals, RecordedArrivals):
        rng.shuffle(order)
    chosen = [_copy(order[n % len(order)], n // len(order)) for n in range(wanted)]
    tenants = workload.tenants
    owners = rng.choices(tenants, weights=[t.load for t in tenants], k=wanted) if tenants else []
    return Load(
        plans=chosen,
        starts_s=_starts(workload, chosen, rng),
        concurrency=_concurrency(workload),
        tenants={plan.program: who.name for plan, who in zip(chosen, owners, strict=False)},
        weights={tenant.name: tenant.weight for tenant in tenants},
        trace=_joined(rows, chosen),
    )


def _copy(plan: PlannedProgram, number: int) -> PlannedProgram:
    return replace(plan, program=f"{plan.program}~{number}") if number else plan


def _plans(
    source: Source, workload: Workload, *, seed: int, beside: Path
) -> tuple[list[PlannedProgram], TraceRow]:
    path = sample_path() if source.trace == SAMPLE else beside / source.trace
    if not path.exists():
        raise ConfigError(f"no trace at {path} (--trace FILE replaces it; `sample` is built in)")
    recordings = list(read_trace(path))
    taken = sample_programs(
        group_programs(recordings),
        count=source.programs or workload.programs,
        rng=random.Random(f"sample/{workload.seed + seed}"),
        only=source.only,
    )
    gap_cap_s = workload.gap_cap_s if source.gap_cap_s is None else source.gap_cap_s
    shape = ShapeOptions(
        scale_tokens=source.scale_tokens or workload.scale_tokens,
        scale_time=source.scale_time or workload.scale_time,
        gap_cap_s=gap_cap_s,
        steps_max=workload.steps_max,
        context_tokens_max=workload.context_tokens_max,
        cycle_tokens_per_s=workload.cycle_tokens_per_s,
    )
    plans = plan_programs(taken, shape, shared=SharedPrompts.learn(recordings))
    if not plans:
        raise ConfigError(f"{path}: every program's first call exceeds context_tokens_max")
    return plans, TraceRow(
        name=path.name,
        sha256=sha256_of(path),
        programs=len(plans),
        calls=sum(plan.calls for plan in plans),
        is_synthetic=all(recording.synthetic for recording in recordings),
    )


def _joined(rows: Sequence[TraceRow], chosen: Sequence[PlannedProgram]) -> TraceRow:
    return TraceRow(
        name=", ".join(row.name for row in rows),
        sha256=" ".join(row.sha256 for row in rows),
        programs=len(chosen),
        calls=sum(plan.calls for plan in chosen),
        is_synthetic=any(row.is_synthetic for row in rows),
    )


def _concurrency(workload: Workload) -> int | None:
    arrivals = workload.arrivals
    return arrivals.concurrency if isinstance(arrivals, Closed) else None


def _starts(workload: Workload, plans: Sequence[PlannedProgram], rng: random.Random) -> list[float]:
    match workload.arrivals:
        case Closed():
            return [0.0] * len(plans)
        case Regular(rate=rate):
            return [number / rate for number in range(len(plans))]
        case Poisson(rate=rate):
            starts = [0.0]
            while len(starts) < len(plans):
                starts.append(starts[-1] + rng.expovariate(rate))
            return starts[: len(plans)]
        case RecordedArrivals(speed=speed):
            known = [plan.arrival_s or 0.0 for plan in plans]
            return [(at - min(known)) / speed for at in known]
        case Bursty():
            raise ConfigError("bursty arrivals need the composer")
