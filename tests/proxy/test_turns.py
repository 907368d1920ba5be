"""Whose turn it is in an engine: a client's word counts as its tenant may, engines hear ours."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from proxy_upstream import DIALECTS, Exchange, Gate, Upstream
from shorthand import prefetch

from agentsched.model import ConversationId, EngineId
from agentsched.ports import EngineRequest
from agentsched.proxy.answer import Answer
from agentsched.proxy.request import Dialect
from agentsched.proxy.warming import WarmBodies
from agentsched.proxy.wire import WireLimits
from agentsched_adapters import VllmEngine

#: What a vLLM says of itself that goes by priority.
PAGES = {
    "/version": b'{"version": "0.32.0"}',
    "/metrics": b"# nothing yet\n",
    "/server_info?config_format=json": (
        b'{"vllm_config": {"scheduler_config": {"policy": "priority"}}}'
    ),
}
SOONEST = {"X-Vllm-Priority": "-1000", "X-Data-Parallel-Rank": "1", "X-DP-Rank": "1"}


async def answers(exchange: Exchange) -> None:
    """An engine without our plugin, in the dialect that it is asked in."""
    if exchange.target in DIALECTS:
        await exchange.json(DIALECTS[exchange.target][1])
    else:
        await exchange.whole(404, b"")


@pytest.mark.parametrize("path", DIALECTS)
async def test_no_client_says_it_to_an_engine(proxy: Any, upstream: Upstream, path: str) -> None:
    upstream.script = answers
    asked = {"model": "m", "priority": -1000} | DIALECTS[path][0]
    response = await proxy.client.post(path, json=asked, headers=SOONEST)
    assert response.status_code == 200
    seen = await upstream.exchange()
    assert not {name.lower() for name in SOONEST} & seen.headers.keys()
    assert "priority" not in seen.fields


async def test_nor_beside_the_scheduler(proxy: Any, upstream: Upstream) -> None:
    await proxy.client.post("/v1/embeddings", json={"model": "m", "input": "x"}, headers=SOONEST)
    seen = await upstream.exchange()
    assert not {name.lower() for name in SOONEST} & seen.headers.keys()


@pytest.mark.parametrize(
    ("headers", "field", "counts"),
    [
        ({}, 7, 7),
        ({}, -7, 0),
        ({"x-agentsched-tenant": "vip"}, -7, -5),
        ({"X-Vllm-Priority": "3"}, 7, 3),
        ({"X-Vllm-Priority": "soon"}, 7, 7),
        ({"X-Vllm-Priority": "3", "x-agentsched-priority": "2"}, 7, 2),
        ({}, "soon", 0),
        ({}, None, 0),
    ],
)
async def test_it_counts_as_its_tenant_may_set_it(
    start: Any, upstream: Upstream, headers: dict[str, str], field: Any, counts: int
) -> None:
    gate = upstream.script = Gate()
    async with start(upstream.url, tenants={"vip": {"priority_min": -5}}) as proxy:
        asked = asyncio.create_task(proxy.chat(headers=headers, priority=field))
        await upstream.exchange()
        [step] = proxy.scheduler.steps.values()
        counted = step.priority
        gate.open.set()
        assert (await asked).headers["x-agentsched-decision"].endswith("as=none")
    assert counted == counts


async def test_it_changes_nothing_of_whose_a_request_is(proxy: Any) -> None:
    parent = {"thread-id": "one", "session-id": "s"}
    child = {"thread-id": "two", "x-codex-parent-thread-id": "one"}
    shown = []
    for headers, fields in ((parent, {}), (child, {}), ({"thread-id": "two"}, {"priority": 4})):
        response = await proxy.chat(str(len(shown)), headers=headers, **fields)
        shown.append(response.headers["x-agentsched-program"])
    assert shown == ["s", "s", "s"]


@pytest.mark.parametrize("path", DIALECTS)
async def test_an_engine_hears_it_in_every_api(start: Any, upstream: Upstream, path: str) -> None:
    """vLLM's Messages API has no such field, and elsewhere it believes the header first."""
    upstream.pages, upstream.script = PAGES, answers
    engines = [{"url": upstream.url, "id": "e0", "kind": "vllm"}]
    asked = {"model": "m", "priority": -1000} | DIALECTS[path][0]
    async with start(engines=engines, profile="autellix") as proxy:
        assert (await proxy.client.post(path, json=asked, headers=SOONEST)).status_code == 200
    [seen] = [e for e in upstream.exchanges if "x-request-id" in e.headers]
    [said] = [value for name, value in seen.pairs if name.lower() == "x-vllm-priority"]
    assert int(said) == seen.fields["priority"] > 0


def test_a_warm_up_is_last_in_every_api() -> None:
    limits = WireLimits(body_bytes_max=1 << 20, messages_max=9)
    bodies = WarmBodies(limits=limits, is_on=lambda: True)
    asked = {"model": "m", "max_tokens": 5, "messages": [], "priority": 3}
    request = EngineRequest(
        method="POST",
        target="/v1/messages",
        headers=(("X-Vllm-Priority", "3"), ("X-Other", "y")),
        body=json.dumps(asked).encode(),
    )
    bodies.keep(
        ConversationId("c"),
        request,
        Answer(text="a", is_complete=True),
        dialect=Dialect.MESSAGES,
        program="p",
        tenant="t",
    )

    def sent_to(*, takes_priority: bool) -> list[tuple[Any, Any]]:
        engine = VllmEngine(EngineId("e"), "http://e", priority=takes_priority)
        sent = bodies.warm_requests(prefetch(conversation="c"), engine)
        assert sent
        return [(list(one.headers), json.loads(one.body).get("priority")) for one in sent]

    last = [("X-Other", "y"), ("X-Vllm-Priority", "1000000")]
    assert all(one == (last, 1_000_000) for one in sent_to(takes_priority=True))
    assert all(one == ([("X-Other", "y")], None) for one in sent_to(takes_priority=False))
