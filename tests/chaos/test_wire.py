"""The simulated network keeps TCP's promises, and breaks connections where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agentsched_bench.chaos.faults import CALM, Faults, Link
from agentsched_bench.chaos.virtual import Stalled, VirtualLoop

DATA = bytes(range(256)) * 1_000


class Fixed(Faults):
    """Every connection has the same fate."""

    def __init__(self, link: Link) -> None:
        super().__init__(1, CALM)
        self._link = link

    def link(self, where: str) -> Link:
        return self._link


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1_000):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()


def on(link: Link, main: Callable[[VirtualLoop], Awaitable[object]]) -> object:
    loop = VirtualLoop(Fixed(link))

    async def inside() -> object:
        server = await asyncio.start_server(echo, "here", 1)
        try:
            return await main(loop)
        finally:
            server.close()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(inside())


async def there_and_back(loop: VirtualLoop) -> bytes:
    reader, writer = await asyncio.open_connection("here", 1)
    writer.write(DATA)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("size", [17, 65_536])
@pytest.mark.parametrize("jitter_s", [0.0, 0.5])
def test_bytes_arrive_whole_and_in_order(size: int, jitter_s: float) -> None:
    link = Link(latency_s=0.1, jitter_s=jitter_s, segment_max=size)
    assert on(link, there_and_back) == DATA


def test_a_reset_reaches_both_ends() -> None:
    with pytest.raises(ConnectionResetError):
        on(Link(reset_after=1_000), there_and_back)


def test_what_falls_silent_is_given_up_after_a_minute() -> None:
    async def main(loop: VirtualLoop) -> float:
        began = loop.time()
        with pytest.raises(TimeoutError):
            await there_and_back(loop)
        return loop.time() - began

    took = on(Link(stall_after=1_000), main)
    assert isinstance(took, float)
    assert 60 <= took < 62


def test_nobody_there_is_a_refusal() -> None:
    async def main(loop: VirtualLoop) -> None:
        await asyncio.open_connection("elsewhere", 1)

    with pytest.raises(ConnectionRefusedError):
        on(Link(), main)


def test_a_reader_that_pauses_makes_the_writer_wait() -> None:
    async def main(loop: VirtualLoop) -> int:
        reader, writer = await asyncio.open_connection("here", 1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(DATA * 20)
        await asyncio.sleep(5)
        waiting = writer.transport.get_write_buffer_size()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await reader.readexactly(len(DATA) * 20)
        assert writer.transport.get_write_buffer_size() == 0
        writer.close()
        return waiting

    waiting = on(Link(), main)
    assert isinstance(waiting, int)
    assert waiting > len(DATA)


def test_time_is_virtual_and_a_wait_for_nothing_is_told() -> None:
    async def main(loop: VirtualLoop) -> None:
        began = loop.time()
        await asyncio.sleep(86_400)
        assert loop.time() - began >= 86_400
        await loop.create_future()

    with pytest.raises(Stalled):
        on(Link(), main)
