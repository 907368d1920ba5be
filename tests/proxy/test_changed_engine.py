"""Another kind of server behind an engine's address is noticed when it comes back."""

from __future__ import annotations

from typing import Any

from agentsched.model import EngineId, EngineReported
from agentsched_adapters.openai_compatible import OpenAiCompatibleEngine
from agentsched_adapters.vllm import VllmEngine

E0 = EngineId("e0")


async def test_a_detected_engine_is_detected_anew_when_it_returns(
    start: Any, upstream: Any
) -> None:
    pages = {
        "/metrics": b"# x\nvllm:num_requests_running 0\n",
        "/version": b'{"version": "0.32.0"}',
    }
    engines = [{"url": upstream.url, "id": "e0", "kind": "auto"}]
    async with start(engines=engines) as proxy:
        fleet = proxy.gateway.fleet
        assert type(fleet.engine(E0)) is OpenAiCompatibleEngine
        upstream.pages.update(pages)
        await upstream.stop()
        await proxy.turns.until(lambda: not fleet.members[E0].is_up)
        await upstream.start()
        seen = len(proxy.turns.events(EngineReported))
        await proxy.turns.until(lambda: len(proxy.turns.events(EngineReported)) > seen)
        assert type(fleet.engine(E0)) is VllmEngine
        assert (await proxy.chat("hi")).status_code == 200
