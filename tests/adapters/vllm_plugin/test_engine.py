"""The plugin in a real vLLM server, alone and with the proxy in front of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentsched.config import Config, EngineConfig
from agentsched.model import EngineId
from agentsched.proxy.serve import running
from agentsched_adapters.vllm import VllmEngine
from agentsched_bench.vllm_local import LocalVllm, LocalVllmConfig

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "a key of the engine"
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def config(vllm_python: Path) -> LocalVllmConfig:
    return LocalVllmConfig(
        python=vllm_python,
        blocks=257,
        max_model_len=4_096,
        plugin=True,
        plugin_settings=(("order", "program-fcfs"), ("grace", "3s")),
        dev_routes=True,
        extra_args=("--api-key", KEY),
    )


@pytest.fixture
def url(vllm_slot: Any, config: LocalVllmConfig) -> str:
    return str(vllm_slot.url(config))


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=120, headers=HEADERS) as client:
        yield client


def words(name: str, count: int) -> list[int]:
    noise = hashlib.shake_128(name.encode()).digest(2 * count)
    return [100 + int.from_bytes(noise[i : i + 2], "big") % 3_900 for i in range(0, 2 * count, 2)]


async def cached(
    http: httpx.AsyncClient, prompt: list[int], conversation: str = "", **fields: Any
) -> int:
    """Complete a prompt; how much of it was in the cache."""
    xargs = {"agentsched_conversation": conversation} if conversation else {}
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
    answer = await http.post("/v1/completions", json=body | {"vllm_xargs": xargs} | fields)
    assert answer.status_code == 200, answer.text
    tokens: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def flood(http: httpx.AsyncClient) -> None:
    for index in range(5):
        await cached(http, words(f"flood {index}", 3_000))


async def state(http: httpx.AsyncClient) -> dict[str, Any]:
    answer = await http.get("/v1/agentsched/state")
    assert answer.status_code == 200, answer.text
    (engine,) = answer.json()["engines"]
    return dict(engine)


async def test_a_session_that_is_pinned_outlives_a_flood(http: httpx.AsyncClient) -> None:
    prompt = words("paused", 3_000)
    await cached(http, prompt, "session")
    pin = {"conversation": "session", "ttl_s": 120, "value": 1.0, "pin": "p1", "program": "prog"}
    granted = (await http.post("/v1/agentsched/pin", json=pin)).json()
    assert granted == {"outcome": "accepted", "ttl_s": 120.0, "tokens": 2_976}
    await flood(http)
    seen = await state(http)
    assert [one["pin"] for one in seen["pins"]] == ["p1"]
    assert seen["programs"] == [{"program": "session", "conversations": {"session": 2_976}}]
    assert await cached(http, [*prompt, 7, 8], "session") == 2_976
    released = await http.post("/v1/agentsched/release", json={"conversation": "session"})
    assert released.json() == {"released": 1}
    await flood(http)
    assert await cached(http, [*prompt, 7, 8, 9]) == 0


async def test_nothing_is_left_after_aborts_and_expiry(http: httpx.AsyncClient) -> None:
    async def hang_up(number: int) -> None:
        with pytest.raises(httpx.ReadTimeout):
            await cached_within(http, words(f"gone {number}", 3_500), f"gone {number}")

    await asyncio.gather(*(hang_up(number) for number in range(4)))
    await cached(http, words("last", 500), "last")
    assert (await http.post("/v1/agentsched/release", json={"everything": True})).status_code == 200
    async with asyncio.timeout(60):
        while True:
            seen = await state(http)
            if seen["free_blocks"] == seen["blocks"]:
                break
    assert seen["pinned_blocks"] == seen["running"] == seen["waiting"] == 0
    assert seen["is_active"]
    assert seen["failures"] == {}
    # vLLM's own word: it refuses while any block is in use.
    assert (await http.post("/reset_prefix_cache")).status_code == 200
    assert await cached(http, words("last", 500)) == 0


async def cached_within(http: httpx.AsyncClient, prompt: list[int], name: str) -> None:
    """Ask for much, and hang up at once."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 500, "ignore_eos": True}
    body |= {"vllm_xargs": {"agentsched_conversation": name}}
    await http.post("/v1/completions", json=body, timeout=httpx.Timeout(30, read=0.3))


async def test_the_routes_ask_for_the_engines_key_and_for_sense(
    url: str, http: httpx.AsyncClient
) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30) as stranger:
        for path in ("pin", "extend", "release"):
            assert (await stranger.post(f"/v1/agentsched/{path}", json={})).status_code == 401
        assert (await stranger.get("/v1/agentsched/state")).status_code == 401
    for path, body in (
        ("pin", b"not json"),
        ("pin", b'{"conversation": "c", "ttl_s": -1}'),
        ("pin", b'{"conversation": "", "ttl_s": 1}'),
        ("release", b"{}"),
        ("release", b'{"pin": "p", "everything": true}'),
    ):
        answer = await http.post(f"/v1/agentsched/{path}", content=body)
        assert answer.status_code == 400, (path, body)
        assert answer.json()["error"]["message"]
    too_long = await http.post("/v1/agentsched/pin", content=b" " * 20_000)
    assert too_long.status_code == 413
    assert (await state(http))["is_active"]


async def test_the_proxy_finds_it_and_pins_through_it(url: str) -> None:
    upstream = EngineConfig.model_validate({"url": url, "api_key": KEY})
    policies = {"pin": {"name": "fixed", "params": {"ttl_s": 60.0}}}
    config = Config.model_validate(
        {"engines": [upstream], "port": 0, "profile": "passthrough", "policies": policies}
    )
    decisions: Counter[str] = Counter()
    cached_tokens = 0
    async with (
        running(config) as (gateway, proxied),
        httpx.AsyncClient(base_url=proxied, timeout=120) as client,
    ):
        (engine,) = gateway.host.scheduler.engines.values()
        assert engine.capabilities.pins
        for turn in range(2):
            for program in ("a", "b", "c"):
                answer = await client.post("/v1/chat/completions", json=_chat(program, turn))
                assert answer.status_code == 200, answer.text
                decisions[answer.headers["x-agentsched-decision"].split("pin=")[1]] += 1
                details = answer.json()["usage"]["prompt_tokens_details"]
                cached_tokens += details["cached_tokens"] if turn else 0
        async with httpx.AsyncClient(base_url=url, timeout=30, headers=HEADERS) as direct:
            seen = await state(direct)
    assert seen["pins_granted_total"] > 0
    assert {p["program"] for p in seen["programs"]} >= {p["program"] for p in seen["pins"]}
    assert cached_tokens > 0
    assert sum(decisions.values()) == 6


def _chat(program: str, turn: int) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": " ".join(f"{program}{n}" for n in range(700))}
    ]
    for number in range(turn):
        call = {"id": f"{program}{number}", "type": "function"}
        function = {"name": "bash", "arguments": "null"}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call | {"function": function}]},
            {"role": "tool", "tool_call_id": f"{program}{number}", "content": "done"},
        ]
    tool = {"name": "bash", "parameters": {"type": "object", "properties": {}}}
    return {
        "model": "tiny",
        "messages": messages,
        "max_tokens": 40,
        "temperature": 0,
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": {"type": "function", "function": {"name": "bash"}},
        "agentsched": {"program": program},
    }


async def test_an_adapter_reads_what_is_cached_where(url: str, http: httpx.AsyncClient) -> None:
    await cached(http, words("seen", 640), "seen")
    engine = VllmEngine(EngineId("e"), url, api_key=KEY)
    try:
        capabilities = await engine.probe()
        retained = await engine.retained()
    finally:
        await engine.aclose()
    assert capabilities.pins
    assert retained is not None
    found = {p.program: p.conversations for p in retained.engines[0].programs}
    assert found["seen"] == {"seen": 640}


async def test_another_version_is_refused_clearly_and_runs_as_stock(
    vllm_slot: Any, config: LocalVllmConfig, tmp_path: Path
) -> None:
    vllm_slot.close_engine()
    log = tmp_path / "vllm.log"
    # As if this vLLM were another one: the plugin is told to be tested with nothing.
    refusing = replace(config, log=log, plugin_settings=(("untested", "1"),))
    async with (
        LocalVllm(refusing) as engine,
        httpx.AsyncClient(base_url=engine.url, timeout=60, headers=HEADERS) as http,
    ):
        prompt = words("stock", 3_000)
        await cached(http, prompt, "session")
        answer = await http.get("/v1/agentsched/state")
        assert answer.status_code == 501
        await flood(http)
        assert await cached(http, prompt, "session") == 0
    assert "was not tested with vLLM 0.32" in log.read_text()
