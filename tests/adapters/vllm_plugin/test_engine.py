"""The plugin in a real vLLM server, alone and with the proxy in front of it."""

from __future__ import annotations

import asyncio
import hashlib
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
from agentsched_bench.vllm_local import LocalVllmConfig

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


@pytest.fixture(params=["plugin", "stock"])
def either(request: pytest.FixtureRequest, vllm_slot: Any, config: LocalVllmConfig) -> str:
    """An engine with the plugin, and one of the same size without."""
    if request.param == "plugin":
        return str(vllm_slot.url(config))
    return str(vllm_slot.url(replace(config, plugin=False, plugin_settings=())))


async def test_the_proxy_pins_through_it_and_paused_programs_find_their_cache(
    either: str, request: pytest.FixtureRequest
) -> None:
    has_plugin = "plugin" in request.node.callspec.id
    upstream = EngineConfig.model_validate({"url": either, "api_key": KEY})
    policies = {"pin": {"name": "fixed", "params": {"ttl_s": 300.0}}}
    config = Config.model_validate(
        {"engines": [upstream], "port": 0, "profile": "passthrough", "policies": policies}
    )
    async with (
        running(config) as (gateway, proxied),
        httpx.AsyncClient(base_url=proxied, timeout=120) as client,
    ):
        for member in gateway.fleet.members.values():
            await member.was_looked_at.wait()
        (engine,) = gateway.host.scheduler.engines.values()
        assert engine.capabilities.pins is has_plugin
        for number in range(3):  # opens the pressure gate: more is wanted than the pool holds
            await client.post("/v1/completions", json=_once(f"before {number}"))
        calls = {program: await _first_turn(client, program) for program in ("a", "b")}
        for number in range(4):
            await client.post("/v1/completions", json=_once(f"between {number}"))
        shares, pins = [], []
        for program, call in calls.items():
            answer = await client.post("/v1/chat/completions", json=_chat(program, call))
            usage = answer.json()["usage"]
            found = usage["prompt_tokens_details"]["cached_tokens"]
            shares.append(found / usage["prompt_tokens"])
            pins.append(answer.headers["x-agentsched-decision"].split("pin=")[1].split()[0])
    if has_plugin:
        assert pins == ["hit", "hit"]
        assert min(shares) > 0.8, shares
    else:
        assert pins == ["none", "none"]
        assert max(shares) < 0.2, shares


async def _first_turn(client: httpx.AsyncClient, program: str) -> dict[str, Any]:
    """The tool call of a first turn; an untrained model makes one in most of its answers."""
    for _ in range(12):
        answer = await client.post("/v1/chat/completions", json=_chat(program, None))
        assert answer.status_code == 200, answer.text
        if calls := answer.json()["choices"][0]["message"].get("tool_calls"):
            return dict(calls[0])
    raise AssertionError("no tool call in twelve answers")


def _once(name: str) -> dict[str, Any]:
    return {"model": "tiny", "prompt": words(name, 2_600), "max_tokens": 2, "ignore_eos": True}


def _chat(program: str, call: dict[str, Any] | None) -> dict[str, Any]:
    text = " ".join(f"{program}{number}" for number in range(700))
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
    if call is not None:
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "done"},
        ]
    tool = {"name": "bash", "parameters": {"type": "object", "properties": {}}}
    return {
        "model": "tiny",
        "messages": messages,
        "max_tokens": 60,
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


@pytest.fixture
def refused(vllm_slot: Any, config: LocalVllmConfig, tmp_path: Path) -> tuple[str, Path]:
    """An engine whose version counts as untested, and its log."""
    log = tmp_path / "vllm.log"
    return str(vllm_slot.url(replace(config, log=log, plugin_settings=(("untested", "1"),)))), log


async def test_another_version_is_refused_clearly_and_runs_as_stock(
    refused: tuple[str, Path],
) -> None:
    url, log = refused
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=HEADERS) as http:
        prompt = words("stock", 3_000)
        await cached(http, prompt, "session")
        assert (await http.get("/v1/agentsched/state")).status_code == 501
        await flood(http)
        assert await cached(http, prompt, "session") == 0
    assert "was not tested with vLLM 0.32" in log.read_text()
