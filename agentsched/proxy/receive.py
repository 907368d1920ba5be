"""Take a request in: bounded in size, in header count and in time."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

from aiohttp import web

from agentsched.config import HttpConfig
from agentsched.model import WireError, in_seconds
from agentsched.proxy import headers as header_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request: its headers as sent and by lower-case name, its body, its id."""

    pairs: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes
    request_id: str


async def receive(request: web.Request, config: HttpConfig) -> Received:
    """Read the request to its end.

    Raises:
        WireError: too many headers (431), too large (413), too slow (408), not decodable (400).
    """
    pairs = list(request.headers.items())
    if len(pairs) > config.headers_max:
        raise WireError(
            f"more than {config.headers_max} headers", status=431, code="too_many_headers"
        )
    headers = header_rules.lower(pairs)
    body = await _body(request, config) if request.can_read_body else b""
    return Received(
        pairs=pairs,
        headers=headers,
        body=body,
        request_id=header_rules.request_id(headers) or uuid.uuid4().hex,
    )


async def _body(request: web.Request, config: HttpConfig) -> bytes:
    try:
        async with asyncio.timeout(in_seconds(config.body_timeout)):
            return await request.read()
    except TimeoutError:
        raise WireError(
            "the body did not arrive in time", status=408, code="body_timeout"
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise WireError(
            f"the body is larger than {config.body_bytes_max} bytes",
            status=413,
            code="body_too_large",
        ) from None
    except (web.HTTPBadRequest, web.RequestPayloadError) as error:
        raise WireError(f"the body cannot be read: {error}", code="unreadable_body") from None
