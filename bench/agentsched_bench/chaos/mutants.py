"""How many small changes to the code its tests notice: a sample, drawn from a seed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, Final

from agentsched_bench.chaos.mutant import VARIABLE, sites

#: Modules, and the tests that are to notice changes to them.
TARGETS: Final = {
    "agentsched.kernel.pins": ("tests/kernel/test_pins.py",),
    "agentsched.kernel.ready": ("tests/kernel/test_ready.py", "tests/kernel/test_filling.py"),
    "agentsched.kernel.shares": ("tests/kernel/test_shares.py",),
    "agentsched.kernel.places": ("tests/kernel/test_places.py",),
    "agentsched.kernel.bounds": ("tests/kernel/test_bounds.py",),
    "agentsched.kernel.turns": ("tests/kernel/test_turns.py",),
    "agentsched.kernel.slow_start": ("tests/kernel/test_slow_start.py",),
    "agentsched.kernel.regression": (
        "tests/kernel/test_regression.py",
        "tests/kernel/test_cost_law.py",
    ),
    "agentsched.kernel.residency": ("tests/kernel/test_residency.py",),
    "agentsched.kernel.yielding": ("tests/kernel/test_yielding.py",),
    "agentsched.kernel.pressure": ("tests/kernel/test_pressure.py",),
    "agentsched_policies.order.remaining_work": ("tests/policies/test_order.py",),
    "agentsched_policies.order.autellix": ("tests/policies/test_order.py",),
    "agentsched_policies.place.session_affinity": ("tests/policies/test_place.py",),
    "agentsched_policies.place.prefix_aware": ("tests/policies/test_place.py",),
    "agentsched_policies.pin.value": ("tests/policies/test_pins.py",),
    "agentsched_policies.admit.concur": ("tests/policies/test_admit.py",),
    "agentsched_policies.admit.working_set": ("tests/policies/test_working_set.py",),
}


def mutants(*, count: int, seed: int, minutes: float, limit_s: float = 120.0) -> dict[str, Any]:
    """Make changes one at a time and run the module's tests; those that no test noticed."""
    random = Random(seed)
    places = [(m, n, what) for m in TARGETS for n, what in enumerate(sites(_source(m)))]
    drawn = random.sample(places, min(count, len(places)))
    until = time.monotonic() + 60 * minutes
    survivors: list[str] = []
    tried: dict[str, list[int]] = {}
    for module, number, what in drawn:
        if time.monotonic() > until:
            break
        is_noticed = _is_noticed(module, number, limit_s)
        score = tried.setdefault(module, [0, 0])
        score[0] += is_noticed
        score[1] += 1
        if not is_noticed:
            survivors.append(f"{module} {what}")
            print(f"survived: {survivors[-1]}", file=sys.stderr, flush=True)
    noticed, total = (sum(score[i] for score in tried.values()) for i in (0, 1))
    return {
        "holds": True,
        "changes_possible": len(places),
        "changes_tried": total,
        "noticed": noticed,
        "score": round(noticed / total, 3) if total else None,
        "by_module": {module: f"{a} of {b}" for module, (a, b) in sorted(tried.items())},
        "survivors": survivors,
    }


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _is_noticed(module: str, number: int, limit_s: float) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "agentsched_bench.chaos.mutant", *TARGETS[module]]
    environment = os.environ | {VARIABLE: f"{module}:{number}"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return True  # a change that never ends is noticed
    return done.returncode != 0
