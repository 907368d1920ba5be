"""What the plugin takes of an engine's thread where the pool is large; run by hand, no test.

    python tests/adapters/vllm_plugin/large_pool.py

A pool of 26,000 blocks. The state of 65 conversations of 1,600 blocks, of which 1,200 are common to
all: as many blocks as are remembered (four times the pool). And one block for a request that runs,
out of three quarters of the pool that 100 pins hold: while each pin has blocks of its own, and when
most have but a common beginning of 970 left. No model, and no vLLM.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

from agentsched.model import Nanos, seconds
from agentsched_adapters.vllm_plugin.blocks import Keeper
from agentsched_adapters.vllm_plugin.control import serve
from agentsched_bench.vllm_local.fake_plugin import FakePlugin, _Block

SIZE = 16
POOL = 26_000
PINS = 100
COMMON = 970
ROUNDS = 200


def remembering() -> FakePlugin:
    """An engine in which many conversations ended a step lately."""
    plugin = FakePlugin(blocks=POOL + 1, block_size=SIZE)
    common = [named(_Block(-1 - at), "common", at) for at in range(1_200)]
    for name in map(str, range(65)):
        own = [named(_Block(-1 - at), name, at) for at in range(1_200, 1_600)]
        end(plugin, name, common + own, ttl=Nanos(0))
    return plugin


def pinning(common: int) -> tuple[FakePlugin, Any]:
    """An engine whose pool is full, and a request that runs in it."""
    plugin = FakePlugin(blocks=POOL + 1, block_size=SIZE)
    pool = plugin._manager.block_pool
    head = [named(block, "common", at) for at, block in enumerate(pool.get_new_blocks(common))]
    each = (POOL * 3 // 4 - common) // PINS
    for name in map(str, range(PINS)):
        own = pool.get_new_blocks(each)
        for at, block in enumerate(own):
            named(block, name, common + at)
        pool.touch(head)
        end(plugin, name, head + own, ttl=seconds(600))
        pool.free_blocks(reversed(head + own))
    pool.free_blocks(reversed(head))
    request, _ = plugin.begin([1])
    plugin._manager.allocate_slots(request, pool.get_num_free_blocks())
    return plugin, request


def named(block: _Block, whose: str, at: int) -> _Block:
    """A block that is in the cache, and ends the token `SIZE * (at + 1)`."""
    block.block_hash, block.block_hash_num_tokens = (whose, at), SIZE * (at + 1)
    return block


def end(plugin: FakePlugin, name: str, blocks: list[_Block], *, ttl: Nanos) -> None:
    """A step with these blocks ends."""
    plugin._manager.held[name] = blocks
    keeper = Keeper(pin=name, conversation=name, value=float(len(plugin.host.pins)))
    request = SimpleNamespace(request_id=name)
    plugin.host.pins.hold_request(keeper, request, ttl=ttl, now=plugin.host.now())
    del plugin._manager.held[name]


def took(act: Any, rounds: int = ROUNDS) -> float:
    """Milliseconds, the median."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        act()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    """Print all of it."""
    engine = remembering()
    for asked in ("", "cached", "brief"):
        ms = took(partial(serve, engine.host, engine, "state", asked), 20)
        print(f"state, {asked or 'all':8} {ms:6.2f} ms")
    for common in (0, COMMON):
        plugin, request = pinning(common)
        allocate, pins = plugin._manager.allocate_slots, plugin.host.pins
        while common and pins.held > 5_000:
            allocate(request, 500)
        print(f"one block of {pins.held:6,} {took(partial(allocate, request, 1)):6.2f} ms")


if __name__ == "__main__":
    main()
