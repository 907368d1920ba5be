"""The plugin in a real vLLM server, alone and with the proxy in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentsched.config import Config, EngineConfig
from agentsched.model import EngineId
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_adapters.vllm import VllmEngine
from agentsched_bench.vllm_local import LocalVllm, LocalVllmConfig

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]

AGENTSCHED = Path(sys.executable).parent / "agentsched"
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
    """A client of the shared engine, which keeps nothing of earlier tests."""
    async with httpx.AsyncClient(base_url=url, timeout=120, headers=HEADERS) as client:
        released = await client.post("/v1/agentsched/release", json={"everything": True})
        assert released.status_code == 200, released.text
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
    return found_in(answer)


def found_in(answer: httpx.Response) -> int:
    """How much of the prompt of a good answer was in the cache."""
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


async def until(http: httpx.AsyncClient, **wanted: int) -> dict[str, Any]:
    """Read the engine's state until it is so: it has no event to wait on."""
    async with asyncio.timeout(120):
        while True:
            seen = await state(http)
            if all(seen[name] == value for name, value in wanted.items()):
                return seen
            await asyncio.sleep(0.05)


async def check_nothing_is_left(http: httpx.AsyncClient) -> None:
    """All blocks are free again, and nothing in the plugin failed."""
    seen = await until(http, running=0, waiting=0, pinned_blocks=0)
    assert seen["free_blocks"] == seen["blocks"]
    assert seen["pins"] == []
    assert seen["is_active"]
    assert seen["failures"] == {}
    # vLLM's own word: it refuses while any block is in use.
    assert (await http.post("/reset_prefix_cache")).status_code == 200


@dataclass(frozen=True, slots=True)
class Turn:
    """The tool call of a program's first turn, and how long its prompt was."""

    call: dict[str, Any]
    prompt_tokens: int


async def first_turn(client: httpx.AsyncClient, program: str) -> Turn:
    """Ask until a tool is called; an untrained model calls one in most of its answers."""
    for _ in range(40):
        answer = await client.post("/v1/chat/completions", json=chat(program, None))
        assert answer.status_code == 200, answer.text
        told = answer.json()
        if calls := told["choices"][0]["message"].get("tool_calls"):
            return Turn(calls[0], told["usage"]["prompt_tokens"])
    raise AssertionError("no tool call in forty answers")


async def come_back(client: httpx.AsyncClient, program: str, turn: Turn) -> httpx.Response:
    """The program's second turn, with what its tool said."""
    return await client.post("/v1/chat/completions", json=chat(program, turn.call))


def once(name: str) -> dict[str, Any]:
    return {"model": "tiny", "prompt": words(name, 2_600), "max_tokens": 2, "ignore_eos": True}


def chat(program: str, call: dict[str, Any] | None) -> dict[str, Any]:
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


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """A proxy in this process that pins for five minutes, once it has seen this engine."""
    upstream = EngineConfig.model_validate({"url": url, "api_key": KEY})
    policies = {"pin": {"name": "fixed", "params": {"ttl_s": 300.0}}}
    config = Config.model_validate(
        {"engines": [upstream], "port": 0, "profile": "passthrough", "policies": policies}
    )
    async with (
        running(config) as (gateway, proxy),
        httpx.AsyncClient(base_url=proxy, timeout=120) as client,
    ):
        for member in gateway.fleet.members.values():
            await member.was_looked_at.wait()
        yield gateway, client


@pytest.fixture(params=["stock", "plugin"])
def either(request: pytest.FixtureRequest, vllm_slot: Any, config: LocalVllmConfig) -> str:
    """An engine with the plugin, which the tests below share, and first one of its size without."""
    if request.param == "plugin":
        return str(vllm_slot.url(config))
    return str(vllm_slot.url(replace(config, plugin=False, plugin_settings=())))


async def test_the_proxy_pins_through_it_and_paused_programs_find_their_cache(
    either: str, request: pytest.FixtureRequest
) -> None:
    has_plugin = "plugin" in request.node.callspec.id
    async with proxied(either) as (gateway, client):
        (engine,) = gateway.host.scheduler.engines.values()
        assert engine.capabilities.pins is has_plugin
        turns = await fill_and_pause(client, "a", "b")
        for number in range(4):
            await client.post("/v1/completions", json=once(f"between {number}"))
        shares, pins = [], []
        for program, turn in turns.items():
            answer = await come_back(client, program, turn)
            # What the model said may be any number of tokens once it is a prompt.
            shares.append(found_in(answer) / turn.prompt_tokens)
            pins.append(answer.headers["x-agentsched-decision"].split("pin=")[1].split()[0])
    if has_plugin:
        assert pins == ["hit", "hit"]
        assert min(shares) > 0.9, shares
    else:
        assert pins == ["none", "none"]
        assert max(shares) < 0.2, shares


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


async def test_an_answer_that_ends_at_a_stop_string_leaves_its_conversation_to_pin(
    http: httpx.AsyncClient,
) -> None:
    prompt = words("stops", 1_600)
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 60, "temperature": 0}
    # Once for nothing: what is computed behind a cached prefix may round otherwise, and the next
    # ones are.
    await http.post("/v1/completions", json=body)
    whole = (await http.post("/v1/completions", json=body)).json()["choices"][0]["text"]
    # A character that the model says late and not before.
    stop = next(c for at, c in reversed(list(enumerate(whole[:-8]))) if whole.index(c) == at)
    more = {"stop": [stop], "vllm_xargs": {"agentsched_conversation": "stopped"}}
    answer = (await http.post("/v1/completions", json=body | more)).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 0
    pin = {"conversation": "stopped", "ttl_s": 60}
    granted = (await http.post("/v1/agentsched/pin", json=pin)).json()
    assert granted["outcome"] == "accepted"
    assert granted["tokens"] >= 1_600
    await flood(http)
    assert await cached(http, [*prompt, 7, 8], "stopped") == 1_600


async def test_nothing_is_left_after_aborts_and_expiry(http: httpx.AsyncClient) -> None:
    async def hang_up(number: int) -> None:
        with pytest.raises(httpx.ReadTimeout):
            await cached_within(http, words(f"gone {number}", 3_500), f"gone {number}")

    await asyncio.gather(*(hang_up(number) for number in range(4)))
    await cached(http, words("last", 500), "last")
    assert (await http.post("/v1/agentsched/release", json={"everything": True})).status_code == 200
    await check_nothing_is_left(http)
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


@dataclass(slots=True)
class Proxy:
    """`agentsched serve` as a process of its own."""

    process: asyncio.subprocess.Process
    client: httpx.AsyncClient

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def end(self) -> int:
        self.process.terminate()
        async with asyncio.timeout(60):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def served(config: Path) -> AsyncIterator[Proxy]:
    log = config.with_suffix(".log")
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *(AGENTSCHED, "serve", "--config", str(config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(90):
            line = (await process.stdout.readline()).decode()
        assert "(profile passthrough, 1 of 1 engines up)" in line, log.read_text()
        where = next(word for word in line.split() if word.startswith("http"))
        async with httpx.AsyncClient(base_url=where, timeout=120) as client:
            yield Proxy(process, client)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def pinned(http: httpx.AsyncClient, programs: set[str]) -> list[str]:
    """Wait until these and no other programs have pins that a proxy asked for; whose those are."""
    async with asyncio.timeout(120):
        while True:
            asked = [pin for pin in (await state(http))["pins"] if not pin["is_grace"]]
            if {pin["program"] for pin in asked} == programs:
                return [pin["conversation"] for pin in asked]
            await asyncio.sleep(0.05)


async def fill_and_pause(client: httpx.AsyncClient, *programs: str) -> dict[str, Turn]:
    """More than the pool holds is wanted, so pins are granted, and these programs run tools."""
    for number in range(3):
        await client.post("/v1/completions", json=once(f"before {number}"))
    return {program: await first_turn(client, program) for program in programs}


@contextlib.asynccontextmanager
async def answering(client: httpx.AsyncClient) -> AsyncIterator[AsyncIterator[str]]:
    """An answer that has begun, with thousands of tokens to come; the lines that are left of it.

    It takes no block of the two programs' pins.
    """
    body = {"model": "tiny", "prompt": words("cut off", 100), "max_tokens": 2_500, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body | {"ignore_eos": True}) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        async for line in lines:
            if line.startswith("data: {"):
                break
        yield lines


@pytest.mark.parametrize("remembers", [True, False], ids=["with a store", "without"])
async def test_a_proxy_that_is_killed_under_pins_leaves_nothing_behind(
    url: str, http: httpx.AsyncClient, tmp_path: Path, remembers: bool
) -> None:
    """What it had pinned is there for who comes back to the next proxy, and goes after that."""
    config = _configured(tmp_path, url, remembers=remembers)
    async with served(config) as first:
        turns = await fill_and_pause(first.client, "a", "b")
        await pinned(http, {"a", "b"})
        if remembers:
            await _written(first.client)
        async with answering(first.client) as lines:
            await first.kill()
            with pytest.raises(httpx.TransportError):
                async for _ in lines:
                    pass
    # Nobody reads the answer any more: the engine drops it, and keeps what was pinned.
    await until(http, running=0, waiting=0)
    conversations = await pinned(http, {"a", "b"})
    async with served(config) as second:
        answer = await come_back(second.client, "a", turns["a"])
        assert found_in(answer) > 0.9 * turns["a"].prompt_tokens
        if remembers:
            for program in turns:
                await second.client.post(f"/agentsched/v1/programs/{program}/release")
        else:
            # Nobody knows of them. Their time would be over in five minutes; it is now.
            for name in conversations:
                word = {"conversation": name, "ttl_s": 0.001}
                assert (await http.post("/v1/agentsched/extend", json=word)).status_code == 200
        await check_nothing_is_left(http)
        assert await second.end() == 0


def _configured(folder: Path, url: str, *, remembers: bool) -> Path:
    lines = [
        'port = 0\nprofile = "passthrough"',
        f'[[engines]]\nurl = "{url}"\napi_key = "{KEY}"\nid = "e0"',
        '[policies.pin]\nname = "fixed"\nparams = { ttl_s = 300.0 }',
    ]
    if remembers:
        lines.append(f'[store]\nurl = "sqlite:///{folder}/agentsched.db"\nreplica = "r1"')
        lines.append(f'spool = "{folder}/spool"\nflush_interval = "20ms"')
    file = folder / "agentsched.toml"
    file.write_text("\n".join(lines))
    return file


async def _written(client: httpx.AsyncClient) -> None:
    """Wait until the store has all that was decided so far: a crash may lose the rest."""
    async with asyncio.timeout(120):
        while "agentsched_store_backlog 0.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.fixture
def crashed(vllm_slot: Any, config: LocalVllmConfig, url: str) -> Iterator[tuple[Any, LocalVllm]]:
    """The shared engine's slot, and an engine that can be started in its place."""
    yield vllm_slot, LocalVllm(replace(config, port=int(url.rpartition(":")[2])))
    vllm_slot.close_engine()


@pytest.mark.timeout(600)
async def test_an_engine_that_is_killed_under_pins_comes_back_without_them(
    http: httpx.AsyncClient, url: str, crashed: tuple[Any, LocalVllm]
) -> None:
    slot, successor = crashed
    async with proxied(url) as (gateway, client):
        turns = await fill_and_pause(client, "a", "b")
        await pinned(http, {"a", "b"})
        [known] = gateway.host.scheduler.engines.values()
        assert known.pinned_tokens > 0
        async with answering(client) as lines:
            slot.kill_engine()
            with contextlib.suppress(httpx.TransportError):
                async for _ in lines:
                    pass
        await _until_up(gateway, is_up=False)
        assert known.pinned_tokens == 0
        async with successor:
            await _until_up(gateway, is_up=True)
            assert found_in(await come_back(client, "a", turns["a"])) == 0
            for program in turns:
                await client.post(f"/agentsched/v1/programs/{program}/release")
            async with httpx.AsyncClient(base_url=url, timeout=120, headers=HEADERS) as fresh:
                await check_nothing_is_left(fresh)
            assert gateway.host.live_steps == 0
            gateway.host.scheduler.check()


async def _until_up(gateway: Gateway, *, is_up: bool) -> None:
    """Wait until the proxy has seen that its engine is up or gone."""
    async with asyncio.timeout(120):
        # Its probes are all there is to wait for.
        while [e.is_up for e in gateway.host.scheduler.engines.values()] != [is_up]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


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
