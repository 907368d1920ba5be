"""An engine with LMCache below it: pins and warm-ups go to its controller."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from proxy_upstream import Upstream
from shorthand import pin

from agentsched.config import Config
from agentsched.model import SECOND, HintOutcome
from agentsched.proxy.serve import running


async def test_a_pin_reaches_the_controller_with_the_engines_tokens(upstream: Upstream) -> None:
    asked: list[tuple[str, Any]] = []

    async def post(request: web.Request) -> web.Response:
        asked.append((request.path, await request.json()))
        return web.json_response({"event_id": "1", "num_tokens": 3})

    controller = web.Application()
    controller.router.add_post("/{path:.*}", post)
    answered = upstream.script

    async def script(exchange: Any) -> None:
        if exchange.target == "/tokenize":
            await exchange.json({"count": 3, "tokens": [1, 2, 3]})
        else:
            await answered(exchange)

    upstream.script = script
    async with TestServer(controller) as lmcache:
        engine = {
            "url": upstream.url,
            "id": "e0",
            "kind": "openai",
            "lmcache": str(lmcache.make_url("/")),
            "lmcache_instance": "gpu-1",
        }
        settings: dict[str, Any] = {
            "port": 0,
            "engines": [engine],
            "policies": {"pin": {"name": "fixed"}},
            "upstream": {"probe_interval": "50ms"},
        }
        async with running(Config(**settings)) as (gateway, url):
            import httpx

            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                headers = {"x-agentsched-program": "p"}
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200
            member = gateway.fleet.members[next(iter(gateway.fleet.members))]
            assert gateway.host.scheduler.engines[member.id].capabilities.pins
            [program] = gateway.host.scheduler.programs.values()
            [conversation] = program.conversations
            asked_for = pin(
                program=program.program,
                conversation=conversation,
                engine=member.id,
                tokens=3,
                until=gateway.host.now() + SECOND,
            )
            sink = gateway.host.hints[member.id]
            assert await sink.hint(asked_for) is HintOutcome.ACCEPTED
    assert asked == [
        ("/pin", {"instance_id": "gpu-1", "location": "LocalCPUBackend", "tokens": [1, 2, 3]})
    ]
