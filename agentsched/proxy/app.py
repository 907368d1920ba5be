"""The aiohttp application: routes, start and stop of everything behind them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Final

from aiohttp import HttpVersion11, web

from agentsched.clock import Clock, MonotonicClock
from agentsched.compose import build_scheduler
from agentsched.config import Config, EngineConfig
from agentsched.dashboard.board import Dashboard
from agentsched.dashboard.rows import seconds_of
from agentsched.dashboard.shapes import GoneReplica, Replicas
from agentsched.kernel import Scheduler
from agentsched.kernel.holdings import conversation_of
from agentsched.model import ConversationId, EngineId, ProgramClosed, WireError, in_seconds
from agentsched.ports import Engine, EventSink
from agentsched.proxy import refusal, shapes
from agentsched.proxy.access.browser import protect
from agentsched.proxy.access.metrics import GateCollector
from agentsched.proxy.access.principal import principal_of
from agentsched.proxy.bodies import BODIES
from agentsched.proxy.control import ControlPlane, Handler
from agentsched.proxy.fleet import Fleet, Member, Tier
from agentsched.proxy.fleet_hints import FleetHints
from agentsched.proxy.gateway import ANONYMOUS, Gateway, wire_limits
from agentsched.proxy.generation import serve_generation
from agentsched.proxy.health import RetryBudget
from agentsched.proxy.host import LiveHost
from agentsched.proxy.idempotency import SharedAnswers
from agentsched.proxy.identity import IdentityIndex, IdentityLimits
from agentsched.proxy.memory import Memory, sharing_of
from agentsched.proxy.observed import observed
from agentsched.proxy.plain import GOING_ON, MODELS, PlainRelay
from agentsched.proxy.receive import check_length, request_id
from agentsched.proxy.request import Dialect
from agentsched.proxy.resends import Resends
from agentsched.proxy.resilience import ResilienceCollector
from agentsched.proxy.sending import finish, hang_up, send
from agentsched.proxy.steering import Steering
from agentsched.proxy.tenants import apply_tenants
from agentsched.proxy.warming import WarmBodies
from agentsched.telemetry.meters import MeterSink
from agentsched_adapters.detect import detect
from agentsched_adapters.openai_compatible import OpenAiCompatibleEngine
from agentsched_adapters.openai_http import HttpLimits
from agentsched_adapters.sglang import SglangEngine
from agentsched_adapters.vllm import VllmEngine

log = logging.getLogger(__name__)

GATEWAY: Final = web.AppKey("gateway", Gateway)
STEERING: Final = web.AppKey("steering", Steering)

_GENERATING: Final = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
}


def build_gateway(
    config: Config,
    *,
    clock: Clock | None = None,
    sinks: Sequence[EventSink] = (),
    memory: Memory | None = None,
) -> Gateway:
    """Wire up one proxy; must be called on its event loop. Nothing is started yet.

    With a `memory` it goes on from where an earlier process was.
    """
    scheduler = memory.scheduler if memory is not None else build_scheduler(config.scheduler())
    meters = MeterSink(scheduler, members=lambda: fleet.members)
    members = [_member(engine, config) for engine in config.engines]
    clock = clock or (memory.clock if memory is not None else MonotonicClock())
    hints = FleetHints(clock)
    host = LiveHost(
        scheduler=scheduler,
        clock=clock,
        hints=hints,
        sinks=[meters, *([memory.sink] if memory is not None else ()), *sinks],
    )
    fleet = Fleet(members=members, host=host, config=config.upstream, breaker=config.breaker)
    hints.follow(fleet)
    identity = config.identity
    limits = wire_limits(config.http)
    warm_bodies = WarmBodies(
        limits=limits,
        # Warm-ups send them, and a tier below an engine is told of pins by their tokens.
        is_on=lambda: (
            scheduler.policies.names["prefetch"] != "never"
            or (scheduler.policies.names["pin"] != "never" and fleet.has_tiers)
        ),
        lives=partial(_may_go_on, scheduler),
    )
    hints.warm_with(warm_bodies)
    host.watch(warm_bodies)
    meters.registry.register(warm_bodies)
    if memory is not None:
        meters.registry.register(memory.collector)
    gateway = Gateway(
        config=config,
        host=host,
        fleet=fleet,
        index=(memory.index if memory is not None else IdentityIndex)(
            limits=IdentityLimits(
                programs_max=identity.programs_max, program_idle_ns_max=identity.idle_max
            ),
            extra_headers=identity.extra_headers,
            secret=_secret(config, memory),
            default_tenant=ANONYMOUS,
        ),
        resends=memory.resends if memory is not None else Resends(),
        retries=RetryBudget(config.retries),
        shared=SharedAnswers(config.idempotency),
        meters=meters,
        wire_limits=limits,
        warm_bodies=warm_bodies,
    )
    gateway.sharing = sharing_of(memory, index=gateway.index, host=host, config=config)
    _measured(gateway)
    return gateway


def _may_go_on(scheduler: Scheduler, conversation: ConversationId) -> bool:
    """Whether its program lives, and nobody goes on with it under another id."""
    talk = conversation_of(scheduler, conversation)
    return talk is not None and not talk.is_replaced


def _measured(gateway: Gateway) -> None:
    """Enter what a whole proxy counts, beside what its parts do, into its metrics."""
    registry = gateway.meters.registry
    registry.register(GateCollector(gateway.gate))
    resilience = ResilienceCollector(
        fleet=gateway.fleet,
        retries=gateway.retries,
        resends=gateway.resends,
        shared=gateway.shared,
        bodies=gateway.bodies,
    )
    registry.register(resilience)
    if gateway.sharing is not None:
        registry.register(gateway.sharing)


def build_app(gateway: Gateway, *, reread: Callable[[], Config] | None = None) -> web.Application:
    """The application that serves a gateway; starting it starts the gateway.

    `reread` reads the configuration again, where there is a file to read.
    """
    app = web.Application(client_max_size=gateway.config.http.body_bytes_max)
    app[GATEWAY] = gateway
    app[BODIES] = gateway.bodies
    for method, path, handler in _routes(gateway):
        app.router.add_route(method, path, handler, expect_handler=_expect)
    app[STEERING] = steering = Steering(gateway, make_member=_member, reread=reread)
    control = ControlPlane(gateway, steering)
    dashboard = _dashboard(gateway)
    app.router.add_routes(dashboard.routes())
    app.router.add_routes(control.routes())
    app.middlewares.append(_errors)
    app.cleanup_ctx.append(_watched)
    app.cleanup_ctx.append(_running)
    app.cleanup_ctx.append(_following)
    app.cleanup_ctx.append(dashboard.running)
    app.on_response_prepare.append(_sign)
    return app


def _dashboard(gateway: Gateway) -> Dashboard:
    async def send_part(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        await send(request, response, data, gateway.config.http)

    return Dashboard(
        gateway.host,
        members=gateway.fleet.members.values,
        draining=gateway.draining,
        viewer=_viewer,
        may_go_on=gateway.still_admits,
        send=send_part,
        replicas=partial(_replicas, gateway),
    )


def _replicas(gateway: Gateway) -> Replicas | None:
    """Who else is on the bus, on the clock of the frames."""
    if gateway.bus is None:
        return None
    found = gateway.bus.neighbours()
    return Replicas(
        replica=gateway.bus.replica,
        is_connected=found.is_connected,
        others=found.others,
        gone=tuple(GoneReplica(replica=r, since=seconds_of(at)) for r, at in found.gone.items()),
    )


def _viewer(request: web.Request) -> str | None:
    """As which tenant a request looks at things; None: all of them are its business."""
    principal = principal_of(request)
    return None if principal.is_admin else principal.tenant or ""


def _routes(gateway: Gateway) -> Iterator[tuple[str, str, Handler]]:
    relay = PlainRelay(gateway)
    for path, dialect in _GENERATING.items():
        yield "POST", path, partial(serve_generation, gateway, dialect=dialect)
    counting = partial(relay.serve, dialect=Dialect.COUNT_TOKENS)
    yield "POST", "/v1/messages/count_tokens", counting
    yield "POST", "/v1/embeddings", partial(relay.serve, dialect=Dialect.EMBEDDINGS)
    other = partial(relay.serve, dialect=Dialect.OTHER)
    yield "GET", "/v1/models", relay.models
    yield "POST", "/tokenize", other
    yield "POST", "/detokenize", other
    for path in GOING_ON:
        yield "POST", path, other
    yield "*", "/v1/responses/{response}", other
    yield "*", "/v1/responses/{response}/{verb}", other
    yield "*", "/v1/{tail:.+}", other
    for path, look in (("/readyz", _readyz), ("/metrics", _metrics), ("/healthz", _healthz)):
        for method in ("GET", "HEAD"):
            yield method, path, partial(look, gateway)


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    # Otherwise the library tells every client its own version and Python's.
    response.headers["Server"] = "agentsched"
    response.headers.setdefault("x-request-id", request_id(request))
    protect(request, response)
    # A draining proxy's clients should meet another replica next. After a CONNECT the library reads
    # a body as the next request, after most upgrades it loses what came with them.
    is_last = request.method == "CONNECT" or "Upgrade" in request.headers
    # HTTP/1.0 has one way to say where a stream ends; the library says that it will, and does not.
    is_last |= request.version < HttpVersion11 and "Content-Length" not in response.headers
    if is_last or request.app[GATEWAY].is_draining:
        # The library has made its headers.
        response.force_close()
        response.headers["Connection"] = "close"


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """`Expect: 100-continue`: say at once when the body would be refused anyway."""
    if request.version < HttpVersion11:
        return None  # what HTTP/1.0 says there means nothing (RFC 9110, 10.1.1)
    if request.headers.get("Expect", "").lower() != "100-continue":
        no = WireError("only 100-continue can be expected", status=417, code="bad_expectation")
        return refusal.of_wire_error(no).response(_dialect(request), {})
    try:
        request.app[GATEWAY].gate.enter(request)
        check_length(request, request.app[GATEWAY].config.http)
    except WireError as error:
        return refusal.of_wire_error(error).response(_dialect(request), {})
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # This is not yet part of the answer.
    request.writer.output_size = 0
    return None


async def _watched(app: web.Application) -> AsyncIterator[None]:
    # The first to begin is the last to end: whatever happens at the end is told, too.
    async with observed(app[GATEWAY]):
        yield


async def _running(app: web.Application) -> AsyncIterator[None]:
    gateway = app[GATEWAY]
    apply_tenants(gateway, {}, gateway.config.tenants)
    gateway.fleet.start()
    # Readiness is asked for from the first moment on: better late than wrong.
    await gateway.fleet.looked_at_all()
    gateway.fleet.give_up_absent()
    expiry = asyncio.create_task(_expire(gateway), name="expire identities")
    yield
    gateway.draining.set()
    expiry.cancel()
    await asyncio.gather(expiry, return_exceptions=True)
    await gateway.shared.aclose()
    await app[STEERING].aclose()
    await gateway.lists.aclose()
    await gateway.fleet.aclose()
    await gateway.host.aclose()


async def _following(app: web.Application) -> AsyncIterator[None]:
    """What other replicas did is known before we say that we are ready."""
    sharing = app[GATEWAY].sharing
    if sharing is None:
        yield
        return
    async with sharing.following():
        yield


def _warn_of_tight_bound(gateway: Gateway, *, warned: bool) -> bool:
    """Say once that the operator's wait bound cannot be held, until it can be again."""
    bound = shapes.wait_bound(gateway.host.scheduler)
    if bound.is_too_tight and not warned:
        text = "max_wait of %g s is tighter than this load allows (about %g s): docs/fairness.md"
        log.warning(text, bound.max_wait_s, bound.sensible_s)
    return bound.is_too_tight


async def _expire(gateway: Gateway) -> None:
    """Forget programs that were idle for too long, a few times within that time."""
    period = max(1.0, in_seconds(gateway.config.identity.idle_max) / 20)
    warned = False
    while True:
        await asyncio.sleep(min(period, 60.0))
        try:
            warned = _warn_of_tight_bound(gateway, warned=warned)
            for program in gateway.index.expire(now=gateway.host.now()):
                if program in gateway.host.scheduler.programs:
                    gateway.host.feed(ProgramClosed(program=program, reason="idle"))
        except Exception:
            log.exception("a defect while forgetting idle programs")


def _member(engine: EngineConfig, config: Config) -> Member:
    key = EngineId(engine.name)
    upstream = config.upstream
    limits = HttpLimits(
        connect_s=in_seconds(upstream.connect_timeout),
        first_byte_s=in_seconds(upstream.first_byte_timeout),
        idle_s=in_seconds(upstream.idle_timeout),
    )
    api_key = engine.api_key.get_secret_value() if engine.api_key else None
    heard = engine.kv_events

    async def connect() -> Engine:
        match engine.kind:
            case "vllm":
                return VllmEngine(
                    key, engine.base_url, limits=limits, api_key=api_key, kv_events=heard
                )
            case "sglang":
                return SglangEngine(key, engine.base_url, limits=limits, api_key=api_key)
            case "openai":
                return OpenAiCompatibleEngine(key, engine.base_url, limits=limits, api_key=api_key)
            case "auto":
                return await detect(
                    key, engine.base_url, limits=limits, api_key=api_key, kv_events=heard
                )

    tier = None
    if engine.lmcache is not None:
        instance = engine.lmcache_instance or engine.name
        tier = Tier(url=str(engine.lmcache).rstrip("/"), instance=instance)
    return Member(
        id=key,
        url=engine.base_url,
        connect=connect,
        has_key=api_key is not None,
        is_detected=engine.kind == "auto",
        tier=tier,
        models=engine.models,
    )


def _secret(config: Config, memory: Memory | None) -> int:
    """What keys the hashes of prompts, so that no client can make two prompts collide."""
    given = config.identity.secret
    if given is None:
        return memory.secret if memory is not None else secrets.randbits(64)
    return int.from_bytes(hashlib.sha256(given.get_secret_value().encode()).digest()[:8])


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The last resort: any failure becomes an answer in the client's error shape, in time."""
    gateway = request.app[GATEWAY]
    is_for_engine = request.path.startswith("/v1/")
    gateway.answering += is_for_engine
    try:
        return await _answered(request, handler)
    finally:
        gateway.answering -= is_for_engine
        request.app[BODIES].release(request)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await _answer(request, handler)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("a defect while serving %s", request.raw_path[:256])
        if request.writer.output_size:
            # Whatever came now would be read as a part of the answer that has begun.
            hang_up(request)
            raise ConnectionResetError("a defect in the middle of an answer") from None
        response = refusal.DEFECT.response(_dialect(request), _ids(request))
    await finish(request, response, request.app[GATEWAY].config.http)
    return response


def answer_in_shape(server: web.Server) -> None:
    """Give our shape to what the library refuses before any middleware: expectations, so far."""
    handle = server.request_handler

    async def handled(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handle(request)
        except web.HTTPException as error:
            return refusal.of_http_exception(error).response(_dialect(request), _ids(request))

    server.request_handler = handled


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        if not request.path.startswith("/agentsched/") and _is_devious(request.raw_path):
            text = "the path has dot segments, encoded slashes or two slashes in a row"
            raise WireError(text, code="bad_path")
        request.app[GATEWAY].gate.enter(request)
        return await handler(request)
    except WireError as error:
        response = refusal.of_wire_error(error).response(_dialect(request), _ids(request))
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response
    except web.HTTPException as error:
        response = refusal.of_http_exception(error).response(_dialect(request), _ids(request))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response


def _ids(request: web.BaseRequest) -> dict[str, str]:
    return {"x-request-id": request_id(request)}


def _dialect(request: web.BaseRequest) -> Dialect:
    if request.path == "/v1/messages/count_tokens":
        return Dialect.COUNT_TOKENS
    return _GENERATING.get(request.path, Dialect.OTHER)


def _is_devious(raw_path: str) -> bool:
    """Whether an engine might read another path out of it than we did."""
    path = raw_path.split("?", 1)[0].lower()
    if path.startswith(MODELS):
        # Their names have slashes, which SDKs encode; whoever decodes them stays below this.
        path = path.replace("%2f", "/")
    parts = path.replace("%2e", ".").split("/")
    # An empty part, which some servers leave out, may be first (`http://` too) or last.
    has_bad_part = ".." in parts or "." in parts or "" in parts[2:-1]
    return has_bad_part or "%2f" in path or "\\" in path or "%5c" in path


async def _healthz(gateway: Gateway, request: web.Request) -> web.Response:
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
