"""Models that no engine listed at the last look: those that just came, and those that never are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from live import eventually
from proxy_upstream import ANSWER, Exchange, Upstream

from agentsched.proxy import fresh_lists as module

#: Nobody looks at an engine but for what is asked.
SELDOM = {"probe_interval": "1h"}


def engines(*given: tuple[Upstream, list[str]]) -> list[dict[str, Any]]:
    return [
        {"url": upstream.url, "id": f"e{i}", "kind": "openai", "models": models}
        for i, (upstream, models) in enumerate(given)
    ]


async def test_one_that_was_just_loaded_is_served(start: Any, upstream: Upstream) -> None:
    """A LoRA adapter in vLLM, whose next request comes before the engine is looked at again."""
    async with start(upstream.url, upstream=SELDOM) as proxy:
        upstream.models = ["m", "lora"]
        assert (await proxy.chat(model="lora")).status_code == 200
        looks = upstream.looks
        for _ in range(3):
            assert (await proxy.chat(model="lora")).status_code == 200
            assert (await proxy.chat()).status_code == 200
        assert upstream.looks == looks


async def test_a_look_that_had_begun_before_is_not_enough(
    start: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GAP_S", 0.0)
    monkeypatch.setattr(module, "_PATIENCE_S", 60.0)
    async with start(upstream.url, upstream=SELDOM | {"probe_timeout": "60s"}) as proxy:
        asked: asyncio.Queue[Exchange] = asyncio.Queue()
        upstream.look = asked.put
        early = asyncio.create_task(proxy.chat(model="lora"))
        first = await asked.get()  # it is answered with what there was at that time
        later = asyncio.create_task(proxy.chat(model="lora"))
        member = proxy.gateway.fleet.members["e0"]
        await eventually(lambda: bool(member.asked))
        await first.json({"data": [{"id": "m"}]})
        assert (await early).status_code == 404
        await (await asked.get()).json({"data": [{"id": "m"}, {"id": "lora"}]})
        assert (await later).status_code == 200
        upstream.look = None


async def test_those_who_make_up_names_cost_one_look_together(
    start: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GAP_S", 3_600.0)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    async with start(upstream.url, upstream=SELDOM) as proxy:
        looks = upstream.looks
        answers = await asyncio.gather(*(proxy.chat(model=f"x{i}") for i in range(20)))
        assert {answer.status_code for answer in answers} == {404}
        assert (await proxy.chat(model="another")).status_code == 404
        assert upstream.looks == looks + 1
        said = answers[0].json()["error"]
        assert said["code"] == "model_not_found"
        assert "GET /v1/models lists them" in said["message"]
        assert "`models` of [[engines]]" in said["message"]


async def test_a_slow_list_keeps_nobody_whose_model_another_engine_has(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    settings = SELDOM | {"probe_timeout": "60s"}
    async with start(upstream.url, second.url, upstream=settings) as proxy:
        await proxy.turns.until(lambda: len(proxy.gateway.fleet.up()) == 2)
        upstream.is_well.clear()
        second.models = ["m", "lora"]
        assert (await proxy.chat(model="lora")).status_code == 200
        upstream.is_well.set()


async def test_a_list_that_does_not_come_is_not_waited_for(
    start: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    async with start(upstream.url, upstream=SELDOM | {"probe_timeout": "60s"}) as proxy:
        upstream.is_well.clear()
        assert (await proxy.chat(model="lora")).status_code == 404
        assert (await proxy.chat()).status_code == 200
        upstream.is_well.set()


async def test_an_engine_that_is_removed_meanwhile_leaves_nobody_waiting(
    start: Any, upstream: Upstream, second: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 3_600.0)
    settings = SELDOM | {"probe_timeout": "60s"}
    async with start(upstream.url, second.url, upstream=settings) as proxy:
        await proxy.turns.until(lambda: len(proxy.gateway.fleet.up()) == 2)
        asked: asyncio.Queue[Exchange] = asyncio.Queue()
        second.look = asked.put
        waiting = asyncio.create_task(proxy.chat(model="lora"))
        await asked.get()
        assert (await proxy.client.delete("/agentsched/v1/engines/e1")).status_code == 202
        assert (await waiting).status_code == 404


async def test_names_that_an_engine_takes_and_does_not_list(
    start: Any, upstream: Upstream, second: Upstream
) -> None:
    """Adapters that it loads when they are asked for, and other names of its models."""
    given = engines((upstream, []), (second, ["lora", "m"]))
    async with start(engines=given) as proxy:
        await proxy.turns.until(lambda: len(proxy.gateway.fleet.up()) == 2)
        for _ in range(3):
            answer = await proxy.chat(model="lora")
            assert (answer.status_code, answer.headers["x-agentsched-engine"]) == (200, "e1")
            plain = await proxy.client.post("/v1/embeddings", json={"model": "lora", "input": "a"})
            assert plain.content == ANSWER
        assert all(b"lora" not in exchange.body for exchange in upstream.exchanges)
        assert proxy.scheduler.engines["e1"].capabilities.models == ("m", "lora")
        assert (await proxy.chat(model="other")).status_code == 404


async def test_any_name_where_it_says_so(start: Any, upstream: Upstream, second: Upstream) -> None:
    async with start(engines=engines((upstream, []), (second, ["*"]))) as proxy:
        await proxy.turns.until(lambda: len(proxy.gateway.fleet.up()) == 2)
        answer = await proxy.chat(model="whatever")
        assert (answer.status_code, answer.headers["x-agentsched-engine"]) == (200, "e1")
