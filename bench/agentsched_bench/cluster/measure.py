"""Figures from what agents saw, and from what the databases and engines say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isinf
from typing import Any

from agentsched_bench.cluster.load import HUNG_S, Call, Seen
from agentsched_bench.workload.statistics import quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Turns that follow another of their program, and how many got the same program again."""

    followed: int
    kept: int
    #: Likewise, of those that another replica answered than the turn before.
    switched: int
    kept_switched: int


def figures(
    seen: Seen, *, faults: Sequence[tuple[float, str]], knows_programs: bool
) -> dict[str, Any]:
    """Everything that a result tells of one run."""
    calls = seen.calls
    failed = [c for c in calls if c.error]
    first = faults[0][0] if faults else None
    last = faults[-1][0] if faults else None
    result: dict[str, Any] = {
        "programs": seen.programs,
        "programs_completed": seen.completed,
        "calls": len(calls),
        "calls_failed": len(failed),
        "failed_whole": sum(not c.streams for c in failed),
        "failed_streams": sum(c.streams for c in failed),
        "failed_by_kind": dict(Counter(c.error for c in failed).most_common()),
        "streams_cut": sum(len(c.cuts) for c in calls),
        "cut_by_kind": dict(Counter(cut for c in calls for cut in c.cuts).most_common()),
        "turns_asked_again": sum(c.tries > 1 for c in calls),
        "hung": sum(c.ended - c.began > HUNG_S for c in calls),
        "attempts": len(seen.attempts),
        "attempts_by_outcome": dict(Counter(a.outcome for a in seen.attempts).most_common()),
        "latency_s": {
            name: _quantiles(c.ended - c.began for c in calls if not c.error and test(c))
            for name, test in _spans(first, last).items()
        },
        "longest_silence_s": round(longest_silence(calls, since=first or 0.0), 2),
    }
    if first is not None:
        answered_s = first_answer(calls, after=first)
        # Nobody ever had one: JSON knows no infinity.
        result["first_answer_after_s"] = None if isinf(answered_s) else round(answered_s, 2)
    if knows_programs:
        result["recognition"] = {
            "with_ids": _shown(recognition(calls, has_ids=True)),
            "without_ids": _shown(recognition(calls, has_ids=False)),
        }
        result["programs_merged"] = merged(calls)
    result["tokens_by_tenant"] = dict(_sums((c.tenant, c.tokens) for c in calls))
    return result


def recognition(calls: Iterable[Call], *, has_ids: bool) -> Recognition:
    """How often a turn was known as its program's next."""
    by_program: defaultdict[int, list[Call]] = defaultdict(list)
    for call in calls:
        if call.has_ids is has_ids and call.label:
            by_program[call.program].append(call)
    followed = kept = switched = kept_switched = 0
    for turns in by_program.values():
        turns.sort(key=lambda c: c.step)
        for before, after in pairwise(turns):
            is_kept = before.label == after.label
            followed += 1
            kept += is_kept
            if before.replica != after.replica:
                switched += 1
                kept_switched += is_kept
    return Recognition(followed=followed, kept=kept, switched=switched, kept_switched=kept_switched)


def merged(calls: Iterable[Call]) -> int:
    """Programs of ours that two runs were taken for: none may be."""
    runs: defaultdict[str, set[int]] = defaultdict(set)
    for call in calls:
        if call.label:
            runs[call.label].add(call.program)
    return sum(len(found) > 1 for found in runs.values())


def longest_silence(calls: Iterable[Call], *, since: float) -> float:
    """The longest time after `since`, until the load's end, in which no call of anybody got its
    answer."""
    known = [call for call in calls if call.ended >= since]
    answered = sorted(call.ended for call in known if not call.error)
    # Where nobody has an answer any more, the last to give up says how long that went on.
    marks = [since, *answered, max((call.ended for call in known), default=since)]
    return max(after - before for before, after in pairwise(marks))


def first_answer(calls: Iterable[Call], *, after: float) -> float:
    """Seconds until somebody had the answer to a call that was made after a moment."""
    ends = [c.ended for c in calls if not c.error and c.began >= after]
    return min(ends, default=float("inf")) - after


def shares(calls: Iterable[Call], *, begin: float, end: float) -> dict[str, float]:
    """Each tenant's part of the tokens served in a span of time, by calls that ended in it."""
    served = _sums((c.tenant, c.tokens) for c in calls if begin <= c.ended < end)
    total = sum(served.values())
    return {tenant: round(n / total, 3) for tenant, n in sorted(served.items())} if total else {}


def _spans(first: float | None, last: float | None) -> dict[str, Any]:
    if first is None or last is None:
        return {"all": lambda c: True}
    return {
        "before": lambda c: c.ended < first,
        "during": lambda c: c.ended >= first and c.began <= last,
        "after": lambda c: c.began > last,
    }


def _quantiles(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {
        name: round(quantile(ordered, part), 2)
        for name, part in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
    }


def _shown(found: Recognition) -> dict[str, int]:
    return {name: getattr(found, name) for name in found.__slots__}


def _sums(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for name, count in pairs:
        sums[name] += count
    return sums
