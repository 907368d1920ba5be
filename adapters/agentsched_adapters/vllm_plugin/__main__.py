"""What the plugin costs an engine step, in this Python: prints JSON.

    python -m agentsched_adapters.vllm_plugin [WAITING]

The queue holds WAITING requests (1,000) of as many programs; in each step four leave, four end and
four new ones come, as in a busy engine. `step_us` is ordering alone, which the budget of 1 ms is
about; `events_us` is the core's part in the arrivals and ends of one step. Both are time of the
processor, so that what else a machine does is not in them.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from agentsched.model import Capabilities, Instant
from agentsched_adapters.vllm_plugin.caller import Caller
from agentsched_adapters.vllm_plugin.core import Core
from agentsched_adapters.vllm_plugin.queue import ProgramQueue
from agentsched_adapters.vllm_plugin.settings import PluginSettings

_STEPS: Final = 400
_CHURN: Final = 4
_STEP_NS: Final = 10_000_000
_ORDERS: Final = ("fcfs", "program-fcfs", "remaining-work")


@dataclass(slots=True)
class _Request:
    """As much of a vLLM request as the core reads."""

    request_id: str
    num_prompt_tokens: int = 2_000
    num_output_tokens: int = 100
    max_tokens: int = 200
    block_hashes: list[bytes] = field(default_factory=list)


def measure(order: str, waiting: int) -> dict[str, Any]:
    """One order policy under churn."""
    settings = PluginSettings(order=order)
    core = Core(settings, capabilities=Capabilities(block_size=16, kv_tokens=400_000, pins=True))
    now = Instant(1)
    failures: list[str] = []
    queue = ProgramQueue(
        rank=core.rank,
        failed=failures.append,
        wait_max=settings.wait_max,
        bypasses_max=settings.bypasses_max,
        budget=settings.order_budget,
        now=lambda: now,
    )
    callers: dict[str, Caller] = {}

    def come(request: _Request) -> None:
        name = f"p{int(request.request_id) % waiting}"
        callers[request.request_id] = Caller(program=name, conversation=name, tenant="")
        core.arrived(request, callers[request.request_id], now=now)
        queue.add_request(request)

    for number in range(waiting):
        come(_request(number))
    steps, events, ordered = [], [], 0
    for step in range(_STEPS):
        now = Instant(now + _STEP_NS)
        began = time.thread_time_ns()
        queue.refresh(now=now)
        steps.append(time.thread_time_ns() - began)
        ordered += queue.is_ordered
        gone = [queue.pop_request() for _ in range(_CHURN)]
        fresh = [_request(waiting + step * _CHURN + number) for number in range(_CHURN)]
        began = time.thread_time_ns()
        for request in gone:
            core.finished(request, callers.pop(request.request_id), cached_tokens=0, now=now)
        queue.world_changed()
        for request in fresh:
            come(request)
        events.append(time.thread_time_ns() - began)
    assert not failures, failures
    return {
        "order": order,
        "step_us": _spread(steps),
        "events_us": _spread(events),
        "ordered_share": round(ordered / _STEPS, 3),
        "fallbacks": queue.fallbacks_total,
    }


def _request(number: int) -> _Request:
    """One of 1,000 to 2,000 tokens, with the hashes that vLLM has made by then."""
    hashes = [number.to_bytes(16, "big") + at.to_bytes(16, "big") for at in range(125)]
    return _Request(f"{number}", 1_000 + number % 1_000, block_hashes=hashes)


def _spread(values: list[int]) -> dict[str, float]:
    ordered = sorted(values[10:])  # the first ones rank everybody
    return {
        "mean": round(sum(ordered) / len(ordered) / 1e3, 1),
        "p50": round(ordered[len(ordered) // 2] / 1e3, 1),
        "p99": round(ordered[int(len(ordered) * 0.99)] / 1e3, 1),
        "max": round(ordered[-1] / 1e3, 1),
    }


def main() -> None:
    waiting = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    result = {
        "command": f"python -m agentsched_adapters.vllm_plugin {waiting}",
        "python": platform.python_version(),
        "waiting": waiting,
        "steps": _STEPS,
        "orders": [measure(order, waiting) for order in _ORDERS],
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
