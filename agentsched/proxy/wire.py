"""A client's bytes as a request: read what is needed, refuse what cannot be understood.

What is well-formed but makes no sense is let through: the engine says it better than we could.
`splice` and `forward_body` (see `splicing`) make of it the bytes that an engine gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw

from agentsched.model import WireError
from agentsched.proxy.fields import BROKEN, first_byte, read_fields, read_object
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.spans import SpanMismatch, walk_fields
from agentsched.proxy.splicing import forward_body, splice

__all__ = ["WireLimits", "forward_body", "parse_request", "splice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """Ceilings of one request; beyond them it is refused with 400, too large a body with 413.

    Nesting needs no number: the decoder stops at the interpreter's recursion limit without harm,
    and the request is refused like any other malformed one.
    """

    body_bytes_max: int = 32 * 1024 * 1024
    messages_max: int = 20_000
    fields_max: int = 256
    model_chars_max: int = 256


_DEFAULT_LIMITS: Final = WireLimits()

#: The field that holds the prompt.
_PROMPT_FIELDS: Final[Mapping[Dialect, str]] = {
    Dialect.CHAT: "messages",
    Dialect.COMPLETIONS: "prompt",
    Dialect.RESPONSES: "input",
    Dialect.MESSAGES: "messages",
    Dialect.COUNT_TOKENS: "messages",
    Dialect.EMBEDDINGS: "input",
}
#: Those of them that are lists of items, to be told apart.
_LIST_FIELDS: Final[Mapping[Dialect, str]] = {
    Dialect.CHAT: "messages",
    Dialect.RESPONSES: "input",
    Dialect.MESSAGES: "messages",
    Dialect.COUNT_TOKENS: "messages",
}
_SYSTEM_FIELDS: Final[Mapping[Dialect, str]] = {
    Dialect.RESPONSES: "instructions",
    Dialect.MESSAGES: "system",
    Dialect.COUNT_TOKENS: "system",
}
_OUTPUT_FIELDS: Final[Mapping[Dialect, tuple[str, ...]]] = {
    Dialect.CHAT: ("max_completion_tokens", "max_tokens"),
    Dialect.COMPLETIONS: ("max_tokens",),
    Dialect.RESPONSES: ("max_output_tokens",),
    Dialect.MESSAGES: ("max_tokens",),
}

_STRING: Final = msgspec.json.Decoder(str)
_NUMBER: Final = msgspec.json.Decoder(int | float)
_NUMBER_CHARS_MAX: Final = 24
_COUNT_MAX: Final = 2**53
_QUOTE: Final = ord('"')

# What engines' validators take for true in a boolean field.
_TRUE: Final = frozenset(
    {b"true", b"1", b"1.0", b'"true"', b'"1"', b'"on"', b'"t"', b'"y"', b'"yes"'}
)
_TRUE_CHARS_MAX: Final = 6


def parse_request(
    dialect: Dialect, body: bytes, limits: WireLimits = _DEFAULT_LIMITS
) -> ParsedRequest:
    """Read the few fields of a request that we need; contents stay raw.

    A body of `Dialect.OTHER` need not be JSON: where it is no object, there are no fields.

    Raises:
        WireError: the body is no JSON object, doubles a key, lacks the model or the prompt, has one
            of the wrong type, or breaks a limit.
    """
    if len(body) > limits.body_bytes_max:
        raise WireError(
            f"The request body has {len(body)} bytes; {limits.body_bytes_max} are allowed.",
            status=413,
            code="request_too_large",
        )
    if dialect is Dialect.OTHER:
        return _parse_other(body, limits)
    _check_utf8(body)
    fields, items = read_fields(
        body,
        list_field=_LIST_FIELDS.get(dialect, ""),
        fields_max=limits.fields_max,
        items_max=limits.messages_max,
    )
    model = _model(fields, limits)
    is_stream = _is_true(fields.get("stream"))
    return ParsedRequest(
        dialect=dialect,
        body=body,
        model=model,
        is_stream=is_stream,
        is_background=dialect is Dialect.RESPONSES and _is_true(fields.get("background")),
        wants_usage=_wants_usage(dialect, fields, is_stream=is_stream),
        output_tokens_max=_output_tokens_max(dialect, fields),
        messages=_prompt(dialect, fields) if items is None else items,
        system=_present(fields.get(_SYSTEM_FIELDS.get(dialect, ""))),
        tools=_present(fields.get("tools")),
        fields=fields,
    )


def _parse_other(body: bytes, limits: WireLimits) -> ParsedRequest:
    try:
        fields = read_object(body)
        if len(fields) > limits.fields_max:
            return ParsedRequest(dialect=Dialect.OTHER, body=body)
        walk_fields(body, fields)
    except (*BROKEN, SpanMismatch):
        return ParsedRequest(dialect=Dialect.OTHER, body=body)
    try:
        model = _model(fields, limits)
    except (WireError, *BROKEN):
        model = ""
    return ParsedRequest(
        dialect=Dialect.OTHER,
        body=body,
        model=model,
        is_stream=_is_true(fields.get("stream")),
        fields=fields,
    )


def _check_utf8(body: bytes) -> None:
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise WireError(
            f"The request body is not valid UTF-8 (byte {error.start}).", code="invalid_json"
        ) from None


def _prompt(dialect: Dialect, fields: Mapping[str, Raw]) -> tuple[Raw, ...]:
    """The prompt where it is not a list of items."""
    name = _PROMPT_FIELDS[dialect]
    raw = _present(fields.get(name))
    if raw is None:
        # Embeddings may be of messages, completions of embeddings: the engine knows.
        if dialect is Dialect.EMBEDDINGS or "prompt_embeds" in fields:
            return ()
        raise _missing(name)
    if name not in _LIST_FIELDS.values() or dialect is Dialect.EMBEDDINGS:
        return (raw,)
    if dialect is Dialect.RESPONSES and first_byte(raw) == _QUOTE:
        return (raw,)
    raise WireError(f"The field {name!r} must be a list.", code="invalid_type", param=name)


def _model(fields: Mapping[str, Raw], limits: WireLimits) -> str:
    raw = _present(fields.get("model"))
    if raw is None:
        raise _missing("model")
    if first_byte(raw) != _QUOTE:
        raise WireError("The field 'model' must be a string.", code="invalid_type", param="model")
    # A character takes six bytes at most (as an escape), so this bounds what is decoded.
    model = _STRING.decode(raw) if len(raw) <= 6 * limits.model_chars_max + 2 else None
    if model is None or len(model) > limits.model_chars_max:
        raise WireError(
            f"The field 'model' may have {limits.model_chars_max} characters at most.",
            code="string_above_max_length",
            param="model",
        )
    if not model:
        raise _missing("model")
    return model


def _wants_usage(dialect: Dialect, fields: Mapping[str, Raw], *, is_stream: bool) -> bool:
    """Whether a usage chunk in the stream is the client's own wish, or usage always comes."""
    if not is_stream or dialect not in (Dialect.CHAT, Dialect.COMPLETIONS):
        return True
    raw = _present(fields.get("stream_options"))
    if raw is None:
        return False
    try:
        return _is_true(read_object(raw).get("include_usage"))
    except BROKEN:
        return True  # not an object: the engine will say so, and nothing can be put into it


def _output_tokens_max(dialect: Dialect, fields: Mapping[str, Raw]) -> int | None:
    for name in _OUTPUT_FIELDS.get(dialect, ()):
        raw = _present(fields.get(name))
        if raw is None:
            continue
        if len(raw) > _NUMBER_CHARS_MAX:
            return None
        try:
            value = _NUMBER.decode(raw)
        except msgspec.MsgspecError:
            return None
        is_count = 0 < value <= _COUNT_MAX and value == int(value)
        return int(value) if is_count else None
    return None


def _is_true(raw: Raw | None) -> bool:
    return raw is not None and len(raw) <= _TRUE_CHARS_MAX and bytes(raw).lower() in _TRUE


def _present(raw: Raw | None) -> Raw | None:
    return None if raw is None or (len(raw) == 4 and bytes(raw) == b"null") else raw


def _missing(name: str) -> WireError:
    return WireError(
        f"The request lacks the field {name!r}.", code="missing_required_parameter", param=name
    )
