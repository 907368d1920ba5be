"""How many small changes to the code its tests notice: a sample, drawn from a seed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, TypeAlias

from agentsched_bench.chaos.mutant import VARIABLE, sites

#: Rooms, and the tests of each: those that are fast are to notice a change.
_ROOMS: Final = {"agentsched.kernel": "tests/kernel", "agentsched_policies": "tests/policies"}
#: One whose tests take a minute: only where it is asked for.
_SLOW_ROOMS: Final = {"agentsched.proxy": "tests/proxy"}
#: Tests that are asked first, where a module's are not called as it is.
_OWN: Final = {
    "agentsched.kernel.regression": "tests/kernel/test_cost_law.py",
    "agentsched.proxy.access.local": "tests/security/test_gate.py",
    "agentsched.proxy.identity": "tests/proxy/identity",
    "agentsched.proxy.recording": "tests/proxy/test_idempotency.py",
    "agentsched.proxy.taps": "tests/proxy/test_sse.py",
    "agentsched_policies.admit": "tests/policies/test_admit.py",
    "agentsched_policies.order": "tests/policies/test_order.py",
    "agentsched_policies.pin": "tests/policies/test_pins.py",
    "agentsched_policies.place": "tests/policies/test_place.py",
    "agentsched_policies.prefetch": "tests/policies/test_prefetch.py",
    "agentsched_policies.share": "tests/policies/share",
}
_Z: Final = 1.96
_Verdict: TypeAlias = Literal["noticed", "timed out", "survived"]


def mutants(
    *,
    count: int,
    seed: int,
    minutes: float,
    jobs: int = 1,
    limit_s: float = 120.0,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Make changes and run the room's fast tests on each; those that no test noticed.

    The changes are drawn from kernel and policies, or from the modules that `only` names.
    `jobs` changes are tried at a time, each in a process of its own. Those that were not begun
    when `minutes` are over are left out, so the sample is the first of those drawn. A survivor is
    named as `mutant.VARIABLE` takes it, so that it can be tried again. What runs into `limit_s`
    counts as noticed, and is named as well: a busy machine may be the reason.

    Raises:
        ValueError: tests fail without any change; they would seem to notice all of them.
    """
    among = tuple(only) or modules()
    for tests in sorted({tests_of(module)[-1] for module in among}):
        if not _passes(tests, os.environ, limit_s):
            raise ValueError(f"{tests}: fails without any change")
    random = Random(seed)
    places = [(m, n, what) for m in among for n, what in enumerate(sites(_source(m)))]
    drawn = random.sample(places, min(count, len(places)))
    until = time.monotonic() + 60 * minutes
    survivors: list[str] = []
    timed_out: list[str] = []
    tried: dict[str, list[int]] = {}

    def attempt(place: tuple[str, int, str]) -> _Verdict | None:
        return None if time.monotonic() > until else _try(place[0], place[1], limit_s)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for (module, number, what), verdict in zip(drawn, pool.map(attempt, drawn), strict=True):
            if verdict is None:
                continue
            score = tried.setdefault(module, [0, 0])
            score[0] += verdict != "survived"
            score[1] += 1
            if verdict != "noticed":
                found = survivors if verdict == "survived" else timed_out
                found.append(f"{module}:{number} {what}")
                print(f"{verdict}: {found[-1]}", file=sys.stderr, flush=True)
    noticed, total = (sum(score[i] for score in tried.values()) for i in (0, 1))
    return {
        "holds": True,
        "changes_possible": len(places),
        "changes_tried": total,
        "noticed": noticed,
        "score": round(noticed / total, 3) if total else None,
        "score_95": interval(noticed, total),
        "by_module": {module: f"{a} of {b}" for module, (a, b) in sorted(tried.items())},
        "timed_out": timed_out,
        "survivors": survivors,
    }


def modules() -> tuple[str, ...]:
    """All modules of kernel and policies."""
    found = []
    for room in _ROOMS:
        spec = importlib.util.find_spec(room)
        assert spec is not None
        assert spec.origin is not None
        home = Path(spec.origin).parent
        files = [f.relative_to(home).with_suffix("") for f in home.rglob("*.py")]
        found += [".".join((room, *f.parts)) for f in files if f.name != "__init__"]
    return tuple(sorted(found))


def tests_of(module: str) -> tuple[str, ...]:
    """The tests that are to notice a change to a module: its own, then all of its room."""
    rooms = _ROOMS | _SLOW_ROOMS
    room = next(tests for name, tests in rooms.items() if module.startswith(f"{name}."))
    parent, _, name = module.rpartition(".")
    own = [f"{room}/test_{name}.py", _OWN.get(module, ""), _OWN.get(parent, "")]
    return (*(path for path in own if path and Path(path).exists()), room)


def interval(hits: int, total: int) -> tuple[float, float] | None:
    """Where a share lies with 95 % (Wilson's interval); None of nothing."""
    if not total:
        return None
    share, z2 = hits / total, _Z**2 / total
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    return round(middle - half, 3), round(middle + half, 3)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _try(module: str, number: int, limit_s: float) -> _Verdict:
    environment = os.environ | {VARIABLE: f"{module}:{number}"}
    for tests in tests_of(module):
        try:
            if not _passes(tests, environment, limit_s):
                return "noticed"
        except subprocess.TimeoutExpired:
            return "timed out"  # a change that never ends is noticed
    return "survived"


def _passes(tests: str, environment: Mapping[str, str], limit_s: float) -> bool:
    """Whether no fast test fails there."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", "-p", "agentsched_bench.chaos.mutant"]
    done = subprocess.run([*command, tests], env=environment, capture_output=True, timeout=limit_s)
    return done.returncode in (0, 5)  # 5: none of these tests is fast
