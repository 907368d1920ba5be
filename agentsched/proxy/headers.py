"""Which headers pass the proxy, in either direction, beyond those that belong to a connection.

The adapters take out what is hop by hop; here goes what is ours, what a tap cannot work with, and
what one side must not learn of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

#: A tap needs plain bytes, so no encoding is asked for, and the body was decoded on its way in. A
#: cookie was set by whoever answers at our address, not by the engine.
_NOT_TO_ENGINE: Final = frozenset(
    {
        "host",
        "content-length",
        "content-encoding",
        "accept-encoding",
        "expect",
        "cookie",
        "x-request-id",  # always set anew, to the id that the client gets back
    }
)
_NOT_TO_CLIENT: Final = frozenset({"content-length", "date", "server", "x-request-id"})
_CREDENTIALS: Final = frozenset({"authorization", "x-api-key"})

OURS: Final = "x-agentsched-"

#: Carriers of a request id, in the order in which we believe them (as vllm-router does).
_REQUEST_IDS: Final = ("x-request-id", "x-correlation-id", "x-trace-id", "request-id")


def lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name; of repeated ones the first counts."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.lower(), value)
    return found


def to_engine(
    headers: Iterable[tuple[str, str]], *, with_credentials: bool
) -> list[tuple[str, str]]:
    """The client's headers as an engine gets them."""
    return [
        (name, value)
        for name, value in headers
        if (key := name.lower()) not in _NOT_TO_ENGINE
        and not key.startswith(OURS)
        and (with_credentials or key not in _CREDENTIALS)
    ]


def to_client(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """An engine's headers as the client gets them."""
    return [
        (name, value)
        for name, value in headers
        if (key := name.lower()) not in _NOT_TO_CLIENT and not key.startswith(OURS)
    ]


def request_id(headers: dict[str, str]) -> str | None:
    """The request id that the client gave, where it is fit to be echoed."""
    for name in _REQUEST_IDS:
        value = headers.get(name, "")
        if value and len(value) <= 256 and value.isascii() and value.isprintable():
            return value
    return None
