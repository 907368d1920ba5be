"""From runs to figures: one row of numbers for each arm, and what it says against the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from agentsched_bench.compare.deadlines import in_time
from agentsched_bench.compare.inference import Pair, Ratio, Verdict, jain, paired_ratio
from agentsched_bench.compare.machine import sound, why_shared
from agentsched_bench.compare.results import (
    ArmFigures,
    Call,
    CompareResult,
    Program,
    Run,
    TenantFigures,
    finished_runs,
)
from agentsched_bench.live.attribution import Attributed, attribution
from agentsched_bench.live.results import COMPLETED, INTERRUPTED
from agentsched_bench.workload.statistics import spread

#: An answer's token costs an engine about this many times what a prompt's token does (VTC, Sheng
#: et al. 2024, section 4.1: input 1, output 2).
OUTPUT_COST: Final = 2


def summarise(result: CompareResult) -> list[ArmFigures]:
    """The figures of every arm that has a finished run, in the order of the arms."""
    rows = []
    for arm in result.arms:
        runs = finished_runs(result, arm.name)
        if runs:
            rows.append(_figures(arm.name, runs, result))
    return rows


def _figures(arm: str, finished: Sequence[Run], result: CompareResult) -> ArmFigures:
    # What was measured while the machine stood still is better than nothing, and than nothing only.
    runs = sound(finished) or finished
    programs = [program for run in runs for program in run.programs]
    calls = [call for run in runs for call in run.calls]
    done = [call for call in calls if not call.error]
    known = [call for call in done if call.prompt_tokens and call.cached_tokens is not None]
    cached = sum(call.cached_tokens or 0 for call in known)
    prompts = sum(call.prompt_tokens or 0 for call in known)
    held = [call.held_s for call in calls if call.held_s is not None]
    bypassed = [call.bypassed for call in calls if call.bypassed is not None]
    slow = list(_slowdowns(programs, result.alone_s))
    tenants = _tenants(runs, result.alone_s)
    outputs = sum(call.output_tokens or 0 for call in done)
    time_s = sum(run.duration_s for run in runs)
    jct, ttft, verdict, sentence = _against_baseline(arm, finished, result)
    return ArmFigures(
        arm=arm,
        runs=len(runs),
        completed=sum(program.outcome == COMPLETED for program in programs),
        failed=sum(program.outcome != COMPLETED for program in programs),
        calls=len(calls),
        errors=sum(bool(call.error) and call.error != INTERRUPTED for call in calls),
        retries=sum(call.attempts - 1 for call in calls),
        jct_s=spread(p.jct_s for p in programs if p.jct_s is not None),
        run_jct_s=[_mean(p.jct_s for p in run.programs if p.jct_s is not None) for run in runs],
        slowdown=spread(slow) if slow else None,
        ttft_s=spread(call.ttft_s for call in done if call.ttft_s is not None),
        held_s=spread(held) if held else None,
        bypassed_max=max(bypassed) if bypassed else None,
        prompt_tokens=sum(call.prompt_tokens or 0 for call in done),
        # Where no engine tells what it had cached, none is no count: to compute nothing is the best
        # that an arm can do, and to have cached nothing the worst.
        cached_tokens=cached if known else None,
        cached_share=cached / prompts if known else None,
        computed_tokens=prompts - cached if known else None,
        again_tokens=_again(known) if known else None,
        output_tokens=outputs,
        preemptions=_total(run.preemptions for run in runs),
        busy_share=_average(run.busy_share for run in runs),
        throughput_tokens_s=outputs / time_s if time_s else 0.0,
        recognised_share=_recognised(runs),
        tenants=tenants,
        jain=_fairness(tenants),
        share_gap_tokens=_largest(share_gap(run.calls) for run in runs) if tenants else None,
        jct=jct,
        ttft=ttft,
        noise=_noise(runs),
        verdict=verdict,
        sentence=sentence,
        stalled=len(finished) - len(sound(finished)),
        in_time_share=in_time(programs, result.deadlines_s),
    )


def _again(calls: Iterable[Call]) -> int:
    """Tokens of prompts that an earlier call had brought, and that were computed all the same."""
    return sum(max(0, call.known_tokens - (call.cached_tokens or 0)) for call in calls)


def _against_baseline(
    arm: str, finished: Sequence[Run], result: CompareResult
) -> tuple[Ratio | None, Ratio | None, Verdict | None, str]:
    """Completion times and first tokens over the baseline's, the verdict, and it in words."""
    if arm == result.baseline:
        return None, None, None, "what the others are compared with"
    base = finished_runs(result, result.baseline)
    # A repeat that only one of them has finished compares nothing, nor one in which the machine
    # stood still for either.
    common = {run.repeat for run in finished} & {run.repeat for run in base}
    fair = {run.repeat for run in sound(finished)} & {run.repeat for run in sound(base)}
    taken = fair or common
    own = [run for run in finished if run.repeat in taken]
    others = [run for run in base if run.repeat in taken]
    jct = paired_ratio(_times(own), _times(others))
    ttft = paired_ratio(_first_tokens(own), _first_tokens(others))
    sentence = jct.sentence("job completion time", against=result.baseline)
    if common and not fair:
        said = f"cannot be said: the machine stood still in every repeat (it would be: {sentence})"
        return jct, ttft, Verdict.UNKNOWN, said
    if left_out := len(common) - len(fair):
        sentence += f"; {left_out} of {len(common)} repeats left out, the machine stood still"
    if shared := len({run.repeat for run in (*own, *others) if why_shared(run.machine)}):
        sentence += f"; others had the machine as well in {shared} of {len(taken)} repeats"
    return jct, ttft, jct.verdict, sentence


def _noise(runs: Sequence[Run]) -> Ratio | None:
    """The arm against itself, each repeat over the one before: what chance alone does.

    None where repeats had different programs.
    """
    later = {(run.repeat, p): v for run in runs[1:] for p, v in _by_program(run).items()}
    earlier = {
        (after.repeat, p): v for run, after in pairwise(runs) for p, v in _by_program(run).items()
    }
    return paired_ratio(later, earlier) if later.keys() & earlier.keys() else None


def _by_program(run: Run) -> dict[str, float]:
    return {p.program: p.jct_s for p in run.programs if p.jct_s is not None}


def _times(runs: Iterable[Run]) -> dict[Pair, float]:
    return {(run.repeat, p): value for run in runs for p, value in _by_program(run).items()}


def _first_tokens(runs: Iterable[Run]) -> dict[Pair, float]:
    """The mean time to a first token of each program that completed: of one that gave up, calls are
    missing, and its first ones are not like the others."""
    found: dict[Pair, list[float]] = {}
    for run in runs:
        done = _by_program(run)
        for call in run.calls:
            if call.ttft_s and not call.error and call.program in done:
                found.setdefault((run.repeat, call.program), []).append(call.ttft_s)
    return {key: _mean(values) for key, values in found.items()}


def _slowdowns(programs: Iterable[Program], alone_s: Mapping[str, float]) -> Iterable[float]:
    for program in programs:
        alone = alone_s.get(program.program)
        if alone and program.jct_s is not None:
            yield program.jct_s / alone


def _tenants(runs: Sequence[Run], alone_s: Mapping[str, float]) -> list[TenantFigures]:
    names = sorted({p.tenant for run in runs for p in run.programs if p.tenant})
    if len(names) < 2:
        return []
    rows = []
    for name in names:
        programs = [p for run in runs for p in run.programs if p.tenant == name]
        calls = [c for run in runs for c in run.calls if c.tenant == name and not c.error]
        slow = list(_slowdowns(programs, alone_s))
        rows.append(
            TenantFigures(
                tenant=name,
                programs=len(programs),
                jct_mean_s=_mean(p.jct_s for p in programs if p.jct_s is not None),
                slowdown_p99=spread(slow).p99 if slow else None,
                ttft_p99_s=spread(c.ttft_s for c in calls if c.ttft_s is not None).p99,
                service_tokens=sum(service(call) for call in calls),
            )
        )
    return rows


def _fairness(tenants: Sequence[TenantFigures]) -> float | None:
    """Of the tenants' slowdowns; unknown where all programs of one gave up: that is not fair."""
    slow = [tenant.slowdown_p99 for tenant in tenants if tenant.slowdown_p99]
    return jain(slow) if len(slow) == len(tenants) else None


def service(call: Call) -> int:
    """What a call took from the engine, in prompt tokens: those computed, and its answer's."""
    computed = (call.prompt_tokens or 0) - (call.cached_tokens or 0)
    return computed + OUTPUT_COST * (call.output_tokens or 0)


def share_gap(calls: Sequence[Call]) -> float | None:
    """The greatest difference of service between two tenants over any time in which both waited.

    A tenant waits while one of its calls has no first token yet; a call's service counts at its
    first token. None with fewer than two tenants.
    """
    tenants = sorted({call.tenant for call in calls if call.tenant})
    if len(tenants) < 2:
        return None
    moves: list[tuple[float, int, str, int]] = []
    for call in calls:
        first_s = call.sent_s + (call.ttft_s if call.ttft_s is not None else call.latency_s)
        # What is answered at once never waits, and ends no wait of its tenant's other calls.
        steps = (-1, 1) if first_s > call.sent_s else (0, 0)
        moves.append((first_s, steps[0], call.tenant, service(call) if not call.error else 0))
        moves.append((call.sent_s, steps[1], call.tenant, 0))
    waiting = dict.fromkeys(tenants, 0)
    given = dict.fromkeys(tenants, 0)
    # By how much the first of a pair was ahead since both wait: least and most.
    ahead: dict[tuple[str, str], tuple[int, int]] = {}
    widest = 0
    for _, step, tenant, tokens in sorted(moves):
        if tenant not in waiting:
            continue
        given[tenant] += tokens
        waiting[tenant] += step
        for other in tenants:
            if other == tenant:
                continue
            pair = (min(tenant, other), max(tenant, other))
            now = given[pair[0]] - given[pair[1]]
            if pair in ahead:
                least, most = ahead[pair]
                ahead[pair] = min(least, now), max(most, now)
                widest = max(widest, ahead[pair][1] - ahead[pair][0])
            if not (waiting[tenant] and waiting[other]):
                ahead.pop(pair, None)
            elif pair not in ahead:
                ahead[pair] = now, now
    return float(widest)


def _recognised(runs: Sequence[Run]) -> float | None:
    """The share of calls that the other side put into the right program; None: it never said."""
    rows = [
        Attributed(truth=f"{number}/{call.program}", label=f"{number}/{call.label}")
        for number, run in enumerate(runs)
        for call in run.calls
        if not call.error and call.label
    ]
    return attribution(rows).right_share if rows else None


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known) if known else 0.0


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
