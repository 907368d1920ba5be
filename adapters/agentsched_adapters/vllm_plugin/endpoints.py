"""HTTP routes on vLLM's API server; the entry point of the group `vllm.endpoint_plugins`.

`POST /v1/agentsched/pin`, `.../extend`, `.../release` and `GET .../state`. They lie under `/v1`, so
vLLM's own middleware asks for its API key there. A request goes to every engine process behind the
server as a utility call (`control`); with data parallelism the engine that has the conversation
answers best, and that answer is told.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agentsched_adapters.vllm_plugin import LOGGER
from agentsched_adapters.vllm_plugin.control import METHOD, state_body
from agentsched_adapters.vllm_plugin.wire import PATH

log = logging.getLogger(LOGGER)

_BODY_BYTES_MAX: Final = 16_384
#: An engine step may take so long; a call is served between two of them.
_TIMEOUT_S: Final = 10.0
_OUTCOMES: Final = ("accepted", "clipped", "refused")


class Endpoints:
    """Satisfies vLLM's `EndpointPlugin`."""

    name = "agentsched"
    required_tasks: tuple[str, ...] | None = ("generate",)

    def __init__(self) -> None:
        self._client: Any = None

    def attach_router(self, app: Any) -> None:
        """Add the routes."""
        for operation in ("pin", "extend", "release"):
            app.add_route(f"{PATH}/{operation}", self._handler(operation), methods=["POST"])
        app.add_route(f"{PATH}/state", self._handler("state"), methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Remember the way to the engine."""
        self._client = engine_client

    def _handler(self, operation: str) -> Any:
        async def handle(request: Request) -> Response:
            if operation == "state":
                body = state_body(request.query_params)
            else:
                raw = await _body(request)
                if raw is None:
                    return _say(413, "the body is too long")
                try:
                    body = raw.decode()
                except UnicodeDecodeError:
                    return _say(400, "the body is not UTF-8")
            return await self._ask(operation, body)

        return handle

    async def _ask(self, operation: str, body: str) -> Response:
        if self._client is None:
            return _say(503, "this server has no engine")
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                core = self._client.engine_core
                answers = await core.call_utility_all_async(METHOD, operation, body)
        except TimeoutError:
            return _say(504, "the engine did not answer in time")
        except Exception as error:
            if METHOD in str(error):
                return _say(501, "the plugin is not active in this engine")
            log.exception("agentsched: %s failed", operation)
            return _say(502, "the engine failed to answer")
        return _merge(operation, [msgspec.json.decode(answer) for answer in answers])


def _merge(operation: str, answers: list[dict[str, Any]]) -> Response:
    for answer in answers:
        if "error" in answer:
            return _say(500 if answer.get("is_ours") else 400, answer["error"])
    if operation == "state":
        return _json(200, {"engines": answers})
    if operation == "release":
        return _json(200, {"released": sum(answer["released"] for answer in answers)})
    return _json(200, min(answers, key=lambda a: _OUTCOMES.index(a["outcome"])))


async def _body(request: Request) -> bytes | None:
    """The body; None when it is too long."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > _BODY_BYTES_MAX:
            return None
        parts.append(part)
    return b"".join(parts)


def _json(status: int, value: object) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _say(status: int, message: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "api_error"
    return _json(status, {"error": {"message": message, "type": kind, "code": status}})


def make() -> Endpoints:
    """What vLLM calls."""
    return Endpoints()
