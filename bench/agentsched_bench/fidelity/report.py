"""Measured beside predicted: what is compared, and what may be said about it.

Two predictions stand beside each measurement. `probes` uses the costs that `calibrate` fitted to
short calls before the load; nothing of the load went into it. `refitted` uses costs that were
fitted to every second call of the baseline's run: if that is near and `probes` is not, the law of
costs holds and the engine was slower under load than when it was probed; if neither is near, the
law is wrong. Only arms other than the baseline are predicted there from what they did not give.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Final

import msgspec

from agentsched.model import Instant
from agentsched_bench.calibrate.fit import Served, feed
from agentsched_bench.calibrate.model_file import ModelFile
from agentsched_bench.compare.load import Load
from agentsched_bench.compare.results import Run
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.sim.prompts import SimPrompts
from agentsched_bench.workload.statistics import quantile

SCHEMA: Final = "agentsched.fidelity/2"
#: Arms that are nearer to each other than this have no order.
_TIE: Final = 0.05


class Figures(msgspec.Struct, kw_only=True):
    """One arm, one repeat: seconds, and the share of prompt tokens from the cache, where the engine
    tells it. Times are of programs and calls that completed."""

    jct_mean_s: float
    jct_p95_s: float
    ttft_mean_s: float
    ttft_p95_s: float
    cached_share: float | None
    completed: int


class ArmFidelity(msgspec.Struct, kw_only=True):
    """One arm: a row for each repeat, measured and by each model."""

    arm: str
    measured: list[Figures] = []
    probes: list[Figures] = []
    refitted: list[Figures] = []


class Fidelity(msgspec.Struct, kw_only=True):
    """The whole of it. `drift`: how long probes took after the load, over what the model fitted
    before it says (median; 1 is the same engine as before). Where a comparison was there already
    nothing was probed, and `fitted_to` says which of its arms the engine was fitted to."""

    schema: str = SCHEMA
    command: list[str]
    scenario: dict[str, object]
    machine: dict[str, object]
    versions: dict[str, str]
    probes: ModelFile | None = None
    refitted: ModelFile | None = None
    drift: float | None = None
    fitted_to: list[str] = []
    arms: list[ArmFidelity] = []


def figures_of(run: Run) -> Figures:
    """What one run came to."""
    jct = [program.jct_s for program in run.programs if program.jct_s is not None]
    calls = [call for call in run.calls if not call.error]
    first = [call.ttft_s for call in calls if call.ttft_s is not None]
    known = [call for call in calls if call.prompt_tokens and call.cached_tokens is not None]
    prompt = sum(call.prompt_tokens or 0 for call in known)
    return Figures(
        jct_mean_s=fmean(jct) if jct else 0.0,
        jct_p95_s=quantile(sorted(jct), 0.95) if jct else 0.0,
        ttft_mean_s=fmean(first) if first else 0.0,
        ttft_p95_s=quantile(sorted(first), 0.95) if first else 0.0,
        cached_share=sum(call.cached_tokens or 0 for call in known) / prompt if known else None,
        completed=len(jct),
    )


def served_of(run: Run, load: Load, *, block_size: int) -> list[Served]:
    """The calls of a run as its engines had them. Nothing may have held them back on the way."""
    talks = {
        (plan.program, talk.conversation): talk
        for plan in load.plans
        for talk in plan.conversations
    }
    prompts = {key: SimPrompts(talk, copy="", block_size=block_size) for key, talk in talks.items()}
    found: list[Served] = []
    for call in sorted(run.calls, key=lambda call: (call.step, call.sent_s)):
        if call.error:
            continue
        key = (call.program, call.conversation)
        planned = talks[key].calls[call.step]
        found.append(
            Served(
                engine=call.engine,
                sent_at=Instant(round(call.sent_s * 1e9)),
                chain=prompts[key].chain(call.step),
                prompt_tokens=planned.prompt_tokens,
                output_tokens=planned.output_tokens,
                first_ns=None if call.ttft_s is None else round(call.ttft_s * 1e9),
                last_ns=max(1, round(call.latency_s * 1e9)),
                cached_tokens=call.cached_tokens,
            )
        )
    return found


def drift_of(served: Sequence[Served], config: EngineConfig) -> float | None:
    """How long these calls took over what the model says; None where it refused them all."""
    ordered = sorted(served, key=lambda call: call.sent_at)
    ratios = [
        call.last_ns / max(1, times[1])
        for call, times in zip(ordered, feed(ordered, config), strict=True)
        if times is not None
    ]
    return median(ratios) if ratios else None


def error(measured: Sequence[Figures], predicted: Sequence[Figures], name: str) -> float | None:
    """Predicted over measured, less 1, of the means over repeats; None where there is nothing."""
    seen, said = known(measured, name), known(predicted, name)
    return fmean(said) / fmean(seen) - 1.0 if seen and said and fmean(seen) else None


def known(rows: Sequence[Figures], name: str) -> list[float]:
    """What the rows say; one in which no program completed has no times."""
    return [value for row in rows if row.completed and (value := getattr(row, name)) is not None]


def is_order_kept(arms: Sequence[ArmFidelity], model: str) -> bool:
    """Whether the model ranks the arms by mean completion time as they were measured.

    Pairs that were measured within a twentieth of each other may stand either way.
    """
    rows = [
        (fmean(seen), fmean(said))
        for arm in arms
        if (seen := known(arm.measured, "jct_mean_s"))
        and (said := known(getattr(arm, model), "jct_mean_s"))
    ]
    return not any(
        seen < other_seen * (1 - _TIE) and said > other_said
        for seen, said in rows
        for other_seen, other_said in rows
    )
