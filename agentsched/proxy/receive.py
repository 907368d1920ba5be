"""Take a request in: bounded in size, in header count and in time."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from agentsched.config import HttpConfig
from agentsched.model import WireError, in_seconds
from agentsched.proxy import headers as header_rules
from agentsched.proxy.bodies import BODIES

#: What the HTTP library undoes, the last two where it is able to; else it says so itself.
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate", "br", "zstd"})
_BODY: Final = web.RequestKey("agentsched.body", bytes)
_REQUEST_ID: Final = web.RequestKey("agentsched.request_id", str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request: its headers as sent and by lower-case name, its body, its id.

    `target` is path and query as the client spelled them. `engine_request_id` is for engines:
    some name their answer by it, and older ones refuse a second request of that name.
    """

    pairs: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes
    target: str
    request_id: str
    engine_request_id: str


def request_id(request: web.BaseRequest, headers: dict[str, str] | None = None) -> str:
    """The request's id, the client's or one of ours; the same whenever it is asked for.

    `headers` are the request's by lower-case name, where they are at hand.
    """
    known = request.get(_REQUEST_ID)
    if known is None:
        if headers is None:
            headers = header_rules.lower(request.headers.items())
        given = header_rules.request_id(headers)
        known = request[_REQUEST_ID] = given or secrets.token_hex(16)
    return known


async def receive(request: web.Request, config: HttpConfig) -> Received:
    """Read the request to its end; may be called again.

    Raises:
        WireError: too many headers (431), too large (413), too slow (408), not decodable (400), in
            an encoding that we do not know (415), too much together with others (429).
    """
    pairs = list(request.headers.items())
    if len(pairs) > config.headers_max:
        raise WireError(
            f"more than {config.headers_max} headers", status=431, code="too_many_headers"
        )
    check_length(request, config)
    headers = header_rules.lower(pairs)
    encoding = headers.get("content-encoding")
    if encoding is not None and encoding.lower() not in _ENCODINGS:
        # What nobody undoes would reach the engine as if it were plain.
        raise WireError(
            "the body's encoding is not known here", status=415, code="unsupported_encoding"
        )
    body = await _body(request, config) if request.can_read_body else b""
    known = request_id(request, headers)
    is_shared = header_rules.is_of_a_run(known, headers)
    return Received(
        pairs=pairs,
        headers=headers,
        body=body,
        target=_target(request),
        request_id=known,
        engine_request_id=f"{known}-{secrets.token_hex(4)}" if is_shared else known,
    )


def check_length(request: web.BaseRequest, config: HttpConfig) -> None:
    """Refuse a body that says itself that it is too large (413), before it is read."""
    if (request.content_length or 0) > config.body_bytes_max:
        raise _too_large(config)


def _target(request: web.Request) -> str:
    """Path and query; a client that takes us for a forward proxy writes our address before."""
    raw = request.raw_path
    return raw if raw.startswith("/") else request.rel_url.raw_path_qs


def _too_large(config: HttpConfig) -> WireError:
    text = f"the body is larger than {config.body_bytes_max} bytes"
    return WireError(text, status=413, code="body_too_large")


async def _body(request: web.Request, config: HttpConfig) -> bytes:
    known: bytes | None = request.get(_BODY)
    if known is not None:
        return known
    try:
        if request.content.is_eof():
            # It is all here; a timer would cost more than reading it.
            body = await _arriving(request, config)
        else:
            async with asyncio.timeout(in_seconds(config.body_timeout)):
                body = await _arriving(request, config)
    except TimeoutError:
        raise WireError(
            "the body did not arrive in time", status=408, code="body_timeout"
        ) from None
    except (web.HTTPBadRequest, web.RequestPayloadError) as error:
        raise WireError(f"the body cannot be read: {error}", code="unreadable_body") from None
    request[_BODY] = body
    return body


async def _arriving(request: web.Request, config: HttpConfig) -> bytes:
    """The body, counted piece by piece."""
    bodies, content = request.app[BODIES], request.content
    # The library's own way to read all: fewer stops for more, decompressed or not.
    content.set_read_chunk_size(config.body_bytes_max)
    parts: list[bytes] = []
    size = 0
    while part := await content.readany():
        size += len(part)
        if size > config.body_bytes_max:
            raise _too_large(config)
        bodies.take(request, len(part), most=config.bodies_bytes_max)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
