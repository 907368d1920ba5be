"""What an engine with the plugin says of itself, as tests that stand in for one need it."""

from __future__ import annotations

from typing import Any

from agentsched_adapters.vllm_plugin.wire import EngineState, State


def plugin_state(**fields: Any) -> State:
    """One idle engine with nothing pinned, but for these fields of its."""
    idle: dict[str, Any] = {
        "engine": "1",
        "plugin": "0",
        "vllm": "0.32.0",
        "is_active": True,
        "failures": {},
        "block_size": 16,
        "blocks": 100,
        "free_blocks": 100,
        "pinned_blocks": 0,
        "reclaimable_blocks": 0,
        "pinned_blocks_max": 80,
        "running": 0,
        "waiting": 0,
    }
    return State(engines=(EngineState(**idle | fields),))
