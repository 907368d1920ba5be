"""The embedded engine's own routes under `/sim`: faults, crash, hang, recovery, a look inside."""

from __future__ import annotations

from dataclasses import asdict

import msgspec
from aiohttp import web

from agentsched.model.errors import WireError
from agentsched_bench.engine.generate import json_response, openai_failure
from agentsched_bench.engine.state import ServerState
from agentsched_bench.engine.wire import decode


class FaultBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`kind` in the notation of the header; `count` absent is without end."""

    kind: str
    rate: float = 1.0
    count: int | None = None
    seed: int = 0


class ControlRoutes:
    """Handlers that answer even while the engine is down."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/sim/faults", self.faults),
            web.post("/sim/faults", self.add_fault),
            web.delete("/sim/faults", self.clear_faults),
            web.post("/sim/crash", self.crash),
            web.post("/sim/hang", self.hang),
            web.post("/sim/resume", self.resume),
            web.post("/sim/reset_cache", self.reset_cache),
            web.get("/sim/state", self.state),
        ]

    async def faults(self, _request: web.Request) -> web.Response:
        return json_response({"faults": self._state.faults.listing()})

    async def add_fault(self, request: web.Request) -> web.Response:
        try:
            body = decode(await request.read(), FaultBody)
            self._state.faults.add(text=body.kind, rate=body.rate, count=body.count, seed=body.seed)
        except WireError as error:
            return openai_failure(error)
        return await self.faults(request)

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._state.faults.clear()
        return await self.faults(request)

    async def crash(self, _request: web.Request) -> web.Response:
        self._state.crash()
        return await self.state(_request)

    async def hang(self, _request: web.Request) -> web.Response:
        self._state.hang()
        return await self.state(_request)

    async def resume(self, _request: web.Request) -> web.Response:
        self._state.resume()
        return await self.state(_request)

    async def reset_cache(self, request: web.Request) -> web.Response:
        done = self._state.driver.model.reset_cache()
        return json_response({"reset": done}, status=200 if done else 409)

    async def state(self, _request: web.Request) -> web.Response:
        driver = self._state.driver
        return json_response(
            {
                "crashed": self._state.crashed,
                "requests": self._state.load,
                "model_time_ns": driver.now(),
                # A process that was started anew counts from 0, as `/metrics` does; whoever
                # measures wants to know what it did before, too.
                "gauges": asdict(driver.gauges_of_all_lives()),
            }
        )
