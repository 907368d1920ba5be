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
    # The page, too, must be of this machine: a proxy before us may leave no trace but its Host.
    is_own = is_own_page(request) and _comes_from_host(request)
    return is_own and is_loopback(request.remote) and is_loopback(_host(request.host))


def is_own_page(request: web.BaseRequest) -> bool:
    """Whether no browser sent this, or one that shows a page of ours."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        # No page can set it, and it is about the address that the browser sees: a proxy between us
        # may have put another Host.
        return site in ("none", "same-origin")
    return _comes_from_host(request)


def _comes_from_host(request: web.BaseRequest) -> bool:
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
