"""What an engine with the plugin is told to keep until the proxy has read the answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from plugin_state import plugin_state
from proxy_upstream import Upstream


@pytest.mark.parametrize(
    ("policy", "is_bridged"), [({"name": "never"}, False), ({"name": "fixed"}, True)]
)
async def test_what_no_policy_will_keep_is_not_kept_for_a_moment_either(
    start: Any, upstream: Upstream, policy: Any, is_bridged: bool
) -> None:
    """Blocks that are held for nothing change the order in which the engine evicts the others."""
    state = msgspec.json.encode(plugin_state())
    upstream.pages = {
        "/metrics": b"# x\nvllm:num_requests_running 0\n",
        "/version": b'{"version": "0.32.0"}',
        "/v1/agentsched/state?brief=1": state,
        "/v1/agentsched/state?brief=0": state,
    }
    engines = [{"url": upstream.url, "id": "e0", "kind": "vllm"}]
    async with start(engines=engines, policies={"pin": policy}) as proxy:
        [engine] = proxy.scheduler.engines.values()
        assert engine.capabilities.pins
        upstream.exchanges.clear()  # what the probe tried
        assert (await proxy.chat("hi")).status_code == 200
        told = json.loads(upstream.exchanges[0].body)["vllm_xargs"]
    assert told["agentsched_conversation"]
    assert ("agentsched_grace_s" not in told) == is_bridged
