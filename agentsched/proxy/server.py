"""Connections: a deadline for the first request, and our error shape for what is not HTTP.

The HTTP library bounds how long an idle connection is kept between requests, but lets a new one
take for ever over its first headers; a few thousand such connections would fill the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from http import HTTPStatus
from typing import Any, Final

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong

from agentsched.model import Instant, Nanos, after, in_seconds
from agentsched.proxy.errors import error_body
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.request import Dialect

log = logging.getLogger(__name__)

#: The guard looks this often within the timeout; a connection lives at most a quarter too long.
_LOOKS_PER_TIMEOUT: Final = 4


class Connection(web.RequestHandler):
    """The library's connection, with our answer to bytes that it cannot read."""

    def __init__(self, *args: Any, lingering_time: float, **kw: Any) -> None:
        super().__init__(*args, lingering_time=lingering_time, **kw)
        self._patience_s = lingering_time

    async def hear_out(self) -> None:
        """Read and drop what still comes, until the client closes or `lingering_time` is over.

        A socket that is closed with bytes unread is reset, and a reset takes back what the client
        has not read yet: our answer. The library does this for bodies, not for what is no HTTP.
        """
        transport = self.transport
        if transport is None:
            return
        self.close()  # from here on what is received is dropped, and the handler is the last one
        with contextlib.suppress(RuntimeError):  # uvloop's word for "is not paused"
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        # Cancelled when the connection is lost: then there is nobody left to wait for.
        await asyncio.sleep(self._patience_s)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never became a request, and close."""
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer has begun already")
        code, text = "bad_http", "This is not a request that HTTP/1.1 allows."
        if isinstance(exc, LineTooLong) or "Too many headers" in (message or ""):
            status, code = 431, "headers_too_large"
            text = "The request line or the headers are larger than this proxy takes."
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("a defect outside all handlers", exc_info=exc)
            code, text = "internal_error", "The proxy failed on this request; its log says how."
        body = error_body(Dialect.OTHER, status=status, message=text, code=code)
        headers = {"Server": "agentsched"}
        response = _LastAnswer(
            self, status=status, body=body, headers=headers, content_type="application/json"
        )
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a failure, unless it is a body that cannot be read: the client has its answer."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)


class _LastAnswer(web.Response):
    """What a connection ends with that is read no further."""

    def __init__(self, connection: Connection, **kw: Any) -> None:
        super().__init__(**kw)
        self._connection = connection

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the answer, and keep the connection until it can have been read."""
        await super().write_eof(data)
        await self._connection.hear_out()


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
            if message.version not in (HttpVersion10, HttpVersion11):
                # The library would answer in the client's version, which may be none at all.
                message = message._replace(version=HttpVersion11)
            return make_request(message, payload, protocol, writer, task)

        server.request_factory = noting

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(in_seconds(self._timeout) / _LOOKS_PER_TIMEOUT)
            self.look(self._gateway.host.now())

    def look(self, now: Instant) -> None:
        """Close what is overdue, note what is new."""
        connections = set(self._server.connections)
        self._good &= connections
        self._noticed = {c: self._noticed[c] for c in self._noticed if c in connections}
        for connection in connections - self._good:
            noticed = self._noticed.setdefault(connection, now)
            if now >= after(noticed, self._timeout):
                connection.force_close()
                self.closed_total += 1
