"""An event loop on virtual time with a network in memory: nothing waits, nothing is real.

Theory. asyncio's own loop asks its selector how long nothing happens; ours answers by moving the
clock there. What it runs is production code: servers and connections are made through the loop, and
get transports of `wire`. A run depends on its seed alone: there is one thread, functions for other
threads run at once, ties between timers fall as they were made.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import secrets
from asyncio import base_events
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

from agentsched.clock import MonotonicClock
from agentsched.model import Instant
from agentsched_bench.chaos.faults import Faults
from agentsched_bench.chaos.wire import Wire, join

#: The loop's clock at its start, in seconds: like a machine's that is up for a while.
_EPOCH_S: Final = 1_000.0
#: What a turn of the loop takes: on no machine does time stand still while something is done.
_TURN_S: Final = 1e-6


class Stalled(Exception):
    """Nothing will ever happen again, and somebody still waits."""


class _Selector:
    """Where asyncio waits for the network: we move the clock instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stalled("no timer is set and nothing is ready")
        self._loop.pass_time(timeout + _TURN_S)
        return []

    def close(self) -> None:
        """Nothing is held."""


class _Address:
    """What asks a server's socket for its name."""

    def __init__(self, host: str, port: int) -> None:
        self._name = (host, port)

    def getsockname(self) -> tuple[str, int]:
        return self._name


class Listener:
    """A listening port in memory."""

    def __init__(self, loop: VirtualLoop, make: Callable[[], Any], host: str, port: int) -> None:
        self._loop = loop
        self.make = make
        self.address = (host, port)
        self.sockets = [_Address(host, port)]

    def close(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._loop.listeners.get(self.address) is self:
            del self._loop.listeners[self.address]

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""


class VirtualLoop(base_events.BaseEventLoop):
    """See the module. `faults` decides what befalls each connection."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults
        self._elapsed = _EPOCH_S
        self._selector = _Selector(self)
        self.listeners: dict[tuple[str, int], Listener] = {}
        #: Connections that are open at one end at least.
        self.wires: dict[int, Wire] = {}
        self._ports = 20_000
        self._numbers = 0

    def time(self) -> float:
        return self._elapsed

    def pass_time(self, seconds: float) -> None:
        """Let time pass; a process that is stopped for a while sees it jump."""
        self._elapsed += seconds

    def _process_events(self, event_list: list[Any]) -> None:
        """The network's events are ordinary callbacks here."""

    def _write_to_self(self) -> None:
        """No other thread has to be woken for."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run it at once: threads would bring their own order."""
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return asyncio.wrap_future(done, loop=self)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: Any = None, port: int = 0, **_: Any
    ) -> Any:
        if not port:
            self._ports += 1
            port = self._ports
        key = (str(host), port)
        if key in self.listeners:
            raise OSError(98, f"{key} is in use")
        listener = self.listeners[key] = Listener(self, protocol_factory, *key)
        return listener

    async def create_connection(
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        """Raises `ConnectionRefusedError` where nothing listens; a lost one takes for ever."""
        link = self.faults.link(f"{host}:{port}")
        await asyncio.sleep(link.latency_s)
        if link.is_lost:
            await self.create_future()
        listener = self.listeners.get((str(host), int(port)))
        if listener is None:
            raise ConnectionRefusedError(111, "Connection refused")
        self._numbers += 1
        wire = Wire(self, link, number=self._numbers, on_end=self._forget)
        self.wires[self._numbers] = wire
        protocol, peer = protocol_factory(), listener.make()
        return join(wire, protocol, peer, address=listener.address), protocol

    def _forget(self, wire: Wire) -> None:
        self.wires.pop(wire.number, None)


class VirtualClock:
    """The loop's time as instants; exact to the nanosecond, never earlier than before."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._latest = Instant(0)

    def now(self) -> Instant:
        self._latest = max(self._latest, Instant(round(self._loop.time() * 1e9)))
        return self._latest


@contextlib.contextmanager
def no_other_clock(loop: VirtualLoop) -> Iterator[None]:
    """While inside, the machine's clock is the loop's: adapters say of a pin what is left of it."""
    real, clock = MonotonicClock.now, VirtualClock(loop)

    def now(self: MonotonicClock) -> Instant:
        return clock.now()

    MonotonicClock.now = now  # type: ignore[method-assign]
    try:
        yield
    finally:
        MonotonicClock.now = real  # type: ignore[method-assign]


@contextlib.contextmanager
def seeded_ids(seed: int) -> Iterator[None]:
    """While inside, `secrets` draws from the seed, so that two runs mint the same ids."""
    random = Random(seed)
    real = (secrets.token_hex, secrets.randbits)
    secrets.token_hex = lambda nbytes=None: random.randbytes(nbytes or 32).hex()
    secrets.randbits = lambda k: random.getrandbits(k)
    try:
        yield
    finally:
        secrets.token_hex, secrets.randbits = real
