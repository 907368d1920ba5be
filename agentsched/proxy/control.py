"""The control plane: what runs, why, and the operator's few verbs. JSON under `/agentsched/v1`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, get_args

import msgspec
from aiohttp import web

from agentsched.kernel.doing import Doing, ProgramState, by_program
from agentsched.kernel.records import ProgramRecord
from agentsched.model import EngineId, ProgramClosed, ProgramId, StepId
from agentsched.policy import available, available_profiles
from agentsched.policy.registry import POINTS
from agentsched.proxy import forms, shapes
from agentsched.proxy import headers as header_rules
from agentsched.proxy.access.login import SessionVerbs
from agentsched.proxy.access.principal import principal_of
from agentsched.proxy.access.views import own_parts
from agentsched.proxy.decisions import watch_decisions
from agentsched.proxy.errors import error_body
from agentsched.proxy.fleet import Member
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.graphs import forecast, show_graph
from agentsched.proxy.openapi import OpenApi
from agentsched.proxy.request import Dialect
from agentsched.proxy.steering import Steering
from agentsched.proxy.tenants import TenantVerbs
from agentsched.proxy.tool_reports import ToolReports
from agentsched.proxy.verbs import Verbs
from agentsched.proxy.workflows import WorkflowVerbs

_PAGE_MAX: Final = 1_000
_STATES: Final[tuple[str, ...]] = get_args(ProgramState)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlPlane:
    """Handlers of the control plane. The gate says who may; tenants see what is their own."""

    def __init__(self, gateway: Gateway, steering: Steering) -> None:
        self._gateway = gateway
        self._verbs = Verbs(gateway, steering)
        self._shares = TenantVerbs(gateway)
        self._workflows = WorkflowVerbs(gateway)

    def routes(self) -> list[web.RouteDef]:
        """The table of routes."""
        base = "/agentsched/v1"
        gets: dict[str, Handler] = {
            "/programs": self._programs,
            # An id may have slashes in it, written as they are or as %2F.
            "/programs/{program:.+}/story": self._story,
            "/programs/{program:.+}/graph": self._graph,
            "/programs/{program:.+}": self._program,
            "/engines": self._engines,
            "/engines/{engine}": self._engine,
            "/tenants": self._tenants,
            "/statistics": self._statistics,
            "/policies": self._policies,
            "/workflows": self._workflows.show,
            "/decisions": self._decisions,
            "/openapi.json": OpenApi().show,
        }
        posts: dict[str, Handler] = {
            "/programs/{program:.+}/release": self._release,
            "/engines/{engine}/drain": self._drain,
            "/engines/{engine}/undrain": self._undrain,
        }
        verbs = self._verbs
        posts |= {
            "/plan{path:.*}": verbs.plan,
            "/policies": verbs.choose,
            "/engines": verbs.add_engine,
            "/reload": verbs.reload,
            "/workflows": self._workflows.declare,
        }
        # For agents and tool runners, who are no operators: as open as the data plane.
        reports = ToolReports(self._gateway)
        return [
            web.post(base + "/tools", reports.post),
            web.post("/finish_session", reports.finish_session),
            web.put(base + "/tenants/{tenant:.+}", self._shares.put),
            web.delete(base + "/engines/{engine}", verbs.remove_engine),
            *(web.get(base + path, handler) for path, handler in gets.items()),
            *(web.post(base + path, handler) for path, handler in posts.items()),
            *SessionVerbs(self._gateway).routes(),
        ]

    async def _programs(self, request: web.Request) -> web.Response:
        query = request.query
        try:
            limit = min(int(query.get("limit", "100")), _PAGE_MAX)
            offset = int(query.get("offset", "0"))
        except ValueError:
            return _error(400, "bad_page", "limit and offset are whole numbers")
        if limit < 1 or offset < 0:
            return _error(400, "bad_page", "limit is at least 1 and offset at least 0")
        state = query.get("state")
        if state not in (None, *_STATES):
            return _error(400, "bad_state", f"state is one of {', '.join(_STATES)}")
        tenant, agent, principal = query.get("tenant"), query.get("agent"), principal_of(request)
        now, scheduler = self._gateway.host.now(), self._gateway.host.scheduler
        steps = by_program(scheduler.steps)

        def does(record: ProgramRecord) -> Doing:
            return shapes.doing_now(scheduler, record, steps.get(record.program, ()))

        # Least recently active first in the books; people want the newest first.
        records = [
            record
            for record in reversed(list(scheduler.programs.values()))
            if principal.sees(record.tenant)
            and tenant in (None, record.tenant)
            and agent in (None, record.agent)
            and (state is None or does(record).state == state)
        ]
        page = records[offset : offset + limit]
        shown = tuple(shapes.program(record, does(record), now=now) for record in page)
        return _json(forms.ProgramList(programs=shown, total=len(records), offset=offset))

    async def _program(self, request: web.Request) -> web.Response:
        scheduler = self._gateway.host.scheduler
        record = scheduler.programs.get(ProgramId(request.match_info["program"]))
        viewer = principal_of(request)
        if record is None or not viewer.sees(record.tenant):
            return _unknown_program()
        now = self._gateway.host.now()
        expected = forecast(scheduler, record.program, viewer=viewer, now=now)
        return _json(shapes.whole_program(scheduler, record, forecast=expected, now=now))

    async def _story(self, request: web.Request) -> web.Response:
        key = request.match_info["program"]
        scheduler = self._gateway.host.scheduler
        step = scheduler.steps.get(StepId(key))
        name = step.program if step is not None else ProgramId(key)
        program, over = scheduler.programs.get(name), scheduler.closed.get(name)
        known = program or over
        if known is None or not principal_of(request).sees(known.tenant):
            return _untold_program()
        closed_at = over.closed_at if program is None and over is not None else None
        entries = own_parts(scheduler.story(name), principal_of(request), scheduler)
        return _json(
            {
                "program": key,
                "closed_s": shapes.ago(closed_at, self._gateway.host.now()),
                "entries": [shapes.entry(e) for e in entries],
            }
        )

    async def _graph(self, request: web.Request) -> web.Response:
        return show_graph(self._gateway, request)

    async def _release(self, request: web.Request) -> web.Response:
        key = ProgramId(request.match_info["program"])
        record = self._gateway.host.scheduler.programs.get(key)
        if record is None or not _is_of(record.tenant, request, self._gateway):
            return _unknown_program()
        self._gateway.host.feed(ProgramClosed(program=key, reason="released"))
        self._gateway.index.forget(key)
        return _json({"program": key, "released": True})

    async def _engines(self, request: web.Request) -> web.Response:
        members = self._gateway.fleet.members.values()
        shown = tuple(self._shown(member, request) for member in members)
        return _json(forms.EngineList(engines=shown))

    async def _engine(self, request: web.Request) -> web.Response:
        member = self._gateway.fleet.members.get(EngineId(request.match_info["engine"]))
        if member is None:
            return _error(404, "unknown_engine", "No engine of this name is known.")
        return _json(self._shown(member, request))

    def _shown(self, member: Member, request: web.Request) -> forms.ShownEngine:
        host, health = self._gateway.host, self._gateway.fleet.health
        record = host.scheduler.engines.get(member.id)
        if not principal_of(request).is_admin:
            return shapes.engine_outline(member, record)
        return shapes.engine(member, record, now=host.now(), health=health.shown(member.id))

    async def _drain(self, request: web.Request) -> web.Response:
        return self._set_draining(request, is_draining=True)

    async def _undrain(self, request: web.Request) -> web.Response:
        return self._set_draining(request, is_draining=False)

    def _set_draining(self, request: web.Request, *, is_draining: bool) -> web.Response:
        key = EngineId(request.match_info["engine"])
        if key not in self._gateway.fleet.members:
            return _error(404, "unknown_engine", "No engine of this name is known.")
        if not is_draining and self._gateway.fleet.is_leaving(key):
            return _error(409, "engine_leaves", "This engine is about to be removed.")
        self._gateway.fleet.health.drained(key, is_draining=is_draining)
        return _json({"engine": key, "is_draining": is_draining})

    async def _tenants(self, request: web.Request) -> web.Response:
        host = self._gateway.host
        accounts = host.scheduler.tenants.values()
        principal = principal_of(request)
        shown = [shapes.tenant(a, now=host.now()) for a in accounts if principal.sees(a.tenant)]
        return _json({"tenants": shown})

    async def _statistics(self, request: web.Request) -> web.Response:
        scheduler = self._gateway.host.scheduler
        shown = forms.Statistics(
            profile=scheduler.policies.profile,
            policies=dict(scheduler.policies.names),
            limits=scheduler.limits,
        )
        if principal_of(request).is_admin:
            shown = msgspec.structs.replace(
                shown,
                scheduler=scheduler.statistics(),
                identity=self._gateway.index.statistics(),
                clients=dict(self._gateway.clients.most_common()),
                wait_bound=shapes.wait_bound(scheduler),
            )
        return _json(shown)

    async def _policies(self, request: web.Request) -> web.Response:
        return _json(
            {
                "profile": self._gateway.host.scheduler.policies.profile,
                "active": dict(self._gateway.host.scheduler.policies.names),
                "profiles": list(available_profiles()),
                "available": {point: list(available(point)) for point in POINTS},
            }
        )

    async def _decisions(self, request: web.Request) -> web.StreamResponse:
        return await watch_decisions(self._gateway, request)


def _json(value: Any, *, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    body = error_body(Dialect.OTHER, status=status, message=message, code=code)
    return web.Response(status=status, body=body, content_type="application/json")


def _unknown_program() -> web.Response:
    return _error(404, "unknown_program", "No live program has this id.")


def _untold_program() -> web.Response:
    """The same for what is not the asker's as for what never was."""
    return _error(
        404,
        "unknown_program",
        "No program of this id is live or was closed lately. Where journals are kept, what is older"
        " is in one: `agentsched report FILE --program ID` (`agentsched db export` writes a file).",
    )


def _is_of(tenant: str, request: web.Request, gateway: Gateway) -> bool:
    """Whether who asks may end this tenant's programs."""
    principal = principal_of(request)
    own = gateway.tenant(header_rules.lower(request.headers.items()), principal)
    return principal.is_admin or tenant == own
