"""Our own noes: what a rejected step, a bad request or a lost engine looks like to its client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from agentsched.model import (
    EngineTimeout,
    Reject,
    RejectReason,
    WireError,
    in_seconds,
)
from agentsched.proxy.errors import error_body
from agentsched.proxy.headers import RETRY_AFTER_S_MAX
from agentsched.proxy.host import Interrupted, Stop
from agentsched.proxy.request import Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A no: the status, a short word for machines and a sentence that says what to do."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None
    param: str | None = None

    def response(self, dialect: Dialect, headers: Mapping[str, str]) -> web.Response:
        """The refusal in the client's shape."""
        body = error_body(
            dialect,
            status=self.status,
            message=self.message,
            code=self.code,
            param=self.param,
            retry_after_s=self.retry_after_s,
            request_id=headers.get("x-request-id"),
        )
        response = web.Response(
            status=self.status, body=body, headers=headers, content_type="application/json"
        )
        if self.retry_after_s is not None:
            response.headers["Retry-After"] = str(self.retry_after_s)
        return response


_REJECTS: Final[Mapping[RejectReason, tuple[int, str]]] = {
    RejectReason.QUEUE_FULL: (429, "The queue is full. Try again later or lower the load."),
    RejectReason.PROGRAMS_FULL: (429, "Too many programs are active. Try again later."),
    RejectReason.TENANT_QUEUE: (429, "Too many of your requests wait. Try again later."),
    RejectReason.TENANT_PROGRAMS: (429, "Too many of your programs are live. Try again later."),
    RejectReason.WAIT_BOUND: (429, "No engine had room within the promised wait. Try again later."),
    RejectReason.REFUSED: (429, "This request is not admitted now. Try again later."),
    RejectReason.NO_ENGINE: (503, "No engine is up. Try again later; operators: see /readyz."),
    RejectReason.UNKNOWN_MODEL: (404, "No engine serves this model. GET /v1/models lists them."),
    RejectReason.ENGINE_FAILED: (502, "The engines could not be reached. Try again later."),
}


def of_reject(reject: Reject) -> Refusal:
    """What the scheduler's no means to a client."""
    status, message = _REJECTS[reject.reason]
    if reject.reason is RejectReason.UNKNOWN_MODEL:
        message = (
            f"The model {reject.detail[:128]!r} does not exist. GET /v1/models lists them."
            " Operators: `models` of [[engines]] names what an engine takes and does not list."
        )
    code = "model_not_found" if status == 404 else reject.reason.value
    wait = round(in_seconds(reject.retry_after)) if reject.retry_after is not None else 1
    retry_after = min(max(1, wait), RETRY_AFTER_S_MAX) if status in (429, 502, 503) else None
    return Refusal(status=status, code=code, message=message, retry_after_s=retry_after)


def of_wire_error(error: WireError) -> Refusal:
    """What a request that we cannot understand, or not take, means to its client."""
    return Refusal(
        status=error.status,
        code=error.code,
        message=error.message,
        param=error.param,
        retry_after_s=1 if error.status == 429 else None,
    )


def of_engine_error(error: Exception) -> Refusal:
    """What an engine's failure means to a client. The engine's address is not told."""
    if isinstance(error, EngineTimeout):
        return Refusal(
            status=504,
            code="engine_timeout",
            message="The engine took the request and was then silent for too long.",
        )
    return Refusal(
        status=502,
        code="engine_failed",
        message="The connection to the engine broke before its answer was whole.",
        retry_after_s=1,
    )


def of_engine_status(status: int, message: str, retry_after: str | None) -> Refusal:
    """An engine's own no, for a client whose stream is open already; `retry_after` in seconds."""
    return Refusal(
        status=status,
        code="engine_refused",
        message=message[:1024] or f"The engine answered with status {status}.",
        retry_after_s=int(retry_after) if retry_after and retry_after.isdecimal() else None,
    )


def of_interruption(error: Interrupted) -> Refusal:
    """What it means to a client that we stopped its step."""
    match error.stop:
        case Stop.DRAINING:
            return DRAINING
        case Stop.CANCELLED:
            return Refusal(
                status=409, code="cancelled", message=f"The request was stopped: {error}."
            )
        case Stop.REVOKED:
            return REVOKED
        case Stop.PATIENCE:
            return Refusal(
                status=429,
                code="wait_bound",
                message="No engine had room before this client would give up. Try again.",
                retry_after_s=1,
            )
        case Stop.ENGINE_LOST | Stop.YIELDED:
            return of_engine_error(error)


def of_http_exception(error: web.HTTPException) -> Refusal:
    """What the library's own noes (no such route, wrong method) mean to a client."""
    code, message = _HTTP_WORDS.get(error.status, ("bad_request", ""))
    message = message or error.reason or "The request was not understood."
    return Refusal(status=error.status, code=code, message=message)


_HTTP_WORDS: Final = {
    404: ("not_found", "There is nothing at this path."),
    405: ("method_not_allowed", "This path does not take this method."),
}


NOT_STREAMED: Final = "the engine did not stream what was to be streamed"
GIVEN_UP: Final = "the engine gave the request up"

CUT_SHORT: Final = Refusal(
    status=502, code="cut_short", message="The engine ended its answer too early.", retry_after_s=1
)

DEFECT: Final = Refusal(
    status=500,
    code="internal_error",
    message="The proxy failed on this request; its log says how. Please report it.",
)

REVOKED: Final = Refusal(
    status=401,
    code="invalid_api_key",
    message="The API key was revoked while this request was under way.",
)

DRAINING: Final = Refusal(
    status=503,
    code="draining",
    message="This proxy is shutting down. Send the request again.",
    retry_after_s=1,
)
