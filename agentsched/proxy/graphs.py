"""Execution graphs and forecasts as the control plane shows them."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agentsched.kernel import Scheduler
from agentsched.model import ConversationId, Instant, Nanos, ProgramId, ToolName, in_seconds
from agentsched.policy import GraphView
from agentsched.proxy.access.principal import Principal, principal_of
from agentsched.proxy.access.views import tenant_of
from agentsched.proxy.errors import error_body
from agentsched.proxy.forms import ConversationForecast, Forecast, Returns
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.request import Dialect
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.export import to_dot, to_json, to_mermaid
from agentsched_graphs.snapshot import snapshot
from agentsched_graphs.templates import END

FORMATS: Final = ("json", "mermaid", "dot")
_TYPES: Final = {
    "json": "application/json",
    "mermaid": "text/vnd.mermaid",
    "dot": "text/vnd.graphviz",
}
_TOOLS_SHOWN: Final = 3


def show_graph(gateway: Gateway, request: web.Request) -> web.Response:
    """The graph of a program that is live or was closed lately, in `?format=`."""
    wanted = request.query.get("format", "json")
    if wanted not in FORMATS:
        text = f"format is one of {', '.join(FORMATS)} (`agentsched graph` draws png and svg)"
        return _error(400, "bad_format", text)
    graphs = gateway.host.scheduler.graphs
    key = ProgramId(request.match_info["program"])
    is_own = principal_of(request).sees(tenant_of(key))
    graph = graphs.graph(key) if isinstance(graphs, GraphBuilder) and is_own else None
    if graph is None:
        return _error(404, "unknown_program", "No graph of a program of this id is kept.")
    shown = snapshot(graph, now=gateway.host.now())
    match wanted:
        case "mermaid":
            body = to_mermaid(shown).encode()
        case "dot":
            body = to_dot(shown).encode()
        case _:
            body = to_json(shown)
    charset = None if wanted == "json" else "utf-8"
    return web.Response(body=body, content_type=_TYPES[wanted], charset=charset)


def forecast(
    scheduler: Scheduler, program: ProgramId, *, viewer: Principal, now: Instant
) -> Forecast | None:
    """What is expected of a live program; None where no graph of it is built."""
    graphs = scheduler.graphs
    view = graphs.view(program) if graphs is not None else None
    record = scheduler.programs.get(program)
    if view is None or record is None:
        return None
    named = None if viewer.is_admin else _called(graphs, program)
    return Forecast(
        steps_left=_rounded(view.steps_left()),
        critical_path_left=_rounded(view.critical_path_left()),
        fan_out=view.fan_out(),
        is_waiting_for_children=view.is_waiting_for_children(),
        conversations={
            key: _conversation(view, key, named=named, now=now) for key in record.conversations
        },
    )


def _called(graphs: object, program: ProgramId) -> frozenset[ToolName]:
    """Tools that a program called itself. Forecasts rest on all tenants' programs, and what others
    call theirs is not for its owner to read."""
    graph = graphs.graph(program) if isinstance(graphs, GraphBuilder) else None
    if graph is None:
        return frozenset()
    lately = (tool for thread in graph.threads.values() for tool in thread.context)
    return frozenset((END, *(tool.tool for tool in graph.tools.values()), *lately))


def _conversation(
    view: GraphView, key: ConversationId, *, named: frozenset[ToolName] | None, now: Instant
) -> ConversationForecast:
    """`named` are the only tools that may be told of; None for all."""
    returns = view.returns(key, now=now)
    shown = None
    if returns is not None:
        shown = Returns(
            has_skill=returns.has_skill,
            p50_s=_in_seconds(returns.quantile(0.5)),
            p90_s=_in_seconds(returns.quantile(0.9)),
        )
    told = [pair for pair in view.next_tools(key) if named is None or pair[0] in named]
    return ConversationForecast(
        next_tools={tool: round(p, 3) for tool, p in told[:_TOOLS_SHOWN]}, returns=shown
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _in_seconds(span: Nanos | None) -> float | None:
    return None if span is None else round(in_seconds(span), 3)


def _error(status: int, code: str, message: str) -> web.Response:
    body = error_body(Dialect.OTHER, status=status, message=message, code=code)
    return web.Response(status=status, body=body, content_type="application/json")
