"""What a refusal costs the proxy, beside an answer: CPU of its process, and how soon it comes.

A queue is filled with calls that no engine ends, so that each further one is refused at the door;
then the same calls are made of a proxy whose engine answers at once. Each call is a new program's
first: what a flood is made of. Connections are kept alive on both sides.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentsched_bench.chaos.dialects import MODEL
from agentsched_bench.chaos.load import Rig, Tally, rig

#: Bytes of prompt in one call.
_PROMPTS: Final = {"0.1KB": 100, "8KB": 8_000, "64KB": 64_000}
_MESSAGE_CHARS: Final = 800
_RUNNING: Final = 8
_CLIENTS: Final = 4
_WARM: Final = 200
#: Requests for each one that can be answered, in a flood.
_FLOOD: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What calls of one shape cost, in the mean and the median."""

    calls: int
    cpu_us: float
    p50_ms: float
    p99_ms: float


async def refusals(*, calls: int = 2_000, waiting: int = 64) -> dict[str, Any]:
    """CPU a call, refused and answered, by the size of its prompt; `waiting` steps are held.

    `holds`: a refusal costs less than an answer, and no call ended otherwise. `answers_in_a_flood`:
    so many a second can be given by one core while nine times as many requests are refused.
    """
    limits = f'[limits]\nready_steps_max = {waiting}\nmax_wait = "600s"\n'
    limits += f"running_steps_per_engine_max = {_RUNNING}\n"
    async with rig(slots=_RUNNING, token_s=60.0, settings=f'log_level = "error"\n{limits}') as full:
        parked = await _fill(full, waiting)
        try:
            refused = await _each(full, calls, "status 429")
        finally:
            for call in parked:
                call.cancel()
            await asyncio.gather(*parked, return_exceptions=True)
    async with rig(slots=256, token_s=0.0, settings='log_level = "error"\n') as idle:
        answered = await _each(idle, calls, "answered")
    shares = {name: refused[name].cpu_us / answered[name].cpu_us for name in _PROMPTS}
    return {
        "holds": max(shares.values()) < 1,
        "calls": calls,
        "waiting": waiting,
        "by_prompt": {
            name: {
                "refused": _shown(refused[name]),
                "answered": _shown(answered[name]),
                "refusal_of_answer": round(shares[name], 3),
                "answers_in_a_flood": round(
                    1e6 / (answered[name].cpu_us + (_FLOOD - 1) * refused[name].cpu_us)
                ),
            }
            for name in _PROMPTS
        },
    }


async def _fill(proxy: Rig, waiting: int) -> list[asyncio.Task[None]]:
    """Calls that stay, until newcomers are refused at the door."""
    tally = Tally()
    calls: list[asyncio.Task[None]] = []
    while "status 429" not in tally.ends:
        batch = [
            asyncio.create_task(proxy.call(tally, f"parked-{len(calls) + number}"))
            for number in range(max(1, waiting // 8))
        ]
        calls += batch
        await asyncio.wait(batch, timeout=0.2)
    return calls


async def _each(proxy: Rig, calls: int, end: str) -> dict[str, Cost]:
    found = {}
    for name, size in _PROMPTS.items():
        await _calls(proxy, f"warm-{name}", size, _WARM, end)
        before = _cpu_s(proxy.pid)
        took = await _calls(proxy, name, size, calls, end)
        cpu_s = _cpu_s(proxy.pid) - before
        found[name] = Cost(
            calls=calls,
            cpu_us=1e6 * cpu_s / calls,
            p50_ms=1e3 * took[len(took) // 2],
            p99_ms=1e3 * took[min(len(took) - 1, int(0.99 * len(took)))],
        )
    return found


async def _calls(proxy: Rig, name: str, size: int, count: int, end: str) -> list[float]:
    """So many calls, a few at a time; seconds, sorted. Each must end as is said."""
    numbers = iter(range(count))
    took: list[float] = []

    async def client(call: Callable[[bytes], Awaitable[str]]) -> None:
        for number in numbers:
            began = time.monotonic()
            was = await call(_body(f"{name}-{number}", size))
            took.append(time.monotonic() - began)
            assert was == end, f"a call ended with {was}, not {end}"

    async def connected() -> None:
        async with proxy.connection() as call:
            await client(call)

    await asyncio.gather(*(connected() for _ in range(_CLIENTS)))
    return sorted(took)


def _body(name: str, size: int) -> bytes:
    """A new program's prompt: a few messages, none like another's."""
    parts = max(1, size // _MESSAGE_CHARS)
    texts = [f"{name} {part} ".ljust(size // parts, "x") for part in range(parts)]
    messages = [{"role": "user", "content": text} for text in texts]
    return json.dumps({"model": MODEL, "messages": messages}).encode()


def _cpu_s(pid: int) -> float:
    """CPU of a process and all its threads so far, to the nanosecond (Linux)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _shown(cost: Cost) -> dict[str, float]:
    return {
        "cpu_us": round(cost.cpu_us, 1),
        "p50_ms": round(cost.p50_ms, 2),
        "p99_ms": round(cost.p99_ms, 2),
    }
