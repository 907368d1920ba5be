"""What vLLM's real scheduler costs a step, as it is and with the plugin; run by vLLM's Python.

    python cost.py

Eight requests decode side by side, end together, and others come: time of the processor for
`schedule` and `update_from_output`, in microseconds, the median of 60 rounds. No model runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lab import Lab

_ROUNDS = 60
_SIDE_BY_SIDE = 8
_PROMPT = 250
_ANSWER = 24
#: Settings of the plugin, and whether the engine is asynchronous.
_ARMS: dict[str, tuple[dict[str, str] | None, bool]] = {
    "stock": (None, False),
    "stock, asynchronous": (None, True),
    "plugin": ({"grace": "0s"}, False),
    "plugin with its grace": ({"grace": "2s"}, False),
}


def measure(settings: dict[str, str] | None, *, is_async: bool) -> dict[str, float]:
    """Steps in which all decode, and those in which all end."""
    lab = Lab(
        settings,
        blocks=2_600,
        context_max=2_000,
        running_max=16,
        step_tokens=2_048,
        is_async=is_async,
    )
    if lab.host is not None:
        lab.host._clock = time.monotonic_ns
    costs: dict[str, list[int]] = {"decode_us": [], "end_us": []}
    for number in range(_ROUNDS):
        for place in range(_SIDE_BY_SIDE):
            key = f"r{number}-{place}"
            prompt = [100 + hash((number, place, at)) % 2_800 for at in range(_PROMPT)]
            lab.add(key, prompt, tokens=_ANSWER, xargs={"agentsched_conversation": key})
        while lab.scheduler.has_unfinished_requests():
            before = len(lab.scheduler.requests)
            began = time.thread_time_ns()
            scheduled = lab.step()
            took = time.thread_time_ns() - began
            if len(lab.scheduler.requests) < before:
                costs["end_us"].append(took)
            elif set(scheduled.values()) == {1} and len(scheduled) == _SIDE_BY_SIDE:
                costs["decode_us"].append(took)
    return {name: round(statistics.median(found) / 1e3, 1) for name, found in costs.items()}


def main() -> None:
    told = {name: measure(s, is_async=is_async) for name, (s, is_async) in _ARMS.items()}
    print(json.dumps({"command": "python tests/adapters/vllm_plugin/cost.py", "arms": told}))


if __name__ == "__main__":
    main()
