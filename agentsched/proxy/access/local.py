"""Whether a request comes from a program on this machine, for itself."""

from __future__ import annotations

import ipaddress
from typing import Final

from aiohttp import web

#: Headers that a proxy between us and the client leaves.
_FORWARDED: Final = ("x-forwarded-for", "x-forwarded-host", "forwarded", "x-real-ip", "via")


def is_local(request: web.Request) -> bool:
    """Whether a program on this machine asks, for itself.

    Not for somebody else, as another proxy does, nor for a page that a browser shows: any page may
    send requests to this address, and one whose name was made to point here may read the answers.
    """
    if any(name in request.headers for name in _FORWARDED):
        return False
    return is_own_page(request) and is_loopback(request.remote) and is_loopback(_host(request.host))


def is_own_page(request: web.BaseRequest) -> bool:
    """Whether no browser sent this, or one that shows a page of ours."""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return False
    origin = request.headers.get("Origin")
    return origin is None or origin.partition("://")[2] == request.host


def is_loopback(host: str | None) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(authority: str) -> str:
    """The host of `host:port`, `[::1]:port` and the like."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]
