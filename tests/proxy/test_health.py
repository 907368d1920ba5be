"""Engines that answer probes and fail requests: ejected, readmitted, and never the last of them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from live import eventually
from proxy_upstream import ANSWER, DONE, Gate, chunk, data

from agentsched.config_trust import BreakerConfig, RetriesConfig
from agentsched.kernel.records import EngineRecord
from agentsched.model import EngineDrained, EngineId, Instant
from agentsched.proxy.health import Health, RetryBudget

E0, E1 = EngineId("e0"), EngineId("e1")
QUICK: dict[str, Any] = {
    "breaker": {"failures": 2, "ejection": "100ms", "ejection_max": "200ms"},
    "profile": "fcfs",
    "policies": {"place": {"name": "round-robin"}},
}


def test_a_budget_is_its_burst_and_then_a_share() -> None:
    budget = RetryBudget(RetriesConfig(share=0.25, burst=2))
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.request()
    assert not budget.take()
    budget.request()
    assert budget.take()
    for _ in range(100):
        budget.request()
    assert [budget.take() for _ in range(3)] == [True, True, False]
    assert (budget.granted_total, budget.refused_total) == (5, 3)


def test_engines_that_are_gone_let_no_more_be_ejected() -> None:
    """A fleet that grows and shrinks knows many by name; half of those that are there stay."""
    records = {
        EngineId(name): EngineRecord(engine=EngineId(name), is_alive=name.startswith("e"))
        for name in ("e0", "e1", "e2", *(f"gone{n}" for n in range(9)))
    }
    fed: list[EngineDrained] = []
    host: Any = SimpleNamespace(
        now=lambda: Instant(1), feed=fed.append, scheduler=SimpleNamespace(engines=records)
    )
    health = Health(host, BreakerConfig(failures=1, ejected_share_max=0.5))
    health.failed(E0, "broken")
    records[E0].is_draining = True
    health.failed(E1, "broken")
    assert health.ejected == [E0]
    assert fed == [EngineDrained(engine=E0, is_draining=True)]
    assert health.told(E1).withheld_total == 1


def test_an_operators_drain_lasts_and_an_ejection_does_not() -> None:
    records = {e: EngineRecord(engine=e, is_alive=True) for e in (E0, E1)}
    fed: list[EngineDrained] = []
    host: Any = SimpleNamespace(
        now=lambda: Instant(1), feed=fed.append, scheduler=SimpleNamespace(engines=records)
    )
    health = Health(host, BreakerConfig(failures=1))
    health.failed(E0, "broken")
    health.drained(E0, is_draining=True)
    health.drained(E0, is_draining=False)
    told = [(event.is_draining, event.is_lasting) for event in fed]
    assert told == [(True, False), (True, True), (False, False)]


async def test_the_drain_of_an_engine_that_is_taken_out_does_not_last(
    start: Any, upstream: Any, second: Any
) -> None:
    async with start(upstream.url, second.url) as proxy:
        for engine in ("e0", "e1"):
            await proxy.client.post(f"/agentsched/v1/engines/{engine}/drain")
        assert (await proxy.client.delete("/agentsched/v1/engines/e1")).status_code == 202
        await eventually(lambda: set(proxy.gateway.fleet.members) == {E0})
        engines = proxy.scheduler.engines
        assert (engines[E0].is_draining, engines[E0].is_drain_lasting) == (True, True)
        assert (engines[E1].is_draining, engines[E1].is_drain_lasting) == (True, False)


async def broken(exchange: Any) -> None:
    await exchange.json({"error": {"message": "no", "code": 500}}, 500)


async def busy(exchange: Any) -> None:
    await exchange.json({"error": {"message": "starting", "code": 503}}, 503)


async def until_ejected(proxy: Any) -> None:
    """Ask until an engine has just been ejected: it is only for so long."""
    health = proxy.gateway.fleet.health
    for number in range(100):
        await proxy.chat(f"program {number}")
        if health.ejected:
            return
    pytest.fail("no engine was ejected")


async def shown(proxy: Any) -> dict[str, Any]:
    page = (await proxy.client.get("/agentsched/v1/engines")).json()
    return {one["engine"]: one for one in page["engines"]}


async def test_one_that_fails_is_ejected_and_comes_back(
    start: Any, upstream: Any, second: Any
) -> None:
    upstream.script = broken
    async with start(upstream.url, second.url, **QUICK) as proxy:
        for number in range(6):
            await proxy.chat(f"program {number}")
        drains = proxy.turns.events(EngineDrained)
        assert EngineDrained(engine=E0, is_draining=True) in drains
        assert (await shown(proxy))["e0"]["health"]["ejections"] >= 1
        assert (await shown(proxy))["e1"]["health"]["is_ejected"] is False
        back = EngineDrained(engine=E0, is_draining=False)
        await proxy.turns.until(lambda: back in proxy.turns.events(EngineDrained))
        assert proxy.scheduler.engines[E0].returned_at is not None


def refusing(code: object, kind: str) -> Any:
    """An engine that finds out what is wrong with a request when its stream has begun: vLLM does
    so with a grammar that it cannot compile."""
    error = {"message": "no such schema", "type": kind, "param": None, "code": code}

    async def script(exchange: Any) -> None:
        if exchange.target == "/v1/messages":
            said = {"type": "error", "error": {"type": kind, "message": "no such schema"}}
            await exchange.stream(b"event: error\n" + data(said))
            return
        if exchange.target == "/v1/responses":
            failed = {"id": "r", "status": "failed", "output": [], "error": error}
            said = {"type": "response.failed", "response": failed}
            await exchange.stream(b"event: response.failed\n" + data(said))
            return
        await exchange.stream(data({"error": error}), DONE)

    return script


async def ask_all_apis(proxy: Any, number: int) -> None:
    messages = [{"role": "user", "content": f"program {number}"}]
    for path, asked in (
        ("chat/completions", {"messages": messages}),
        ("messages", {"messages": messages, "max_tokens": 9}),
        ("responses", {"input": f"program {number}"}),
    ):
        body = {"model": "m", "stream": True} | asked
        assert (await proxy.client.post(f"/v1/{path}", json=body)).status_code == 200


@pytest.mark.parametrize(
    ("code", "kind"),
    [(400, "invalid_request_error"), ("invalid_prompt", "invalid_request_error")],
)
async def test_a_refusal_inside_a_stream_is_not_the_engines_fault(
    start: Any, upstream: Any, second: Any, code: object, kind: str
) -> None:
    upstream.script = second.script = refusing(code, kind)
    async with start(upstream.url, second.url, **QUICK) as proxy:
        for number in range(3):
            await ask_all_apis(proxy, number)
        health = proxy.gateway.fleet.health
        assert [health.told(engine).failures_total for engine in (E0, E1)] == [0, 0]
        assert proxy.turns.events(EngineDrained) == []


async def test_a_failure_inside_a_stream_is(start: Any, upstream: Any, second: Any) -> None:
    upstream.script = second.script = refusing(500, "InternalServerError")
    async with start(upstream.url, second.url, **QUICK) as proxy:
        for number in range(3):
            await ask_all_apis(proxy, number)
        assert proxy.turns.events(EngineDrained)


async def test_the_last_engine_is_never_ejected(start: Any, upstream: Any) -> None:
    upstream.script = broken
    async with start(upstream.url, **QUICK) as proxy:
        for number in range(6):
            answer = await proxy.chat(f"program {number}")
            assert answer.status_code == 500
        assert proxy.turns.events(EngineDrained) == []


async def test_the_last_engine_of_a_model_is_never_ejected(
    start: Any, upstream: Any, second: Any
) -> None:
    upstream.script = broken
    second.models = ["other"]
    async with start(upstream.url, second.url, **QUICK) as proxy:
        for number in range(6):
            answer = await proxy.chat(f"program {number}")
            assert answer.status_code == 500
        assert proxy.turns.events(EngineDrained) == []
        assert proxy.gateway.fleet.health.told(E0).withheld_total
        # What the others have, too, may go.
        second.models = ["other", "m"]
        await proxy.turns.until(lambda: "m" in proxy.scheduler.engines[E1].capabilities.models)
        await until_ejected(proxy)
        assert proxy.gateway.fleet.health.ejected == [E0]


async def test_an_operators_drain_outlasts_an_ejection(
    start: Any, upstream: Any, second: Any
) -> None:
    upstream.script = broken
    async with start(upstream.url, second.url, **QUICK) as proxy:
        await until_ejected(proxy)
        health = proxy.gateway.fleet.health
        assert health.ejected == [E0]
        health.drained(E0, is_draining=True)
        upstream.script = type(upstream)().script
        await proxy.turns.until(lambda: not health.ejected)
        assert proxy.scheduler.engines[E0].is_draining
        health.drained(E0, is_draining=False)
        assert not proxy.scheduler.engines[E0].is_draining


async def test_an_ejected_one_that_is_taken_out_gets_nothing_more(
    start: Any, upstream: Any, second: Any
) -> None:
    """Neither the end of its ejection nor an operator's word brings back one that leaves."""
    gate = upstream.script = second.script = Gate(chunk("x"))
    async with start(upstream.url, second.url, **QUICK) as proxy:
        fleet = proxy.gateway.fleet
        inside = [asyncio.create_task(proxy.chat(f"long {n}", stream=True)) for n in range(2)]
        for engine in (upstream, second):
            await engine.exchange()
        for _ in range(2):
            fleet.suspect(E0, "broken")
        assert fleet.health.ejected == [E0]
        assert (await proxy.client.delete("/agentsched/v1/engines/e0")).status_code == 202
        await eventually(lambda: not fleet.health.ejected)
        assert not proxy.scheduler.engines[E0].is_up
        undrained = await proxy.client.post("/agentsched/v1/engines/e0/undrain")
        assert undrained.json()["error"]["code"] == "engine_leaves"
        assert not proxy.scheduler.engines[E0].is_up
        gate.open.set()
        assert [(await answer).status_code for answer in inside] == [200, 200]
        await eventually(lambda: set(fleet.members) == {E1})


async def test_one_that_comes_back_under_its_name_has_failed_nothing(
    start: Any, upstream: Any, second: Any
) -> None:
    """What is cut off as an engine goes is no failure of the one that is called so next."""
    upstream.script = second.script = Gate(chunk("x"))
    settings = QUICK | {"http": {"drain_timeout": "50ms"}}
    async with start(upstream.url, second.url, **settings) as proxy:
        fleet = proxy.gateway.fleet
        asked = [asyncio.create_task(proxy.chat(f"long {n}", stream=True)) for n in range(4)]
        for engine in (upstream, second):
            await engine.exchange(1)
        inside = list(proxy.scheduler.engines[E0].running)
        assert len(inside) == 2
        await proxy.client.delete("/agentsched/v1/engines/e0")
        await proxy.turns.until(lambda: not set(inside) & set(proxy.scheduler.steps))
        await eventually(lambda: set(fleet.members) == {E1})
        assert fleet.health.told(E0).failures_total == 0
        back = {"url": upstream.url, "id": "e0", "kind": "openai"}
        assert (await proxy.client.post("/agentsched/v1/engines", json=back)).status_code == 202
        await proxy.turns.until(lambda: proxy.scheduler.engines[E0].is_up)
        fleet.suspect(E0, "broken")
        assert fleet.health.ejected == []
        second.script.open.set()
        await asyncio.gather(*asked)


async def test_switched_off_nothing_is_counted(start: Any, upstream: Any, second: Any) -> None:
    upstream.script = broken
    off = QUICK | {"breaker": {"is_on": False}}
    async with start(upstream.url, second.url, **off) as proxy:
        for number in range(6):
            await proxy.chat(f"program {number}")
        assert proxy.turns.events(EngineDrained) == []


async def test_one_that_says_not_me_is_passed_over(start: Any, upstream: Any, second: Any) -> None:
    upstream.script = busy
    async with start(upstream.url, second.url, **QUICK) as proxy:
        answers = [await proxy.chat(f"program {number}") for number in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert proxy.gateway.retries.granted_total >= 1


async def test_who_made_way_for_other_work_has_all_of_its_tries_left(
    start: Any, upstream: Any, second: Any
) -> None:
    tries: Counter[str] = Counter()
    gate = Gate()

    async def script(exchange: Any) -> None:
        text = exchange.fields["messages"][0]["content"]
        tries[text] += 1
        if tries[text] == 2:
            await busy(exchange)
        elif text == "now":
            await exchange.whole(200, ANSWER, content_type="application/json")
        else:
            await gate(exchange)

    upstream.script = second.script = script
    limits = {"running_steps_per_engine_max": 1, "retries_max": 1}
    settings = QUICK | {"breaker": {"is_on": False}, "limits": limits}
    batch = {"x-agentsched-class": "batch"}
    async with start(upstream.url, second.url, **settings) as proxy:
        asked = [asyncio.create_task(proxy.chat(text, headers=batch)) for text in ("a", "b")]
        await upstream.exchange()
        await second.exchange()
        assert (await proxy.chat("now")).status_code == 200
        gate.open.set()
        assert [(await task).status_code for task in asked] == [200, 200]
        assert max(tries.values()) == 3
        assert proxy.scheduler.statistics().yielded_total >= 1


async def test_where_there_is_no_other_its_own_words_reach_the_client(
    start: Any, upstream: Any
) -> None:
    upstream.script = busy
    async with start(upstream.url, **QUICK) as proxy:
        answer = await proxy.chat("hi")
        assert answer.status_code == 503
        assert json.loads(answer.content)["error"]["message"] == "starting"


async def test_an_engine_of_another_model_is_no_other(
    start: Any, upstream: Any, second: Any
) -> None:
    upstream.script = busy
    second.models = ["other"]
    async with start(upstream.url, second.url, **QUICK) as proxy:
        answer = await proxy.chat("hi")
        assert answer.status_code == 503
        assert json.loads(answer.content)["error"]["message"] == "starting"
        assert len(upstream.exchanges) == 1
        assert proxy.gateway.fleet.health.told(E0).failures_in_a_row == 1


@pytest.mark.parametrize("burst", [0, 1])
async def test_without_budget_there_is_no_further_try(
    start: Any, upstream: Any, second: Any, burst: int
) -> None:
    async def drop(exchange: Any) -> None:
        exchange.cut()

    upstream.script = second.script = drop
    settings = QUICK | {"retries": {"share": 0.0, "burst": burst}, "breaker": {"is_on": False}}
    async with start(upstream.url, second.url, **settings) as proxy:
        answer = await proxy.chat("hi")
        assert answer.status_code == 502
        assert len(upstream.exchanges) + len(second.exchanges) == 1 + burst
