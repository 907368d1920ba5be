"""A deadline for a connection's first request.

The HTTP library bounds how long an idle connection is kept between requests, but lets a new one
take for ever over its first headers; a few thousand such connections would fill the proxy.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from agentsched.model import Instant, Nanos, after, in_seconds
from agentsched.proxy.gateway import Gateway

#: The guard looks this often within the timeout; a connection lives at most a quarter too long.
_LOOKS_PER_TIMEOUT: Final = 4


class ConnectionGuard:
    """Closes connections that brought no whole request's headers within `header_timeout`."""

    def __init__(self, server: web.Server, gateway: Gateway) -> None:
        self._server = server
        self._gateway = gateway
        self._timeout: Nanos = gateway.config.http.header_timeout
        #: Open connections that have brought a request; the library's class is not weakly
        #: referable, so closed ones are taken out at each look.
        self._good: set[Any] = set()
        #: When each other open connection was first noticed.
        self._noticed: dict[Any, Instant] = {}
        self.closed_total = 0
        make_request = server.request_factory

        def noting(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> Any:
            self._good.add(protocol)
            return make_request(message, payload, protocol, writer, task)

        server.request_factory = noting

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(in_seconds(self._timeout) / _LOOKS_PER_TIMEOUT)
            self.look(self._gateway.host.now())

    def look(self, now: Instant) -> None:
        """Close what is overdue, note what is new."""
        connections = self._server.connections
        self._good.intersection_update(connections)
        self._noticed = {c: self._noticed[c] for c in connections if c in self._noticed}
        for connection in connections:
            if connection in self._good:
                continue
            noticed = self._noticed.setdefault(connection, now)
            if now >= after(noticed, self._timeout):
                connection.force_close()
                self.closed_total += 1
