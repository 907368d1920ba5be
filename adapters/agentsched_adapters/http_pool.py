"""The connections to one engine: reused, bounded in number, dropped when idle for too long."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from typing import Final

from agentsched.model import EngineUnreachable
from agentsched_adapters.http_connection import Connection

#: Closing takes effect in the loop's next turns; TLS may take longer, and nobody waits for it.
_TURNS_TO_CLOSE: Final = 8
_SWEEP_S_MIN: Final = 0.01


class HttpPool:
    """Connections to one address. Belongs to the event loop that is running when it is made.

    `connections_max` are open at once; whoever comes then waits for up to `connect_s` seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_tls: bool,
        where: str,
        connections_max: int,
        connect_s: float,
        keepalive_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._port = port
        self._tls = ssl.create_default_context() if is_tls else None
        self._where = where
        self._connections_max = connections_max
        self._connect_s = connect_s
        self._keepalive_s = keepalive_s
        #: Free connections, the one used last at the end.
        self._free: deque[Connection] = deque()
        #: All connections, free ones included.
        self._all: set[Connection] = set()
        #: Connections that are being opened.
        self._opening = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    def free(self) -> Connection | None:
        """A connection that is open and unused, where there is one."""
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed:
                if self._loop.time() - connection.free_since <= self._keepalive_s:
                    return connection
                connection.close()
        return None

    async def open(self) -> Connection:
        """A connection: a free one, else a new one, when there may be one more.

        Raises:
            EngineUnreachable: there is none in time.
        """
        try:
            async with asyncio.timeout(self._connect_s):
                while len(self._all) + self._opening >= self._connections_max:
                    await self._room()
                    connection = self.free()
                    if connection is not None:
                        return connection
                return await self._connect()
        except TimeoutError:
            raise EngineUnreachable(f"{self._where}: no connection in time") from None
        except OSError as error:
            raise EngineUnreachable(f"{self._where}: {_why(error)}") from error

    async def aclose(self) -> None:
        """Close all connections; answers still open are aborted."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._all):
            connection.close()
        self._free.clear()
        for _ in range(_TURNS_TO_CLOSE):
            if not self._all:
                break
            await asyncio.sleep(0)

    async def _connect(self) -> Connection:
        self._opening += 1
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(loop=self._loop, on_free=self._freed, on_lost=self._lost),
                self._host,
                self._port,
                ssl=self._tls,
            )
        except BaseException:
            self._let_in()
            raise
        finally:
            self._opening -= 1
        if connection.is_closed:
            self._let_in()
            raise EngineUnreachable(f"{self._where}: it closed the connection before answering")
        self._all.add(connection)
        if self._is_closed:
            connection.close()
            raise EngineUnreachable(f"{self._where}: this adapter is closed")
        return connection

    async def _room(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._let_in()  # it was this one's turn, and it cannot take it
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _let_in(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _freed(self, connection: Connection) -> None:
        if self._is_closed:
            connection.close()
            return
        self._free.append(connection)
        if self._waiters:
            self._let_in()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._keepalive_s, self._sweep)

    def _lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection.free_since and connection in self._free:
            self._free.remove(connection)
        if self._waiters:
            self._let_in()

    def _sweep(self) -> None:
        """Close what nobody used for long; the engine would close it sooner or later."""
        self._sweeper = None
        now = self._loop.time()
        while self._free and now - self._free[0].free_since >= self._keepalive_s:
            self._free.popleft().close()
        if self._free:
            left = self._free[0].free_since + self._keepalive_s - now
            # A timer of less than the clock can tell apart would be due again at once, and again.
            self._sweeper = self._loop.call_later(max(left, _SWEEP_S_MIN), self._sweep)


def _why(error: OSError) -> str:
    """What the system says of a failed connection, in the same words under every event loop."""
    if isinstance(error, ssl.SSLError | socket.gaierror) or error.errno is None:
        # Numbers of their own; or a name with several addresses, each of which failed.
        return error.strerror or str(error) or "no connection"
    return os.strerror(error.errno)
