"""The scheduling core inside the engine, by itself: what it is told of a request."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentsched.model import Capabilities, Instant, StepId
from agentsched_adapters.vllm_plugin.caller import Caller
from agentsched_adapters.vllm_plugin.core import Core
from agentsched_adapters.vllm_plugin.settings import PluginSettings


@dataclass
class Request:
    """One of ten hashes, as vLLM makes them of every four tokens."""

    request_id: str = "r"
    num_prompt_tokens: int = 42
    max_tokens: int = 9
    block_hashes: list[bytes] = field(default_factory=lambda: [bytes([n] * 16) for n in range(10)])


def test_beginnings_of_a_prompt_are_as_long_as_its_hashes_say() -> None:
    """Where groups of layers have blocks of several lengths, hashes are finer than blocks."""
    capabilities = Capabilities(block_size=8, kv_tokens=4_000, pins=True)
    core = Core(PluginSettings(order="fcfs"), capabilities=capabilities, hash_block_size=4)
    caller = Caller(program="p", conversation="c", tenant="")
    core.arrived(Request(), caller, now=Instant(1))
    step = core._scheduler.steps[StepId("r")]
    assert [prefix.tokens for prefix in step.prefixes] == [16, 32, 40]
    core.check()
