"""Workflows that are declared to a running proxy: `POST` and `GET /agentsched/v1/workflows`.

Those of the configuration are read at the start (`workflows = [...]`); one that is declared here
counts from the next event on, and the newest word about an agent replaces the one before. Declared
ones live as long as the process, or as its store: who wants them for good puts them in the
configuration.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from agentsched.model import ConfigError, WireError, WorkflowDeclared, in_seconds
from agentsched.proxy.errors import error_body
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.receive import receive
from agentsched.proxy.request import Dialect
from agentsched_graphs.builder import WORKFLOWS_MAX, GraphBuilder
from agentsched_graphs.workflow import Workflow, read_workflow, write_workflow

_BYTES_MAX: Final = 1 << 18


class WorkflowVerbs:
    """Handlers for operators: take a workflow in, show those that count."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def declare(self, request: web.Request) -> web.Response:
        """`POST workflows`: one workflow, JSON or YAML, as `declared_workflow` makes it.

        201, or 400 with what is wrong and where; 409 where no more are kept, or no graphs at all.
        """
        received = await receive(request, self._gateway.config.http)
        if len(received.body) > _BYTES_MAX:
            raise WireError(f"a workflow has at most {_BYTES_MAX} bytes", status=413)
        try:
            workflow = read_workflow(received.body)
        except ConfigError as error:
            return _error(400, "bad_workflow", str(error))
        known = self._known()
        if known is None:
            return _error(409, "no_graphs", "This proxy builds no execution graphs.")
        if workflow.agent not in known and len(known) >= WORKFLOWS_MAX:
            text = f"There are {WORKFLOWS_MAX} workflows already, and none is about this agent."
            return _error(409, "too_many_workflows", text)
        replaces = known[workflow.agent].name if workflow.agent in known else None
        # One spelling in the journal, whatever was sent.
        self._gateway.host.feed(WorkflowDeclared(text=write_workflow(workflow)))
        return _json(_shown(workflow) | {"replaces": replaces}, status=201)

    async def show(self, request: web.Request) -> web.Response:
        """`GET workflows`: those that count, by the agent that they are about."""
        known = self._known() or {}
        return _json({"workflows": [_shown(known[agent]) for agent in sorted(known)]})

    def _known(self) -> dict[str, Workflow] | None:
        graphs = self._gateway.host.scheduler.graphs
        return graphs.learnt.workflows if isinstance(graphs, GraphBuilder) else None


def _shown(workflow: Workflow) -> dict[str, Any]:
    return {
        "name": workflow.name,
        "agent": workflow.agent,
        "start": workflow.start,
        "steps": {
            step.name: {
                "tools": dict(step.tools),
                "next": dict(step.successors),
                "expected_s": None if step.expected is None else in_seconds(step.expected),
                "steps_left": round(step.steps_left, 3),
            }
            for step in workflow.steps.values()
        },
    }


def _json(value: Any, *, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    body = error_body(Dialect.OTHER, status=status, message=message, code=code)
    return web.Response(status=status, body=body, content_type="application/json")
