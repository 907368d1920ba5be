"""The load of a comparison: which programs start when, and whose they are. All arms get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentsched_bench.live.results import TraceRow
from agentsched_bench.workload.compose import PlannedWorkload, compose, plan_workload
from agentsched_bench.workload.shape import PlannedProgram
from agentsched_bench.workload.spec import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What arrives. A start of None waits for room in its program's pool (a closed loop).

    `deadlines_s` is what clients say of their programs, in seconds from each one's start;
    `left_out` is how many programs were drawn whose first call is too long.
    """

    plans: Sequence[PlannedProgram]
    starts_s: Sequence[float | None]
    pools: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    without_ids: frozenset[str] = frozenset()
    deadlines_s: Mapping[str, float] = field(default_factory=dict)
    trace: TraceRow
    left_out: int = 0

    @property
    def calls(self) -> int:
        return sum(plan.calls for plan in self.plans)

    @property
    def last_start_s(self) -> float:
        """When the last program starts that does not wait for others."""
        return max((at for at in self.starts_s if at is not None), default=0.0)

    @property
    def concurrency(self) -> int | None:
        """How many programs run at a time where all are in closed loops; None: as they come."""
        return sum(self.pools.values()) if None in self.starts_s else None

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
    """The load that `workload` comes to with its own seed and `seed` added.

    Paths of traces are relative to the folder `beside`.

    Raises:
        TraceError: a trace cannot be read.
        ConfigError: nothing is left of the traces.
    """
    spec = workload.model_copy(update={"seed": workload.seed + seed})
    planned = plan_workload(compose(spec, folder=beside))
    return Load(
        plans=planned.programs,
        starts_s=planned.starts_s,
        pools=planned.pools,
        tenants=planned.tenants,
        weights=planned.weights,
        without_ids=planned.without_ids,
        trace=_trace_row(planned),
        left_out=planned.left_out,
    )


def _trace_row(planned: PlannedWorkload) -> TraceRow:
    return TraceRow(
        name=", ".join(trace.name for trace in planned.traces) or "background only",
        sha256=" ".join(trace.sha256 for trace in planned.traces),
        programs=len(planned.programs),
        calls=sum(plan.calls for plan in planned.programs),
        is_synthetic=any(trace.is_synthetic for trace in planned.traces),
    )
