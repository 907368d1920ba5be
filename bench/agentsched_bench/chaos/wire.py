"""Connections in memory: two transports and the wire between them, with latency and faults.

What TCP promises holds: bytes arrive in order and whole, or the connection breaks. A sender that is
ahead of its receiver by a window waits, and its protocol is told to. A wire that stalls is given up
after a time, as a machine's TCP does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from agentsched_bench.chaos.faults import Link

if TYPE_CHECKING:
    from agentsched_bench.chaos.virtual import VirtualLoop

_WINDOW_BYTES: Final = 65_536
_HIGH_BYTES: Final = 65_536
_LOW_BYTES: Final = 16_384
#: Bytes that were not confirmed for so long end a connection.
_GIVE_UP_S: Final = 60.0
#: Segments that go in one turn of a wire of tiny ones.
_TINY_BYTES: Final = 1_024


class Wire:
    """What two ends share."""

    def __init__(
        self, loop: VirtualLoop, link: Link, *, number: int, on_end: Callable[[Wire], None]
    ) -> None:
        self.loop = loop
        self.link = link
        self.number = number
        self._on_end = on_end
        self._open = 2

    def ended(self) -> None:
        """One end is closed."""
        self._open -= 1
        if not self._open:
            self._on_end(self)


class End(asyncio.Transport):
    """One end of a connection; implements what protocols use of a transport."""

    def __init__(self, wire: Wire, protocol: Any, *, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self.wire = wire
        self._loop = wire.loop
        self._protocol = protocol
        self.peer: End | None = None
        #: Written, and not on its way yet.
        self._out = bytearray()
        #: On its way, or waiting for a protocol that does not read.
        self._sent_bytes = self._unread_bytes = 0
        self._inbox: list[bytes] = []
        self._arrives_at = 0.0
        self._is_reading = True
        self._is_pumping = False
        self._is_told_to_wait = False
        self._is_eof_due = self._is_eof_sent = self._has_eof = False
        self._is_closing = self._is_lost = False
        self._carried = 0
        self._is_stalled = False

    # asyncio.Transport

    def is_closing(self) -> bool:
        return self._is_closing

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def get_write_buffer_size(self) -> int:
        return len(self._out)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return _LOW_BYTES, _HIGH_BYTES

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The limits are as they are."""

    def is_reading(self) -> bool:
        return self._is_reading and not self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        if self._inbox or self._has_eof:
            self._loop.call_soon(self._read_on)

    def write(self, data: Any) -> None:
        if self._is_closing or self._is_lost or not data:
            return
        self._out += data
        self._pump_soon()
        if len(self._out) > _HIGH_BYTES and not self._is_told_to_wait:
            self._is_told_to_wait = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._is_eof_due = True
        self._pump_soon()

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._is_reading = False
        self._is_eof_due = True
        self._pump_soon()

    def abort(self) -> None:
        self._is_closing = True
        self._out.clear()
        if self.peer is not None and not self._is_stalled:
            reset = ConnectionResetError(104, "Connection reset by peer")
            self._loop.call_later(self.wire.link.latency_s, self.peer.lose, reset)
        self._loop.call_soon(self.lose, None)

    # Inside.

    def lose(self, error: Exception | None) -> None:
        """The connection is over for this end."""
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        self._out.clear()
        self._inbox.clear()
        self.wire.ended()
        # Not at once, like asyncio itself: whoever was woken by the last bytes reads them first.
        self._loop.call_soon(self._protocol.connection_lost, error)

    def _pump_soon(self) -> None:
        if not self._is_pumping:
            self._is_pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send what the window takes, then the end if it is due."""
        self._is_pumping = False
        peer, link = self.peer, self.wire.link
        assert peer is not None
        if self._is_lost:
            return
        portion = _TINY_BYTES if link.segment_max < _TINY_BYTES else _WINDOW_BYTES
        room = min(portion, _WINDOW_BYTES - self._sent_bytes - peer._unread_bytes)
        while self._out and room > 0 and not self._is_stalled:
            size = min(link.segment_max, room, len(self._out))
            data = bytes(self._out[:size])
            del self._out[:size]
            room -= size
            if not self._carry(data):
                return
        self._tell_to_go_on()
        if self._is_eof_due and not self._out and not self._is_eof_sent:
            self._is_eof_sent = True
            if not self._is_stalled:
                self._loop.call_at(self._next_arrival(), peer._take_eof)
            if self._is_closing:
                self._loop.call_soon(self.lose, None)

    def _carry(self, data: bytes) -> bool:
        """Put a segment on the wire; False where the connection broke over it."""
        peer, link = self.peer, self.wire.link
        assert peer is not None
        self._carried += len(data)
        if link.reset_after is not None and self._carried > link.reset_after:
            reset = ConnectionResetError(104, "Connection reset by peer")
            self._loop.call_later(link.latency_s, peer.lose, reset)
            self._loop.call_later(link.latency_s, self.lose, reset)
            return False
        if link.stall_after is not None and self._carried > link.stall_after:
            self._is_stalled = peer._is_stalled = True
            late = TimeoutError(110, "Connection timed out")
            self._loop.call_later(_GIVE_UP_S, self.lose, late)
            self._loop.call_later(_GIVE_UP_S, peer.lose, late)
            return True
        self._sent_bytes += len(data)
        self._loop.call_at(self._next_arrival(), self._deliver, data)
        return True

    def _next_arrival(self) -> float:
        link = self.wire.link
        jitter = self._loop.faults.random.uniform(0.0, link.jitter_s) if link.jitter_s else 0.0
        at = self._loop.time() + link.latency_s + jitter
        # Timers for the same moment have no order; segments do.
        self._arrives_at = max(at, self._arrives_at + 1e-7)
        return self._arrives_at

    def _deliver(self, data: bytes) -> None:
        peer = self.peer
        assert peer is not None
        self._sent_bytes -= len(data)
        if not peer._is_lost and not peer._is_closing:
            peer._inbox.append(data)
            peer._unread_bytes += len(data)
            peer._read_on()
        elif peer._is_closing and not self._is_lost:
            # Nobody reads there any more: the machine answers with a reset.
            reset = ConnectionResetError(104, "Connection reset by peer")
            self._loop.call_later(self.wire.link.latency_s, self.lose, reset)
        if self._out or self._is_eof_due:
            self._pump_soon()

    def _take_eof(self) -> None:
        self._has_eof = True
        self._read_on()

    def _read_on(self) -> None:
        assert self.peer is not None
        while self._inbox and self._is_reading and not self._is_lost:
            data = self._inbox.pop(0)
            self._unread_bytes -= len(data)
            self._protocol.data_received(data)
            if self.peer._out:
                self.peer._pump_soon()
        if self._has_eof and not self._inbox and self._is_reading and not self._is_closing:
            self._has_eof = False
            if not self._protocol.eof_received():
                self.close()

    def _tell_to_go_on(self) -> None:
        if self._is_told_to_wait and len(self._out) <= _LOW_BYTES and not self._is_lost:
            self._is_told_to_wait = False
            self._protocol.resume_writing()


def join(wire: Wire, client: Any, server: Any, *, address: tuple[str, int]) -> End:
    """Two protocols, connected; the client's end."""
    mine = ("127.0.0.1", 40_000 + wire.number)
    near = End(wire, client, extra={"peername": address, "sockname": mine})
    far = End(wire, server, extra={"peername": mine, "sockname": address})
    near.peer, far.peer = far, near
    server.connection_made(far)
    client.connection_made(near)
    return near
