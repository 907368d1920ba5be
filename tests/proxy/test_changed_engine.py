"""Another server behind an engine's name: of another kind, or at an address that does not work."""

from __future__ import annotations

from typing import Any

import msgspec
from plugin_state import plugin_state
from proxy_rig import HURRIES
from proxy_upstream import Gate, chunk
from shorthand import pin, unpin

from agentsched.clock import MonotonicClock
from agentsched.config import Config, EngineConfig
from agentsched.model import (
    EngineId,
    EngineLost,
    EngineReported,
    Nanos,
    UnpinReason,
    after,
    seconds,
)
from agentsched.proxy.app import _member
from agentsched.proxy.fleet import Member
from agentsched_adapters.openai_compatible import OpenAiCompatibleEngine
from agentsched_adapters.vllm import VllmEngine
from agentsched_bench.ports import free_port

E0 = EngineId("e0")


async def test_a_detected_engine_is_detected_anew_when_it_returns(
    start: Any, upstream: Any
) -> None:
    pages = {
        "/metrics": b"# x\nvllm:num_requests_running 0\n",
        "/version": b'{"version": "0.32.0"}',
    }
    await upstream.stop()
    upstream.port = free_port()  # nobody else takes it when it is away
    await upstream.start()
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


def described(url: str, **more: str) -> Member:
    """The engine `e0` as a reread file has it."""
    engine = EngineConfig.model_validate({"url": url, "id": "e0", "kind": "openai"} | more)
    return _member(engine, Config(engines=[engine]))


async def test_one_that_moves_to_where_nobody_is_is_lost(start: Any, upstream: Any) -> None:
    """What the old address said keeps no dead engine alive."""
    async with start(upstream.url, limits=HURRIES) as proxy:
        await proxy.gateway.fleet.replace(described("http://127.0.0.1:1"), patience=Nanos(0))
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
        assert (await proxy.client.get("/readyz")).status_code == 503
        assert (await proxy.chat()).json()["error"]["code"] == "no_engine"
        await proxy.gateway.fleet.replace(described(upstream.url), patience=Nanos(0))
        await proxy.turns.until(lambda: proxy.scheduler.engines[E0].is_up)
        assert (await proxy.chat()).status_code == 200


async def test_one_that_moves_to_where_every_look_is_refused_is_lost(
    start: Any, upstream: Any, second: Any
) -> None:
    async def refuse(exchange: Any) -> None:
        await exchange.json({"error": {"message": "not your key"}}, 401)

    second.look = refuse
    async with start(upstream.url) as proxy:
        moved = described(second.url, api_key="wrong")
        await proxy.gateway.fleet.replace(moved, patience=Nanos(0))
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
        assert "401" in moved.last_error
        assert moved.failures == proxy.gateway.config.upstream.failures_until_lost


def pages(*, began: int = 1, blocks: int = 1_000) -> dict[str, bytes]:
    """What one process of vLLM says of itself."""
    info = f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1'
    metrics = f"# x\nprocess_start_time_seconds {began}\nvllm:num_requests_running 0\n{info}\n"
    return {"/metrics": metrics.encode(), "/version": b'{"version": "0.32.0"}'}


async def test_another_process_behind_the_same_address_is_a_new_engine(
    start: Any, upstream: Any
) -> None:
    """A rolling update behind one name: no look is refused in between."""
    upstream.pages = pages()
    engines = [{"url": upstream.url, "id": "e0", "kind": "vllm"}]
    async with start(engines=engines) as proxy:
        assert proxy.scheduler.engines[E0].capabilities.kv_tokens == 16_000
        upstream.pages = pages(began=2, blocks=500)
        await proxy.turns.until(lambda: bool(proxy.turns.events(EngineLost)))
        await proxy.turns.until(lambda: proxy.scheduler.engines[E0].is_up)
        assert proxy.scheduler.engines[E0].capabilities.kv_tokens == 8_000
        assert len(proxy.turns.events(EngineLost)) == 1
        assert (await proxy.chat("hi")).status_code == 200


async def test_with_another_key_it_ends_its_pins_and_no_other_proxys(
    start: Any, upstream: Any
) -> None:
    state = msgspec.json.encode(plugin_state())
    upstream.pages = pages() | {
        f"/v1/agentsched/state?{n}": state for n in ("brief=1", "only=cached")
    }
    engine = {"url": upstream.url, "id": "e0", "kind": "vllm"}
    async with start(engines=[engine]) as proxy:
        fleet = proxy.gateway.fleet
        until = after(MonotonicClock().now(), seconds(60))
        await fleet.engine(E0).hint(pin("pin-1", conversation="c", tokens=64, until=until))
        changed = described(upstream.url, kind="vllm", api_key="another")
        await fleet.replace(changed, patience=Nanos(0))
        await proxy.turns.until(lambda: changed.is_up)
        assert fleet.engine(E0) is changed.engine
        upstream.exchanges.clear()
        await fleet.engine(E0).hint(unpin("pin-1", reason=UnpinReason.BUDGET))
        [asked] = upstream.exchanges
        assert asked.target == "/v1/agentsched/release"
        assert asked.headers["authorization"] == "Bearer another"
        assert asked.fields["conversation"] == "c"


async def test_what_breaks_where_an_engine_was_is_no_failure_where_it_is(
    start: Any, upstream: Any, second: Any
) -> None:
    """Its old connections are closed over answers that take longer than they may."""
    upstream.script = Gate(chunk("hel"))
    async with start(upstream.url) as proxy:
        fleet = proxy.gateway.fleet
        async with proxy.streaming("long") as running:
            parts = running.aiter_raw()
            assert await anext(parts) == chunk("hel")
            await fleet.replace(described(second.url), patience=Nanos(0))
            rest = b"".join([part async for part in parts])
        assert b'"error"' in rest
        assert fleet.health.told(E0).failures_total == 0
        assert (await proxy.chat()).status_code == 200
        assert len(second.exchanges) == 1
