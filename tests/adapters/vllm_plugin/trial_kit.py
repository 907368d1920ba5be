"""What trials are made of: see `trials`."""

from __future__ import annotations

from collections.abc import Callable

from lab import BLOCK_SIZE, Lab

from agentsched.model import Nanos

TRIALS: list[Callable[[], None]] = []
LONG = {"grace": "600s", "budget": "1.0", "tenant_budget": "1.0"}


def trial(function: Callable[[], None]) -> Callable[[], None]:
    TRIALS.append(function)
    return function


def words(seed: int, blocks: int) -> list[int]:
    return [100 + (seed * 997 + i * 31) % 2_800 for i in range(blocks * BLOCK_SIZE)]


def of(conversation: str, **more: object) -> dict[str, object]:
    return {"agentsched_conversation": conversation, "agentsched_program": conversation, **more}


def seconds(value: float) -> Nanos:
    return Nanos(round(value * 1e9))


def flood(lab: Lab, count: int = 8, blocks: int = 12) -> None:
    """Other traffic that nobody will come back to, more than the pool holds."""
    for index in range(count):
        lab.add(f"flood{index}-{lab.now_ns}", words(500 + index, blocks), tokens=2)
        lab.run()


def served(lab: Lab) -> list[str]:
    """The requests in the order in which they end."""
    order: list[str] = []
    while lab.scheduler.has_unfinished_requests():
        before = set(lab.scheduler.requests)
        lab.step()
        order += sorted(before - set(lab.scheduler.requests))
        lab.check()
    return order
