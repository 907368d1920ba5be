"""Writing to clients, bounded in time: who reads nothing is cut off."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from agentsched.config import HttpConfig
from agentsched.model import in_seconds

#: A whole body is given the write timeout once for each of these.
_PORTION_BYTES: Final = 1 << 20
#: A quarter of what a transport takes before it asks the writer to wait.
_BACKLOG_BYTES_MAX: Final = 16 << 10
#: What status and headers take, roughly.
_HEAD_BYTES: Final = 4 << 10


def hang_up(request: web.BaseRequest) -> None:
    """Break the connection: the only honest end of an answer that cannot be completed."""
    if request.transport is not None:
        request.transport.abort()


async def send(
    request: web.Request, response: web.StreamResponse, data: bytes, config: HttpConfig
) -> None:
    """Send a part of a stream; returns when the client's backlog is short again.

    The end of a stream is not sent here, but by `finish`: that may have to wait as well.

    Raises:
        ConnectionResetError: the client went away, or read nothing for the write timeout.
    """
    transport = request.transport
    if transport is None:
        # Its client is gone, which the write says at once; or this is a recording, whose followers
        # are each timed where their own bytes are sent.
        await response.write(data)
        return
    if _keeps_up(request, transport, len(data)):
        # This does not wait; a timer would cost more than the write.
        await response.write(data)
        return
    try:
        async with asyncio.timeout(in_seconds(config.write_timeout)):
            await response.write(data)
    except TimeoutError:
        hang_up(request)
        raise ConnectionResetError("the client does not read") from None


async def finish(request: web.Request, response: web.StreamResponse, config: HttpConfig) -> None:
    """Send what is left of a response: all of it, where nothing was sent yet. Raises as `send`."""
    body = response.body if isinstance(response, web.Response) else None
    transport = request.transport
    if (
        transport is not None
        and (body is None or isinstance(body, bytes))
        and _keeps_up(request, transport, len(body or b"") + _HEAD_BYTES)
    ):
        # As in `send`: this does not wait.
        await response.prepare(request)
        await response.write_eof()
        return
    portions = 1 + (len(body) // _PORTION_BYTES if isinstance(body, bytes) else 0)
    try:
        async with asyncio.timeout(in_seconds(config.write_timeout) * portions):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        hang_up(request)
        raise ConnectionResetError("the client does not read") from None


def _keeps_up(request: web.Request, transport: asyncio.Transport, size: int) -> bool:
    """Whether the client reads so well that a write of so much does not wait for it."""
    # Once it asked to wait, a transport may do so down to its last bytes, as uvloop's does.
    is_waiting = request.protocol.writing_paused
    return not is_waiting and transport.get_write_buffer_size() + size < _BACKLOG_BYTES_MAX
