"""What an engine with the plugin is told to keep until the proxy has read the answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from live import eventually
from plugin_state import plugin_state
from proxy_upstream import Upstream

from agentsched.model import EngineLost, EngineReported
from agentsched.proxy import fleet


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
        "/v1/agentsched/state?only=cached": state,
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


async def test_a_plugin_that_was_not_heard_at_first_is_asked_again(
    start: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine was busy when it was probed, and is not lost for that."""
    monkeypatch.setattr(fleet, "_LOOKS_PER_DETECTION", 2)
    upstream.pages = {
        "/metrics": b"# x\nvllm:num_requests_running 0\n",
        "/version": b'{"version": "0.32.0"}',
    }
    engines = [{"url": upstream.url, "id": "e0", "kind": "vllm"}]
    async with start(engines=engines, upstream={"probe_interval": "10ms"}) as proxy:
        [engine] = proxy.scheduler.engines.values()
        assert not engine.capabilities.pins
        state = msgspec.json.encode(plugin_state())
        upstream.pages |= {f"/v1/agentsched/state?{n}": state for n in ("brief=1", "only=cached")}
        await proxy.turns.until(lambda: engine.capabilities.pins)
        assert not proxy.turns.events(EngineLost)


async def test_nobody_waits_behind_whom_it_is_asked_again(
    start: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits its turn there would keep the looks from going on."""
    monkeypatch.setattr(fleet, "_LOOKS_PER_DETECTION", 1)
    page = b"# x\nvllm:num_requests_running 9\nvllm:num_requests_waiting %d\n"
    upstream.pages = {"/metrics": page % 3, "/version": b'{"version": "0.32.0"}'}
    engines = [{"url": upstream.url, "id": "e0", "kind": "vllm"}]
    async with start(engines=engines, upstream={"probe_interval": "10ms"}) as proxy:
        asked = len(upstream.exchanges)
        seen = len(proxy.turns.events(EngineReported))
        await proxy.turns.until(lambda: len(proxy.turns.events(EngineReported)) > seen + 3)
        assert len(upstream.exchanges) == asked
        upstream.pages["/metrics"] = page % 0
        await eventually(lambda: len(upstream.exchanges) > asked)
