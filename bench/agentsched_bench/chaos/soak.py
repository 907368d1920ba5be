"""Seed after seed: what was run, what was injected, what did not hold."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from typing import Any

from agentsched_bench.chaos.faults import STORM
from agentsched_bench.chaos.world import Outcome, run, shape_of

#: Broken seeds that are told of one by one.
_TOLD_MAX = 20


def simulate(
    *,
    first: int = 0,
    seeds: int | None = 200,
    minutes: float = 60.0,
    profile: str = "agentsched",
    scale: float = 1.0,
) -> dict[str, Any]:
    """Run seeds until they or the time are used up; the sums, and every seed that did not hold.

    The soak's own process is watched as well: descriptors and live objects at its start and end.
    """
    began = time.monotonic()
    ends: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    broken: dict[int, list[str]] = {}
    done, turns, virtual_s, longest_s = 0, 0, 0.0, 0.0
    pins: Counter[str] = Counter()
    shares: Counter[str] = Counter()
    weather = STORM.scaled(scale)
    run(first, shape=shape_of(first, profile=profile), weather=weather)  # loads what is loaded once
    before = _held()
    while (seeds is None or done < seeds) and time.monotonic() - began < 60 * minutes:
        seed = first + done
        outcome = run(seed, shape=shape_of(seed, profile=profile), weather=weather)
        done += 1
        turns, virtual_s = turns + outcome.turns, virtual_s + outcome.virtual_s
        longest_s = max(longest_s, outcome.longest_s)
        ends.update(outcome.ends)
        kinds.update(outcome.kinds)
        faults.update(outcome.faults)
        pins.update(outcome.pins)
        shares.update(windows=outcome.share_windows, turns=outcome.share_turns)
        if outcome.violations:
            broken[outcome.seed] = outcome.violations[:8]
            _tell(outcome)
    return {
        "holds": not broken,
        "seeds": done,
        "first": first,
        "profile": profile,
        "scale": scale,
        "seconds": round(time.monotonic() - began, 1),
        "virtual_hours": round(virtual_s / 3600, 2),
        "turns_of_the_scheduler": turns,
        "calls": sum(ends.values()),
        "longest_call_s": round(longest_s, 1),
        "kinds": dict(sorted(kinds.items())),
        "ends": dict(ends.most_common()),
        "pins": dict(sorted(pins.items())),
        "shares": dict(shares),
        "faults": dict(faults.most_common()),
        "faults_total": sum(faults.values()),
        "held_before": before,
        "held_after": _held(),
        "broken": {str(seed): broken[seed] for seed in list(broken)[:_TOLD_MAX]},
    }


def _held() -> dict[str, int]:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else -1
    return {"descriptors": descriptors, "objects": len(gc.get_objects())}


def _tell(outcome: Outcome) -> None:
    print(f"seed {outcome.seed}: {outcome.violations[:3]}", file=sys.stderr, flush=True)
