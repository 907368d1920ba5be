"""The aiohttp application: routes, start and stop of everything behind them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

from aiohttp import web

from agentsched.clock import Clock, MonotonicClock
from agentsched.compose import build_scheduler
from agentsched.config import Config, EngineConfig
from agentsched.model import EngineId, ProgramClosed, WireError, in_seconds
from agentsched.ports import Engine, EventSink
from agentsched.proxy import refusal
from agentsched.proxy.control import ControlPlane, Handler
from agentsched.proxy.fleet import Fleet, Member
from agentsched.proxy.gateway import ANONYMOUS, Gateway
from agentsched.proxy.generation import serve_generation
from agentsched.proxy.host import LiveHost
from agentsched.proxy.identity import IdentityIndex, IdentityLimits
from agentsched.proxy.plain import PlainRelay
from agentsched.proxy.request import Dialect
from agentsched.proxy.wire import WireLimits
from agentsched.telemetry.meters import MeterSink
from agentsched_adapters.detect import detect
from agentsched_adapters.hints import NoHints
from agentsched_adapters.openai_compatible import OpenAiCompatibleEngine
from agentsched_adapters.openai_http import HttpLimits
from agentsched_adapters.vllm import VllmEngine

log = logging.getLogger(__name__)

GATEWAY: Final = web.AppKey("gateway", Gateway)

_GENERATING: Final = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
}


def build_gateway(
    config: Config, *, clock: Clock | None = None, sinks: Sequence[EventSink] = ()
) -> Gateway:
    """Wire up one proxy; must be called on its event loop. Nothing is started yet."""
    scheduler = build_scheduler(config.scheduler())
    meters = MeterSink(scheduler)
    members = [_member(engine, config) for engine in config.engines]
    host = LiveHost(
        scheduler=scheduler,
        clock=clock or MonotonicClock(),
        hints={member.id: NoHints() for member in members},
        sinks=[meters, *sinks],
    )
    identity = config.identity
    return Gateway(
        config=config,
        host=host,
        fleet=Fleet(members=members, host=host, config=config.upstream),
        index=IdentityIndex(
            limits=IdentityLimits(
                programs_max=identity.programs_max, program_idle_ns_max=identity.idle_max
            ),
            extra_headers=identity.extra_headers,
            secret=_secret(config),
            default_tenant=ANONYMOUS,
        ),
        meters=meters,
        wire_limits=WireLimits(
            body_bytes_max=config.http.body_bytes_max, messages_max=config.http.messages_max
        ),
    )


def build_app(gateway: Gateway) -> web.Application:
    """The application that serves a gateway; starting it starts the gateway."""
    app = web.Application(client_max_size=gateway.config.http.body_bytes_max)
    app[GATEWAY] = gateway
    relay = PlainRelay(gateway)
    for path, dialect in _GENERATING.items():
        app.router.add_post(path, partial(serve_generation, gateway, dialect=dialect))
    app.router.add_post(
        "/v1/messages/count_tokens", partial(relay.serve, dialect=Dialect.COUNT_TOKENS)
    )
    app.router.add_post("/v1/embeddings", partial(relay.serve, dialect=Dialect.EMBEDDINGS))
    other = partial(relay.serve, dialect=Dialect.OTHER)
    app.router.add_get("/v1/models", relay.models)
    app.router.add_post("/tokenize", other)
    app.router.add_post("/detokenize", other)
    app.router.add_route("*", "/v1/responses/{response}", other)
    app.router.add_route("*", "/v1/responses/{response}/{verb}", other)
    app.router.add_route("*", "/v1/{tail:.+}", other)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", partial(_readyz, gateway))
    app.router.add_get("/metrics", partial(_metrics, gateway))
    app.router.add_routes(ControlPlane(gateway).routes())
    app.middlewares.append(_errors)
    app.cleanup_ctx.append(_running)
    app.on_response_prepare.append(_sign)
    return app


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    # Without it the library tells every client its own version and Python's.
    response.headers.setdefault("Server", "agentsched")


async def _running(app: web.Application) -> AsyncIterator[None]:
    gateway = app[GATEWAY]
    gateway.fleet.start()
    # Readiness is asked for from the first moment on: better late than wrong.
    await gateway.fleet.looked_at_all()
    expiry = asyncio.create_task(_expire(gateway), name="expire identities")
    yield
    expiry.cancel()
    await asyncio.gather(expiry, return_exceptions=True)
    await gateway.fleet.aclose()
    await gateway.host.aclose()


async def _expire(gateway: Gateway) -> None:
    """Forget programs that were idle for too long, a few times within that time."""
    period = max(1.0, in_seconds(gateway.config.identity.idle_max) / 20)
    while True:
        await asyncio.sleep(min(period, 60.0))
        for program in gateway.index.expire(now=gateway.host.now()):
            if program in gateway.host.scheduler.programs:
                gateway.host.feed(ProgramClosed(program=program, reason="idle"))


def _member(engine: EngineConfig, config: Config) -> Member:
    key = EngineId(engine.name)
    upstream = config.upstream
    limits = HttpLimits(
        connect_s=in_seconds(upstream.connect_timeout),
        first_byte_s=in_seconds(upstream.first_byte_timeout),
        idle_s=in_seconds(upstream.idle_timeout),
    )
    api_key = engine.api_key.get_secret_value() if engine.api_key else None

    async def connect() -> Engine:
        match engine.kind:
            case "vllm":
                return VllmEngine(key, engine.base_url, limits=limits, api_key=api_key)
            case "openai":
                return OpenAiCompatibleEngine(key, engine.base_url, limits=limits, api_key=api_key)
            case "auto":
                return await detect(key, engine.base_url, limits=limits, api_key=api_key)

    return Member(id=key, url=engine.base_url, connect=connect)


def _secret(config: Config) -> int:
    """What keys the hashes of prompts, so that no client can make two prompts collide."""
    given = config.identity.secret
    if given is None:
        return secrets.randbits(64)
    return int.from_bytes(hashlib.sha256(given.get_secret_value().encode()).digest()[:8])


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The last resort: any failure becomes an answer in the client's error shape."""
    dialect = _GENERATING.get(request.path, Dialect.OTHER)
    if request.path == "/v1/messages/count_tokens":
        dialect = Dialect.COUNT_TOKENS
    try:
        if _is_devious(request.raw_path):
            raise WireError("the path has dot segments or encoded slashes", code="bad_path")
        return await handler(request)
    except WireError as error:
        return refusal.of_wire_error(error).response(dialect, {})
    except web.HTTPException as error:
        return refusal.of_http_exception(error).response(dialect, {})
    except (ConnectionResetError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("a defect while serving %s", request.path)
        return refusal.DEFECT.response(dialect, {})


def _is_devious(raw_path: str) -> bool:
    """Whether an engine might read another path out of it than we did."""
    path = raw_path.split("?", 1)[0].lower()
    parts = path.replace("%2e", ".").split("/")
    return "%2f" in path or "\\" in path or "%5c" in path or ".." in parts or "." in parts


async def _healthz(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _readyz(gateway: Gateway, request: web.Request) -> web.Response:
    up = [engine.id for engine in gateway.fleet.up()]
    is_ready = bool(up) and not gateway.is_draining
    reason = "draining" if gateway.is_draining else "" if up else "no engine is up"
    return web.json_response(
        {"is_ready": is_ready, "reason": reason, "engines_up": up},
        status=200 if is_ready else 503,
    )


async def _metrics(gateway: Gateway, request: web.Request) -> web.Response:
    return web.Response(
        body=gateway.meters.exposition(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )
