"""The bodies of all requests under way: how many bytes they may take together.

They are counted as they arrive, not by what requests say of themselves: a client that promises much
and sends nothing takes no room from others.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agentsched.model import WireError

_HELD: Final = web.RequestKey("agentsched.body_bytes", int)


class Bodies:
    """Bytes of bodies that are held."""

    __slots__ = ("held", "refused_total")

    def __init__(self) -> None:
        self.held = 0
        self.refused_total = 0

    def take(self, request: web.BaseRequest, size: int, *, most: int) -> None:
        """Count further bytes of a request's body, until it is released.

        Raises:
            WireError: all bodies would have more than `most` bytes (429).
        """
        if self.held + size > most:
            self.refused_total += 1
            raise WireError(
                "The requests under way are too large together. Try again later.",
                status=429,
                code="bodies_full",
            )
        self.held += size
        request[_HELD] = request.get(_HELD, 0) + size

    def hand_over(self, request: web.BaseRequest, to: web.BaseRequest) -> None:
        """What a request brought is held for this one from now on, and released with it."""
        to[_HELD] = request.get(_HELD, 0)
        request[_HELD] = 0

    def release(self, request: web.BaseRequest) -> None:
        """The request is over. May be called for any request, more than once."""
        size = request.get(_HELD, 0)
        if size:
            self.held -= size
            request[_HELD] = 0


#: Where an application keeps the count.
BODIES: Final = web.AppKey("bodies", Bodies)
