"""`python -m agentsched_bench.fuzz`: fire at a proxy for a while, seed by seed, and count.

The tests in tests/fuzz try a few inputs and check more; this is for long runs. It stops at the
first input that does harm, and prints its kind and seed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

import uvloop

from agentsched.config import Config
from agentsched_bench.fuzz.mangle import Mangler
from agentsched_bench.fuzz.nasty import NastyEngine, running_nasty
from agentsched_bench.fuzz.rig import Rig, check_shape, rigged, until
from agentsched_bench.fuzz.twist import GOOD, Twister

_CONFIG: Final = {
    "port": 0,
    "http": {
        "body_bytes_max": 4 << 20,
        "header_timeout": "200ms",
        "body_timeout": "2s",
        "keepalive_timeout": "200ms",
    },
    "upstream": {
        "first_byte_timeout": "200ms",
        "idle_timeout": "200ms",
        "probe_interval": "200ms",
    },
}

#: Fires one input and says what came back.
Shot = Callable[[Rig, NastyEngine, random.Random], Awaitable[str]]


async def request(rig: Rig, nasty: NastyEngine, dice: random.Random) -> str:
    """A request that is nearly right; the engine answers well."""
    path = dice.choice(sorted(GOOD))
    answer = await rig.ask(Twister(dice).request(path).wire())
    check_shape(path, answer)
    return str(answer.status)


async def noise(rig: Rig, nasty: NastyEngine, dice: random.Random) -> str:
    """Bytes that are nearly HTTP."""
    pieces = Mangler(dice).pieces()
    came = await rig.throw(pieces)
    assert came.is_closed
    is_head = b"".join(pieces).lstrip(b"\r\n").startswith(b"HEAD ")
    answers = came.answers("HEAD" if is_head else "GET")
    return str(answers[0].status) if answers else "none"


async def answer(rig: Rig, nasty: NastyEngine, dice: random.Random) -> str:
    """A good request, and an engine that answers anything."""
    path = dice.choice(sorted(GOOD))
    nasty.scripts["odd"] = Mangler(dice).answer()
    good = Twister(dice, twists_max=0).request(path)
    came = await rig.throw([good.wire(script="odd")])
    assert came.is_closed
    answers = came.answers()
    assert all(b"internal_error" not in one.body for one in answers)
    return str(answers[0].status) if answers else "none"


SHOTS: Final[dict[str, Shot]] = {"request": request, "noise": noise, "answer": answer}


async def fire(*, seed: int, span_s: float) -> Counter[str]:
    """Fire all kinds in turn until the time is up; counts by kind and status.

    Raises:
        AssertionError: an input did harm; kind and seed have been printed.
    """
    counts: Counter[str] = Counter()
    ends = time.monotonic() + span_s
    async with AsyncExitStack() as stack:
        nasty = await stack.enter_async_context(running_nasty())
        engines = [{"url": nasty.url, "kind": "openai"}]
        rig = await stack.enter_async_context(
            rigged(Config.model_validate({**_CONFIG, "engines": engines}))
        )
        while time.monotonic() < ends:
            for kind, shot in SHOTS.items():
                try:
                    counts[f"{kind} {await shot(rig, nasty, random.Random(seed))}"] += 1
                    await rig.check()
                    assert not nasty.unsound, nasty.unsound
                except Exception:
                    print(f"{kind} with seed {seed} did harm")
                    raise
            seed += 1
        await until(lambda: bool(rig.gateway.fleet.up()))
        await rig.converse()
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="agentsched_bench.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="where to begin")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to fire")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        counts = runner.run(fire(seed=given.seed, span_s=given.seconds))
    for name, count in sorted(counts.items()):
        print(f"{name:16} {count:7}")
    print(f"{'all':16} {counts.total():7}")


if __name__ == "__main__":
    main()
