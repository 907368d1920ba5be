"""The plugin's control endpoints: what a real vLLM with it does, and so does `FakePlugin`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp.test_utils import TestServer
from shorthand import Still, pin, unpin

from agentsched.model import HintOutcome, Instant, Pin, UnpinReason, seconds
from agentsched_adapters.openai_http import OpenAiHttp
from agentsched_adapters.vllm_plugin.hints import PluginHints
from agentsched_adapters.vllm_plugin.settings import PluginSettings
from agentsched_bench.vllm_local import LocalVllmConfig
from agentsched_bench.vllm_local.fake_plugin import FakePlugin

KEY = "a key of the engine"
HEADERS = {"authorization": f"Bearer {KEY}"}
BLOCK_SIZE = 32
#: How long a step is kept by itself: none of these tests is to outlast it on a busy machine.
GRACE_S = 60
BLOCKS = 257
NOW = Instant(1_000_000_000_000)


@dataclass(slots=True)
class Plugin:
    """An engine with the plugin, by its routes."""

    url: str
    http: httpx.AsyncClient
    #: Where the engine is shared, other tests' prompts must not be hit.
    name: str

    def words(self, name: str, count: int) -> list[int]:
        noise = hashlib.shake_128(f"{self.name} {name}".encode()).digest(2 * count)
        pairs = range(0, 2 * count, 2)
        return [100 + int.from_bytes(noise[i : i + 2], "big") % 3_900 for i in pairs]

    async def step(self, conversation: str, prompt: list[int], *, program: str = "") -> int:
        """A request from its arrival to its end; how much of it was cached."""
        xargs = {"agentsched_conversation": conversation} if conversation else {}
        if program:
            xargs["agentsched_program"] = program
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
        answer = await self.http.post("/v1/completions", json=body | {"vllm_xargs": xargs})
        assert answer.status_code == 200, answer.text
        cached: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return cached

    async def flood(self) -> None:
        """Other traffic, more than the pool holds."""
        for number in range(4):
            await self.step("", self.words(f"flood {number}", 3_000))

    async def ask(self, operation: str, **fields: Any) -> Any:
        answer = await self.http.post(f"/v1/agentsched/{operation}", json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def state(self, query: str = "") -> dict[str, Any]:
        answer = await self.http.get(f"/v1/agentsched/state{query}")
        assert answer.status_code == 200, answer.text
        (engine,) = answer.json()["engines"]
        return dict(engine)

    async def pinned(self) -> list[str]:
        """Conversations with pins that somebody asked for."""
        return [pin["conversation"] for pin in (await self.state())["pins"] if not pin["is_grace"]]


VLLM = pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)])


@pytest.fixture(params=["fake", VLLM])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(kind: str, vllm_slot: Any, request: pytest.FixtureRequest) -> str:
    """Where vLLM listens; empty for the fake. (Not async: it starts vLLM.)"""
    if kind == "fake":
        return ""
    python: Path = request.getfixturevalue("vllm_python")
    config = LocalVllmConfig(
        python=python,
        blocks=BLOCKS,
        max_model_len=4_096,
        plugin=True,
        plugin_settings=(("order", "program-fcfs"), ("grace", f"{GRACE_S}s")),
        dev_routes=True,
        extra_args=("--api-key", KEY),
    )
    return str(vllm_slot.url(config))


@pytest.fixture
async def plugin(address: str, request: pytest.FixtureRequest) -> AsyncIterator[Plugin]:
    """An engine without pins."""
    async with AsyncExitStack() as stack:
        if not address:
            fake = FakePlugin(
                blocks=BLOCKS,
                block_size=BLOCK_SIZE,
                key=KEY,
                settings=PluginSettings(grace=seconds(GRACE_S)),
            )
            server = await stack.enter_async_context(TestServer(fake.app()))
            address = str(server.make_url("")).rstrip("/")
            stack.callback(fake.host.check)
        http = httpx.AsyncClient(base_url=address, timeout=120, headers=HEADERS)
        await stack.enter_async_context(http)
        one = Plugin(url=address, http=http, name=request.node.nodeid)
        await one.ask("release", everything=True)
        yield one
        await one.ask("release", everything=True)
        seen = await one.state()
        assert seen["pinned_blocks"] == seen["running"] == 0
        assert seen["free_blocks"] == seen["blocks"] == BLOCKS - 1
        assert seen["is_active"]
        assert seen["failures"] == {}


async def test_a_step_is_kept_for_a_moment_by_itself(plugin: Plugin) -> None:
    await plugin.step("a", plugin.words("a", 100), program="p")
    (pin,) = (await plugin.state())["pins"]
    assert pin["is_grace"]
    assert (pin["conversation"], pin["program"], pin["tokens"]) == ("a", "p", 96)
    assert 0 < pin["ends_in_s"] <= GRACE_S


async def test_a_pin_says_what_was_granted(plugin: Plugin) -> None:
    await plugin.step("a", plugin.words("a", 100), program="p")
    before = await plugin.state()
    asked = {"conversation": "a", "ttl_s": 60, "value": 2.5, "pin": "p1", "program": "p"}
    granted = await plugin.ask("pin", **asked, tenant="t")
    assert granted == {"outcome": "accepted", "ttl_s": 60.0, "tokens": 96}
    seen = await plugin.state()
    (pin,) = seen["pins"]
    assert 0 < pin.pop("ends_in_s") <= 60
    assert pin == {
        "pin": "p1",
        "conversation": "a",
        "program": "p",
        "tenant": "t",
        "value": 2.5,
        "is_grace": False,
        "tokens": 96,
    }
    assert seen["pinned_blocks"] == seen["reclaimable_blocks"] == 3
    assert seen["free_blocks"] == seen["blocks"] - 3
    assert seen["pins_granted_total"] == before["pins_granted_total"] + 1
    assert seen["block_size"] == BLOCK_SIZE
    assert seen["pinned_blocks_max"] == int(0.8 * (BLOCKS - 1))


async def test_a_beginning_alone_and_a_long_time(plugin: Plugin) -> None:
    await plugin.step("a", plugin.words("a", 200))
    granted = await plugin.ask("pin", conversation="a", ttl_s=3_600, tokens=33)
    assert granted == {"outcome": "clipped", "ttl_s": 600.0, "tokens": 64}
    assert (await plugin.state())["pinned_blocks"] == 2


async def test_a_conversation_has_one_pin(plugin: Plugin) -> None:
    await plugin.step("a", plugin.words("a", 100))
    for name in ("p1", "p2"):
        await plugin.ask("pin", conversation="a", ttl_s=60, pin=name)
    assert [pin["pin"] for pin in (await plugin.state())["pins"]] == ["p2"]


async def test_what_nobody_knows_is_refused(plugin: Plugin) -> None:
    refused = {"outcome": "refused", "ttl_s": 0.0, "tokens": 0}
    assert await plugin.ask("pin", conversation="nobody", ttl_s=60) == refused
    assert await plugin.ask("extend", conversation="nobody", ttl_s=60) == refused
    assert await plugin.ask("release", conversation="nobody") == {"released": 0}


async def test_a_pin_is_extended_and_valued(plugin: Plugin) -> None:
    await plugin.step("a", plugin.words("a", 100))
    await plugin.ask("pin", conversation="a", ttl_s=5, value=1.0)
    granted = await plugin.ask("extend", conversation="a", ttl_s=90, value=7.0)
    assert granted == {"outcome": "accepted", "ttl_s": 90.0, "tokens": 96}
    (pin,) = (await plugin.state())["pins"]
    assert pin["value"] == 7.0
    assert 5 < pin["ends_in_s"] <= 90


@pytest.mark.parametrize(
    ("names", "left"),
    [
        ({"conversation": "a"}, ["b", "c"]),
        ({"program": "p"}, ["c"]),
        ({"pin": "same"}, ["c"]),
        ({"pin": "same", "conversation": "a"}, ["b", "c"]),
        ({"everything": True}, []),
    ],
)
async def test_pins_end_by_what_names_them(
    plugin: Plugin, names: dict[str, Any], left: list[str]
) -> None:
    for talk, program, name in (("a", "p", "same"), ("b", "p", "same"), ("c", "q", "other")):
        await plugin.step(talk, plugin.words(talk, 100))
        asked = {"conversation": talk, "program": program, "pin": name, "ttl_s": 60}
        assert (await plugin.ask("pin", **asked))["outcome"] == "accepted"
    assert await plugin.ask("release", **names) == {"released": 3 - len(left)}
    assert sorted(await plugin.pinned()) == left
    assert await plugin.ask("release", **names) == {"released": 0}


async def test_a_pin_outlives_a_flood_and_nothing_else_does(plugin: Plugin) -> None:
    prompts = {name: plugin.words(name, 1_000) for name in ("kept", "left")}
    for name, prompt in prompts.items():
        await plugin.step(name, prompt)
    await plugin.ask("pin", conversation="kept", ttl_s=120, value=1.0)
    await plugin.ask("release", conversation="left")
    await plugin.flood()
    found = {p["program"]: p["conversations"] for p in (await plugin.state())["programs"]}
    assert found["kept"] == {"kept": 992}
    assert "left" not in found  # nobody will come back to it
    assert await plugin.step("kept", [*prompts["kept"], 7, 8]) == 992
    assert await plugin.step("left", [*prompts["left"], 7, 8]) == 0


async def test_what_a_flood_took_cannot_be_pinned_late(plugin: Plugin) -> None:
    await plugin.step("late", plugin.words("late", 1_000))
    await plugin.ask("pin", conversation="late", ttl_s=60, pin="p1")
    # One pin alone is ended by its name, and its conversation is still remembered.
    assert await plugin.ask("release", pin="p1", conversation="late") == {"released": 1}
    again = await plugin.ask("pin", conversation="late", ttl_s=60, pin="p2")
    assert again == {"outcome": "accepted", "ttl_s": 60.0, "tokens": 992}
    await plugin.ask("release", pin="p2", conversation="late")
    await plugin.flood()
    assert (await plugin.ask("pin", conversation="late", ttl_s=60))["outcome"] == "refused"
    found = {p["program"]: p["conversations"] for p in (await plugin.state())["programs"]}
    assert found["late"] == {"late": 0}


async def test_a_next_turn_ends_the_pin_of_the_last_one(plugin: Plugin) -> None:
    prompt = plugin.words("a", 100)
    await plugin.step("a", prompt)
    await plugin.ask("pin", conversation="a", ttl_s=60)
    before = (await plugin.state())["pins_ended_total"].get("resumed", 0)
    await plugin.step("a", [*prompt, *plugin.words("b", 100)])
    seen = await plugin.state()
    assert seen["pins_ended_total"]["resumed"] == before + 1
    assert [pin["is_grace"] for pin in seen["pins"]] == [True]


async def test_a_brief_state_lists_nothing(plugin: Plugin) -> None:
    await plugin.step("a", plugin.words("a", 100))
    seen = await plugin.state("?brief=1")
    assert seen["pins"] == []
    assert seen["programs"] == []
    assert seen["pinned_blocks"] == 3


async def test_what_is_cached_can_be_asked_without_counting_it(plugin: Plugin) -> None:
    """A proxy asks often, and the engine's next step waits for the answer."""
    await plugin.step("late", plugin.words("late", 1_000))
    await plugin.ask("release", conversation="late")
    await plugin.step("kept", plugin.words("kept", 100))
    await plugin.ask("pin", conversation="kept", ttl_s=60)
    await plugin.flood()

    seen = await plugin.state("?only=cached")

    tokens = {
        c: n for p in (await plugin.state())["programs"] for c, n in p["conversations"].items()
    }
    assert seen["cached"] == {name: bool(there) for name, there in tokens.items()}
    assert seen["cached"]["kept"]
    assert seen["pins"] == seen["programs"] == []


@pytest.mark.parametrize(
    ("operation", "body", "status"),
    [
        ("pin", b"not json", 400),
        ("pin", b"{}", 400),
        ("pin", b'{"conversation": "c", "ttl_s": -1}', 400),
        ("pin", b'{"conversation": "c", "ttl_s": 1e9}', 400),
        ("pin", b'{"conversation": "", "ttl_s": 1}', 400),
        ("pin", b'{"conversation": "c", "ttl_s": 1, "tokens": 0}', 400),
        ("pin", b'{"conversation": "' + b"c" * 600 + b'", "ttl_s": 1}', 400),
        ("extend", b'{"conversation": "c"}', 400),
        ("release", b"{}", 400),
        ("release", b'{"pin": "p", "program": "q"}', 400),
        ("release", b'{"pin": "p", "everything": true}', 400),
        ("pin", b" " * 20_000, 413),
    ],
)
async def test_nonsense_is_told_and_changes_nothing(
    plugin: Plugin, operation: str, body: bytes, status: int
) -> None:
    await plugin.step("c", plugin.words("c", 100))
    answer = await plugin.http.post(f"/v1/agentsched/{operation}", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert [pin["is_grace"] for pin in (await plugin.state())["pins"]] == [True]


async def test_fields_of_tomorrow_are_ignored(plugin: Plugin) -> None:
    await plugin.step("a", plugin.words("a", 100))
    granted = await plugin.ask("pin", conversation="a", ttl_s=60, of_tomorrow={"x": [1]})
    assert granted["outcome"] == "accepted"


async def test_strangers_are_turned_away(plugin: Plugin) -> None:
    async with httpx.AsyncClient(base_url=plugin.url, timeout=30) as stranger:
        for operation in ("pin", "extend", "release"):
            answer = await stranger.post(f"/v1/agentsched/{operation}", json={})
            assert answer.status_code == 401
        assert (await stranger.get("/v1/agentsched/state")).status_code == 401


def pin_of(conversation: str, *, name: str = "pin-1", left_s: float = 60.0) -> Pin:
    until = NOW + seconds(left_s)
    return pin(name, conversation=conversation, tokens=96, until=until, value=2.5)


async def test_the_proxys_side_speaks_with_it(plugin: Plugin) -> None:
    await plugin.step("a", plugin.words("a", 100))
    http = OpenAiHttp(plugin.url, api_key=KEY)
    hints = PluginHints(http, clock=Still(NOW))
    try:
        assert await hints.hint(pin_of("a")) is HintOutcome.ACCEPTED
        assert await hints.hint(pin_of("nobody", name="x")) is HintOutcome.REFUSED
        assert await hints.hint(pin_of("a", left_s=3_600)) is HintOutcome.CLIPPED
        state = await hints.state()
        assert state is not None
        assert [(p.pin, p.conversation, p.tokens) for p in state.engines[0].pins] == [
            ("pin-1", "a", 96)
        ]
        over = unpin("pin-1", reason=UnpinReason.BUDGET)
        assert await hints.hint(over) is HintOutcome.ACCEPTED
        assert await plugin.pinned() == []
    finally:
        await http.aclose()
