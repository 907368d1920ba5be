"""Our own errors and no-ops in the words of each dialect, as bodies and as stream events.

What clients do with them was tried with the real ones: they wait out a 429 or 503 that says how
long (in its header, which is the caller's to set); in the middle of a stream they send the request
again on the events below, where a "server is overloaded" would end the run.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentsched.proxy.request import Dialect

_ENCODE: Final = msgspec.json.Encoder().encode

_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    499: "request_cancelled",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(dialect: Dialect, status: int) -> str:
    """The dialect's word for the kind of error that goes with an HTTP status."""
    if dialect.is_anthropic:
        fallback = "invalid_request_error" if status < 500 else "api_error"
        return _ANTHROPIC_TYPES.get(status, fallback)
    fallback = "invalid_request_error" if status < 500 else "server_error"
    return _OPENAI_TYPES.get(status, fallback)


def error_body(
    dialect: Dialect,
    *,
    status: int,
    message: str,
    code: str,
    type: str | None = None,
    param: str | None = None,
    retry_after_s: float | None = None,
    request_id: str | None = None,
) -> bytes:
    """The JSON body of an error answer, OpenAI's shape or Anthropic's.

    `type` is derived from `status` unless given. `retry_after_s` adds a sentence that clients
    look for in the text; the `Retry-After` header is the caller's to set. Anthropic's shape has no
    room for `code` and `param`, OpenAI's none for `request_id`.
    """
    kind = type or error_type(dialect, status)
    text = _with_delay(message, retry_after_s)
    if dialect.is_anthropic:
        return _ENCODE(_anthropic_error(kind, text, request_id))
    return _ENCODE({"error": {"message": text, "type": kind, "param": param, "code": code}})


def stream_error(
    dialect: Dialect,
    *,
    status: int,
    message: str,
    code: str,
    retry_after_s: float | None = None,
    response_id: str = "",
    model: str = "",
    request_id: str | None = None,
) -> bytes:
    """An event that says in mid-stream that no more will come, and why.

    `status` is what the answer's status would have been. `response_id` and `model` are those of
    the events before, where there were any: OpenAI's helpers refuse a change of id.

    Chat and completions: an error chunk with the status as its code, as vLLM writes it, which
    clients read like a status; no `[DONE]` after it, so that nobody takes the cut answer for a
    whole one. Responses: `response.failed`, with the code `rate_limit_exceeded` and a delay in the
    text wherever trying again makes sense, since Codex waits for exactly that. Messages: `event:
    error`, where too much is said as overload: Claude Code was seen to send again on that.
    Elsewhere: an OpenAI error object.
    """
    can_retry = status in (408, 409, 429) or status >= 500
    if can_retry and retry_after_s is None and dialect is Dialect.RESPONSES:
        retry_after_s = 1.0
    text = _with_delay(message, retry_after_s)
    kind = error_type(dialect, status)
    match dialect:
        case Dialect.MESSAGES | Dialect.COUNT_TOKENS:
            kind = "overloaded_error" if status == 429 else kind
            return _event("error", _anthropic_error(kind, text, request_id))
        case Dialect.RESPONSES:
            word = "rate_limit_exceeded" if can_retry else "invalid_prompt"
            failed = _response(response_id, model, status="failed")
            failed["error"] = {"code": word, "message": text}
            return _event("response.failed", {"type": "response.failed", "response": failed})
        case Dialect.CHAT | Dialect.COMPLETIONS:
            return _data({"error": {"message": text, "type": kind, "param": None, "code": status}})
        case _:
            return _data({"error": {"message": text, "type": kind, "param": None, "code": code}})


def keep_alive(dialect: Dialect, *, response_id: str = "", model: str = "") -> bytes:
    """An event without meaning that every client counts as a sign of life.

    Comments are not enough: some clients only count events. A chat chunk has one choice with an
    empty delta, since many programs look at the first choice without asking. Helpers that gather
    a stream take id and model from the first chunk, and OpenAI's `responses.stream()` refuses any
    event before `response.created` and any change of id (the plain stream does not mind). So it is
    best sent after the engine's first event and with its id; before that, only to clients that
    would otherwise give up.
    """
    match dialect:
        case Dialect.MESSAGES:
            return b'event: ping\ndata: {"type": "ping"}\n\n'
        case Dialect.RESPONSES:
            event = {
                "type": "response.in_progress",
                "response": _response(response_id, model, status="in_progress"),
            }
            return _event("response.in_progress", event)
        case Dialect.CHAT:
            choice: dict[str, object] = {"index": 0, "delta": {}, "finish_reason": None}
            return _data(_chunk("chat.completion.chunk", response_id, model, choice))
        case Dialect.COMPLETIONS:
            choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
            return _data(_chunk("text_completion", response_id, model, choice))
        case _:
            return b": keep-alive\n\n"


def _with_delay(message: str, retry_after_s: float | None) -> str:
    if retry_after_s is None:
        return message
    return f"{message.rstrip()} Please try again in {max(0.0, retry_after_s):.1f}s."


def _anthropic_error(kind: str, message: str, request_id: str | None) -> dict[str, object]:
    error: dict[str, object] = {"type": "error", "error": {"type": kind, "message": message}}
    if request_id is not None:
        error["request_id"] = request_id
    return error


def _response(response_id: str, model: str, *, status: str) -> dict[str, object]:
    """A response object with all that typed clients require."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": 0,
        "status": status,
        "model": model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }


def _chunk(kind: str, response_id: str, model: str, choice: dict[str, object]) -> dict[str, object]:
    return {
        "id": response_id,
        "object": kind,
        "created": 0,
        "model": model,
        "choices": [choice],
    }


def _event(name: str, data: object) -> bytes:
    return b"event: " + name.encode() + b"\n" + _data(data)


def _data(data: object) -> bytes:
    return b"data: " + _ENCODE(data) + b"\n\n"
