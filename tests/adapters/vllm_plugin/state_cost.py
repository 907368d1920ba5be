"""What answering `GET /v1/agentsched/state` takes of an engine's thread: run by hand, no test.

    python tests/adapters/vllm_plugin/state_cost.py

65 conversations of 1,600 blocks, of which 1,200 are common to all: as many blocks as a pool of
26,000 remembers (four times its own), all of them in the cache. No model, and no vLLM.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

from agentsched_adapters.vllm_plugin.control import serve
from agentsched_bench.vllm_local.fake_plugin import FakePlugin, _Block

SIZE = 16


def remembering() -> FakePlugin:
    """An engine in which these conversations ended a step lately."""
    plugin = FakePlugin(blocks=26_001, block_size=SIZE)
    common = [cached("common", number, at=number) for number in range(1_200)]
    for name in map(str, range(65)):
        blocks = common + [cached(name, number, at=1_200 + number) for number in range(400)]
        plugin._manager.held[name] = blocks
        request = SimpleNamespace(request_id=name)
        plugin.host.pins.remember_request(name, request, program="p", tenant="t")
    return plugin


def cached(whose: str, number: int, *, at: int) -> _Block:
    """A block that is in the cache, and ends the token `SIZE * (at + 1)`."""
    return _Block(
        block_id=hash((whose, number)),
        block_hash=(whose, number),
        block_hash_num_tokens=SIZE * (at + 1),
    )


def main() -> None:
    """Print the least of twenty rounds each."""
    plugin = remembering()
    remembered = plugin.host.pins._past_blocks
    for asked in ("", "cached", "brief"):
        took = []
        for _ in range(20):
            began = time.perf_counter()
            serve(plugin.host, plugin, "state", asked)
            took.append(time.perf_counter() - began)
        print(f"{asked or 'all':6} {1e3 * min(took):6.2f} ms, {remembered:,} blocks remembered")


if __name__ == "__main__":
    main()
