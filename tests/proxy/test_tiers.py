"""An engine with LMCache below it: pins and warm-ups go to its controller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from live import eventually
from proxy_upstream import Upstream
from shorthand import pin

from agentsched.config import Config
from agentsched.model import SECOND, EngineId, HintOutcome, Pin
from agentsched.proxy.app import _member
from agentsched.proxy.fleet_hints import FleetHints
from agentsched.proxy.steering import Steering

E0 = EngineId("e0")
FIXED = {"pin": {"name": "fixed"}}
PINNED = ("/pin", {"instance_id": "gpu-1", "location": "LocalCPUBackend", "tokens": [1, 2, 3]})


@dataclass
class Controller:
    """LMCache's: keeps what it is asked, and pins whatever it is told to."""

    url: str = ""
    asked: list[tuple[str, Any]] = field(default_factory=list)

    async def post(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json()))
        return web.json_response({"event_id": "1", "num_tokens": 3})


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    made = Controller()
    application = web.Application()
    application.router.add_post("/{path:.*}", made.post)
    async with TestServer(application) as server:
        made.url = str(server.make_url("/"))
        yield made


@pytest.fixture
def tokenizing(upstream: Upstream) -> Upstream:
    """An engine that says which tokens a prompt has."""
    answered = upstream.script

    async def script(exchange: Any) -> None:
        if exchange.target == "/tokenize":
            await exchange.json({"count": 3, "tokens": [1, 2, 3]})
        else:
            await answered(exchange)

    upstream.script = script
    return upstream


def plain(upstream: Upstream) -> dict[str, Any]:
    return {"url": upstream.url, "id": "e0", "kind": "openai"}


def tiered(upstream: Upstream, controller: Controller) -> dict[str, Any]:
    return plain(upstream) | {"lmcache": controller.url, "lmcache_instance": "gpu-1"}


def reread(proxy: Any, *engines: dict[str, Any]) -> None:
    """The configuration is read again, and has these engines now."""
    said = Config.model_validate({"engines": engines}).engines
    wanted = proxy.gateway.config.model_copy(update={"engines": said})
    Steering(proxy.gateway, make_member=_member, reread=lambda: wanted).reload()


async def a_pin(proxy: Any, program: str = "p") -> Pin:
    """One for the conversation of a program that was just served."""
    answer = await proxy.chat(agentsched={"program": program})
    assert answer.status_code == 200
    *_, record = proxy.scheduler.programs.values()
    return pin(
        program=record.program,
        conversation=next(iter(record.conversations)),
        engine=E0,
        tokens=3,
        until=proxy.gateway.host.now() + SECOND,
    )


async def test_a_pin_reaches_the_controller_with_the_engines_tokens(
    start: Any, tokenizing: Upstream, controller: Controller
) -> None:
    async with start(engines=[tiered(tokenizing, controller)], policies=FIXED) as proxy:
        asked_for = await a_pin(proxy)
        assert proxy.scheduler.engines[E0].capabilities.pins
        assert await proxy.gateway.host.hints[E0].hint(asked_for) is HintOutcome.ACCEPTED
    assert controller.asked == [PINNED]


async def test_an_engine_that_gets_a_tier_at_run_time_is_pinned_there(
    start: Any, tokenizing: Upstream, controller: Controller
) -> None:
    async with start(engines=[plain(tokenizing)], policies=FIXED) as proxy:
        await a_pin(proxy)
        reread(proxy, tiered(tokenizing, controller))
        await proxy.turns.until(lambda: proxy.scheduler.engines[E0].capabilities.tier)
        asked_for = await a_pin(proxy, "q")
        assert await proxy.gateway.host.hints[E0].hint(asked_for) is HintOutcome.ACCEPTED
    assert controller.asked == [PINNED]


async def test_a_replaced_engines_connection_to_its_tier_is_closed_with_it(
    start: Any, tokenizing: Upstream, controller: Controller
) -> None:
    async with start(engines=[tiered(tokenizing, controller)], policies=FIXED) as proxy:
        hints: FleetHints = proxy.gateway.host.hints
        asked_for = await a_pin(proxy)
        await hints[E0].hint(asked_for)
        [(_, old)] = hints._tiers.values()
        fleet = proxy.gateway.fleet
        before = fleet.members[E0]
        # The same tier, and an engine that is described anew; then one without a tier.
        reread(proxy, tiered(tokenizing, controller) | {"api_key": "k"})
        await eventually(lambda: fleet.members[E0] is not before)
        await hints[E0].hint(asked_for)
        await eventually(lambda: len(hints._tiers) == 1)
        [(_, new)] = hints._tiers.values()
        assert new is not old
        assert old._http._is_closed
        assert not new._http._is_closed
        reread(proxy, plain(tokenizing))
        await eventually(lambda: not hints._tiers)
        await eventually(lambda: new._http._is_closed)
