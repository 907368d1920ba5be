"""The engine's side of the control endpoints, over an engine that is made up."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from agentsched_adapters.vllm_plugin.wire import XARG_CONVERSATION
from agentsched_bench.vllm_local.fake_plugin import FakePlugin

PROMPT = list(range(200))  # six blocks, and a part of one


async def said(fake: FakePlugin, operation: str, body: Any = None) -> tuple[int, Any]:
    async with TestClient(TestServer(fake.app())) as client:
        method = "GET" if body is None else "POST"
        answer = await client.request(method, f"/v1/agentsched/{operation}", json=body)
        return answer.status, await answer.json()


async def cached(fake: FakePlugin) -> dict[str, int]:
    _, state = await said(fake, "state")
    programs = state["engines"][0]["programs"]
    return {talk: n for program in programs for talk, n in program["conversations"].items()}


@pytest.fixture
def fake() -> FakePlugin:
    """An engine with the plugin that has a step of the conversation `c` in its cache."""
    made = FakePlugin()
    made.step(PROMPT, {XARG_CONVERSATION: "c"})
    assert len(made.host.pins) == 1
    return made


async def test_what_was_in_a_cache_that_is_emptied_is_still_told_of(fake: FakePlugin) -> None:
    """Else who was told that it is there would never hear that it went."""
    fake.host.cache_is_emptied()  # as vLLM is about to do, or to refuse
    assert len(fake.host.pins) == 0
    assert await cached(fake) == {"c": 192}
    fake.host.check()


async def test_a_fault_of_ours_is_none_of_the_request(
    fake: FakePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _ = await said(fake, "release", {"pin": "p", "program": "q"})
    assert status == 400

    def broken(*_: Any) -> int:
        raise ZeroDivisionError("surprise")

    with monkeypatch.context() as patch:
        patch.setattr(fake.host.pins, "release_where", broken)
        status, answer = await said(fake, "release", {"program": "p"})
    assert (status, answer["error"]["code"]) == (500, 500)
    assert not fake.host.is_active
    status, state = await said(fake, "state")
    assert (status, state["engines"][0]["is_active"]) == (200, False)
