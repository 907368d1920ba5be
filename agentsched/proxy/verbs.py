"""The operator's verbs of the control plane: plan, other policies, engines that come and go."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from typing import Any, Final, assert_never

import msgspec
from aiohttp import web
from msgspec import UNSET
from pydantic import ValidationError

from agentsched.compose import SchedulerConfig
from agentsched.config import EngineConfig
from agentsched.kernel.rehearsal import Plan
from agentsched.model import (
    Choice,
    ConfigError,
    Dispatch,
    EngineId,
    Instant,
    Limits,
    PolicyError,
    Reject,
    StepId,
    TenantId,
    Unpin,
    between,
    in_seconds,
    parse_span,
)
from agentsched.policy.registry import POINTS
from agentsched.proxy import forms
from agentsched.proxy.access.principal import ANYBODY, TENANTS, principal_of
from agentsched.proxy.access.quota import HintQuota
from agentsched.proxy.access.targets import check_target
from agentsched.proxy.errors import error_body
from agentsched.proxy.fields import BROKEN
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.identity import Identity
from agentsched.proxy.receive import receive
from agentsched.proxy.refusal import Refusal
from agentsched.proxy.request import Dialect
from agentsched.proxy.steering import Steering
from agentsched.proxy.wire import parse_request

_DIALECTS: Final = {
    "": Dialect.CHAT,
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
}
#: A dry run takes time that grows with live programs (10,000: some 0.1 s), while everybody waits. A
#: tenant may have so many programs gone through a second, a tenth of this proxy's time; and so many
#: are counted for the smallest run.
_PLANNED_PER_S: Final = 10_000
_PLAN_AT_LEAST: Final = 100


class _Policy(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    params: dict[str, Any] = {}


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST policies`. What is left out stays as it is."""

    profile: str | None = None
    policies: dict[str, _Policy] = {}
    max_wait: str | None = None
    max_bypass: int | None = None


class Verbs:
    """Handlers that change a running proxy, or say what it would do."""

    def __init__(self, gateway: Gateway, steering: Steering) -> None:
        self._gateway = gateway
        self._steering = steering
        self._plans = HintQuota()

    async def plan(self, request: web.Request) -> web.Response:
        """`POST plan/v1/chat/completions` and the like: what would happen to this request now.

        Headers and body are those of the request itself. Nothing is changed, nothing remembered.
        """
        dialect = _DIALECTS.get(request.match_info["path"])
        if dialect is None:
            return _error(404, "unknown_path", f"There are: {', '.join(filter(None, _DIALECTS))}")
        gateway, principal = self._gateway, principal_of(request)
        received = await receive(request, gateway.config.http)
        tenant = _tenant(gateway, request, received.headers)
        if not principal.is_admin and (wait := self._wait_to_plan(tenant)):
            text = "You plan more than your share. Try again later."
            return Refusal(
                status=429, code="plan_quota", message=text, retry_after_s=math.ceil(wait)
            ).response(Dialect.OTHER, {"x-request-id": received.request_id})
        parsed = parse_request(dialect, received.body, gateway.wire_limits)
        now = gateway.host.now()
        identity = gateway.index.identify(
            parsed,
            received.headers,
            tenant=tenant,
            now=now,
            bytes_per_token=gateway.ratios.of(parsed.model),
            is_dry=True,
        )
        arrived = gateway.arrival(StepId(secrets.token_hex(16)), identity, parsed, now=now)
        plan = gateway.host.scheduler.plan(arrived, now=now)
        shown = _shown(identity, plan, now=now)
        if not principal.is_admin:
            # How busy engines are with others, and what of others' would give way.
            shown = msgspec.structs.replace(shown, engines=UNSET, releases=UNSET)
        return _json(shown)

    def _wait_to_plan(self, tenant: TenantId) -> float:
        """Take a plan from a tenant's part; 0, or after how many seconds it may ask again."""
        host = self._gateway.host
        cost = _PLAN_AT_LEAST + len(host.scheduler.programs)
        return self._plans.take(tenant, cost, rate=_PLANNED_PER_S, now=host.now())

    async def choose(self, request: web.Request) -> web.Response:
        """`POST policies`: another profile, other policies, another bound; at once."""
        try:
            received = await receive(request, self._gateway.config.http)
            wanted = msgspec.json.decode(received.body, type=_Wanted)
            config, limits = self._wanted(wanted)
            self._steering.choose(config, limits=limits)
        except (*BROKEN, ConfigError, PolicyError) as error:
            return _error(400, "bad_policies", str(error))
        scheduler = self._gateway.host.scheduler
        return _json(
            {"profile": scheduler.policies.profile, "active": dict(scheduler.policies.names)}
        )

    def _wanted(self, wanted: _Wanted) -> tuple[SchedulerConfig, Limits | None]:
        unknown = sorted(set(wanted.policies) - set(POINTS))
        if unknown:
            raise ConfigError(f"no policy point is called {unknown[0]} ({', '.join(POINTS)})")
        scheduler = self._gateway.host.scheduler
        active = scheduler.policies
        given = {p: Choice(name=c.name, params=c.params) for p, c in wanted.policies.items()}
        if wanted.profile is None:
            given = dict(active.choices) | given
        config = SchedulerConfig(profile=wanted.profile or active.profile, choices=given)
        if wanted.max_wait is None and wanted.max_bypass is None:
            return config, None
        old = {name: getattr(scheduler.limits, name) for name in Limits.__slots__}
        if wanted.max_wait is not None:
            old["wait_ns_max"] = parse_span(wanted.max_wait)
        if wanted.max_bypass is not None:
            old["bypasses_max"] = wanted.max_bypass
        return config, Limits(**old)

    async def add_engine(self, request: web.Request) -> web.Response:
        """`POST engines` with what `[[engines]]` takes: `{"url": ..., "id": ..., "kind": ...}`."""
        try:
            received = await receive(request, self._gateway.config.http)
            engine = EngineConfig.model_validate_json(received.body)
            await check_target(engine, self._gateway.config.auth.engine_hosts)
        except ConfigError as error:
            return _error(400, "bad_engine", str(error))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return _error(400, "bad_engine", f"{where}: {first['msg']}".lstrip(": "))
        try:
            self._steering.add_engine(engine)
        except ConfigError as error:
            return _error(409, "engine_exists", str(error))
        return _json({"engine": engine.name, "url": engine.base_url}, status=202)

    async def remove_engine(self, request: web.Request) -> web.Response:
        """`DELETE engines/NAME`: nothing new goes there; it is forgotten when it is idle."""
        engine = EngineId(request.match_info["engine"])
        if engine not in self._gateway.fleet.members:
            return _error(404, "unknown_engine", "No engine of this name is known.")
        try:
            self._steering.remove_engine(engine)
        except ConfigError as error:
            return _error(409, "last_engine", str(error))
        return _json({"engine": engine, "is_draining": True}, status=202)

    async def reload(self, request: web.Request) -> web.Response:
        """`POST reload`: read the configuration file again. A wrong one changes nothing."""
        try:
            reloaded = self._steering.reload()
        except (ConfigError, PolicyError) as error:
            return _error(400, "bad_configuration", str(error))
        return _json({"changed": reloaded.changed, "needs_restart": reloaded.needs_restart})


def _shown(identity: Identity, plan: Plan, *, now: Instant) -> forms.Plan:
    """Whose the request would be, what would become of it, and what the engines would meet."""
    shown: dict[str, Any] = {
        "program": identity.program,
        "conversation": identity.conversation,
        "tenant": identity.tenant,
        "step_class": identity.step_class,
        "lineage": identity.lineage,
        "evidence": identity.evidence,
        "prompt_tokens": identity.prompt_tokens,
        "engines": tuple(
            forms.PlannedEngine(
                engine=outlook.engine,
                is_up=outlook.is_up,
                is_silent=outlook.is_silent,
                running_steps=outlook.running_steps,
                missing_tokens=outlook.missing_tokens,
                prefill_s=round(outlook.prefill_ns / 1e9, 4),
            )
            for outlook in plan.engines
        ),
        "releases": tuple(c.pin for c in plan.commands if isinstance(c, Unpin)),
    }
    match plan.verdict:
        case Dispatch() as sent:
            return forms.PlanDispatch(
                engine=sent.engine,
                order=sent.order,
                place=sent.place,
                pin=sent.pin,
                priority=sent.priority,
                **shown,
            )
        case Reject() as refused:
            after = refused.retry_after
            return forms.PlanReject(
                reason=refused.reason,
                detail=refused.detail,
                retry_after_s=None if after is None else in_seconds(after),
                **shown,
            )
        case None:
            due = plan.due_at
            return forms.PlanHold(
                reason=plan.held_for,
                ahead=plan.ahead,
                due_in_s=None if due is None else round(in_seconds(between(now, due)), 3),
                **shown,
            )
        case _:
            assert_never(plan.verdict)


def _tenant(gateway: Gateway, request: web.Request, headers: dict[str, str]) -> TenantId:
    """Whose the request would be that is planned.

    All tenants are an operator's business: it may send a client's key beside its own, and is then
    told what that client would be, or name a tenant.
    """
    principal = principal_of(request)
    if not principal.is_admin:
        return gateway.tenant(headers, principal)
    if gateway.config.auth.mode == "open":
        return gateway.tenant(headers, replace(ANYBODY, uses_header=principal.uses_header))
    client = None if principal.uses_header else gateway.gate.of_client(request, gateway.config)
    if client is not None:
        return gateway.tenant(headers, client)
    names = replace(principal, scopes=principal.scopes | {TENANTS}, uses_header=True)
    return gateway.tenant(headers, names)


def _json(value: Any, *, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    body = error_body(Dialect.OTHER, status=status, message=message, code=code)
    return web.Response(status=status, body=body, content_type="application/json")
