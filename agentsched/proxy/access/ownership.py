"""Stored responses are their tenant's: to others they are as if they had never been.

Engines keep them under ids alone and give them to whoever asks, so with keys we ask first whose
they are. What we do not remember (made before a restart, at another replica) is nobody's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec
from msgspec import Raw

from agentsched.model import EngineId, TenantId, WireError
from agentsched.proxy.fields import BROKEN, read_fields
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.refusal import Refusal
from agentsched.proxy.request import Dialect, ParsedRequest

_FIELD: Final = "previous_response_id"


def check_response(gateway: Gateway, response_id: str, tenant: TenantId) -> None:
    """Refuse what is not this tenant's, where tenants are told apart by keys.

    Raises:
        WireError: 404, in the same words whether somebody has it or nobody.
    """
    if gateway.config.auth.mode == "open" or gateway.homes.is_of(response_id, tenant):
        return
    raise WireError(
        f"Response with id {response_id[:128]!r} not found.",
        status=404,
        code="response_not_found",
    )


def check_previous(gateway: Gateway, request: ParsedRequest, tenant: TenantId) -> None:
    """The same for a request that goes on from a stored response.

    Raises:
        WireError: 404.
    """
    raw = request.fields.get(_FIELD)
    if raw is None or gateway.config.auth.mode == "open":
        return
    response_id = _string(raw)
    if response_id is None or gateway.homes.is_of(response_id, tenant):
        return
    raise WireError(
        f"Previous response with id {response_id[:128]!r} not found.",
        status=404,
        code="previous_response_not_found",
        param=_FIELD,
    )


def check_body(gateway: Gateway, body: bytes, tenant: TenantId) -> str:
    """The same for what is relayed beside the scheduler; the response that it goes on from, or "".

    Raises:
        WireError: 404; or 400, where we cannot be sure which one an engine would read out of it.
    """
    limits = gateway.wire_limits
    try:
        fields, _ = read_fields(
            body, list_field="", fields_max=limits.fields_max, items_max=limits.messages_max
        )
        asked = ParsedRequest(dialect=Dialect.RESPONSES, body=body, fields=fields)
        check_previous(gateway, asked, tenant)
        return (_string(fields[_FIELD]) if _FIELD in fields else None) or ""
    except WireError:
        if gateway.config.auth.mode == "open":
            return ""  # the engine says it better
        raise


def own_names(gateway: Gateway, request: ParsedRequest) -> Collection[str]:
    """Fields by which a client would name its stored response: with keys, no engine gets them.

    vLLM looks for nobody else's of that name, and whoever made one here is taken for its owner.
    """
    is_told_apart = gateway.config.auth.mode != "open" and request.dialect is Dialect.RESPONSES
    return ("request_id",) if is_told_apart else ()


def _string(raw: Raw) -> str | None:
    """The field as an engine would read it; None where it names nothing."""
    try:
        value = msgspec.json.decode(raw)
    except BROKEN as error:
        raise WireError(f"{_FIELD} is no string", code="bad_field", param=_FIELD) from error
    if value is None:
        return None
    if not isinstance(value, str):
        raise WireError(f"{_FIELD} is no string", code="bad_field", param=_FIELD)
    return value


#: Instead of what the engine says of a key that is ours, and no business of the client.
ENGINE_REFUSES_US: Final = Refusal(
    status=502,
    code="engine_credentials",
    message="The engine does not take this proxy's key; operators: see its api_key.",
)


def is_about_our_key(gateway: Gateway, engine: EngineId, status: int) -> bool:
    """Whether an engine's answer is about a key that it has from us, not from the client."""
    member = gateway.fleet.members.get(engine)
    return status == 401 and member is not None and member.has_key
