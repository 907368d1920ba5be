"""The embedded engine over HTTP: vLLM's routes in front of the engine model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agentsched_bench.engine.control import ControlRoutes
from agentsched_bench.engine.driver import Driver
from agentsched_bench.engine.generate import GenerateRoutes, break_off
from agentsched_bench.engine.plain import PlainRoutes
from agentsched_bench.engine.playback import Playback
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.state import ServerState

_BODY_BYTES_MAX = 256 * 1024 * 1024
#: How long a stop waits for answers in flight.
_SHUTDOWN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One embedded engine and how it shows itself."""

    engine: EngineConfig
    models: tuple[str, ...] = ("sim",)
    #: Model time per real time: 10 is ten times faster than the cost model.
    speed: float = 1.0
    seed: int = 0
    playback: Playback = field(default_factory=Playback)
    #: Refuse a non-zero priority under FCFS, as older vLLMs do; 0.32 takes and ignores it.
    refuse_priority: bool = False

    def __post_init__(self) -> None:
        assert self.models
        assert self.speed > 0


@contextlib.asynccontextmanager
async def running_engine(
    config: ServerConfig, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RunningEngine]:
    """Serve an engine while the context is open; port 0 picks a free one.

    Raises:
        OSError: the address cannot be bound.
    """
    driver = Driver(config.engine, speed=config.speed)
    state = ServerState(
        driver=driver,
        models=config.models,
        seed=config.seed,
        playback=config.playback,
        started_at=int(time.time()),
        refuse_priority=config.refuse_priority,
    )
    runner = web.AppRunner(
        build_app(state),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=_SHUTDOWN_S,
    )
    async with driver:
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            bound = runner.addresses[0]
            yield RunningEngine(url=f"http://{_in_url(host)}:{bound[1]}", driver=driver)
        finally:
            state.release_hung()
            await runner.cleanup()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """A served engine: where it answers, and its inside for tests."""

    url: str
    driver: Driver


def build_app(state: ServerState) -> web.Application:
    """The application; the driver must be running while it serves."""
    app = web.Application(client_max_size=_BODY_BYTES_MAX, middlewares=[_outage(state)])
    app.add_routes(GenerateRoutes(state).routes())
    app.add_routes(PlainRoutes(state).routes())
    app.add_routes(ControlRoutes(state).routes())
    return app


def _outage(state: ServerState) -> Middleware:
    """A crashed engine breaks connections, a hung one is silent; only its control routes answer."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/sim/"):
            return await handler(request)
        if state.crashed:
            return break_off(request)
        await state.not_hung()
        with state.tracking(request):
            return await handler(request)

    return guard


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
