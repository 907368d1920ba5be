"""What is recorded can be followed from its beginning; beyond the bound nothing piles up."""

from __future__ import annotations

import asyncio

import pytest

from agentsched.proxy.recording import Recording


async def read(recording: Recording, follower: int) -> bytes:
    try:
        return b"".join([part async for part in recording.parts(follower)])
    finally:
        recording.leave(follower)


async def test_followers_early_and_late_get_the_same() -> None:
    recording = Recording(bytes_max=100)
    early = asyncio.ensure_future(read(recording, recording.follow()))
    recording.begin(200, [("a", "b"), ("Date", "x")], is_stream=True)
    await recording.add(b"one ")
    await asyncio.sleep(0)
    late = asyncio.ensure_future(read(recording, recording.follow()))
    await recording.add(b"two")
    recording.end()
    assert await early == await late == b"one two"
    assert await read(recording, recording.follow()) == b"one two"
    assert recording.headers == [("a", "b")]
    assert recording.followers == 0


async def test_beyond_the_bound_it_waits_for_the_slowest_and_forgets() -> None:
    recording = Recording(bytes_max=10)
    recording.begin(200, [], is_stream=True)
    follower = recording.follow()
    await recording.add(b"x" * 10)
    assert recording.is_joinable
    writing = asyncio.ensure_future(recording.add(b"y"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done()
    reading = asyncio.ensure_future(read(recording, follower))
    await writing
    assert not recording.is_joinable
    await recording.add(b"z")
    recording.end()
    assert await reading == b"x" * 10 + b"yz"


async def test_the_slowest_need_not_have_read_all() -> None:
    """Others go on while it is near the end; what all have read is let go meanwhile."""
    recording = Recording(bytes_max=1_280)  # 10 bytes are near
    recording.begin(200, [], is_stream=True)
    slow = recording.parts(recording.follow())
    for _ in range(4):
        await recording.add(b"x" * 320)
    writing = asyncio.ensure_future(recording.add(b"y" * 5))
    assert recording.held == 4 * 320
    for left in (4, 3, 2, 1):
        await anext(slow)  # what was read before is read when the next is asked for
        for _ in range(5):
            await asyncio.sleep(0)
        assert (recording.held, writing.done()) == (320 * left + 5, False)
    assert await anext(slow) == b"y" * 5
    await writing
    await recording.add(b"z" * 5)
    recording.end()
    assert [part async for part in slow] == [b"z" * 5]


async def test_a_follower_that_leaves_holds_nothing_up() -> None:
    recording = Recording(bytes_max=1)
    follower = recording.follow()
    writing = asyncio.ensure_future(recording.add(b"abc"))
    await asyncio.sleep(0)
    recording.leave(follower)
    await writing
    assert not recording.is_joinable


async def test_one_that_failed_before_it_began_says_why() -> None:
    recording = Recording(bytes_max=1)
    waiting = asyncio.ensure_future(recording.opened())
    await asyncio.sleep(0)
    recording.end(ValueError("why"))
    with pytest.raises(ValueError, match="why"):
        await waiting


async def test_one_that_was_given_up_closes() -> None:
    recording = Recording(bytes_max=1)
    recording.end()
    with pytest.raises(ConnectionResetError):
        await recording.opened()


async def test_whoever_counts_is_told_of_every_byte_that_is_kept() -> None:
    told: list[int] = []
    recording = Recording(bytes_max=10, hold=lambda size: told.append(size) is None)
    recording.begin(200, [], is_stream=True)
    quick, slow = recording.follow(), recording.follow()
    await recording.add(b"x" * 10)
    assert (recording.held, told) == (10, [10])
    writing = asyncio.ensure_future(recording.add(b"yy"))
    reading = asyncio.ensure_future(read(recording, quick))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done(), "the slower one has not read it"
    assert (recording.held, told) == (12, [10, 2])
    parts = recording.parts(slow)
    assert await anext(parts) == b"x" * 10
    assert await anext(parts) == b"yy"
    late = asyncio.ensure_future(anext(parts))
    await writing
    assert (recording.held, told) == (0, [10, 2, -12])
    writing = asyncio.ensure_future(recording.add(b"z"))
    assert await late == b"z"
    ending = asyncio.ensure_future(anext(parts, None))
    await writing
    recording.end()
    assert await ending is None
    assert await reading == b"x" * 10 + b"yyz"
    assert (recording.held, told[3:]) == (0, [1, -1])


async def test_without_room_it_is_as_one_beyond_its_bound() -> None:
    kept = 0

    def hold(size: int) -> bool:
        nonlocal kept
        kept += size
        return kept <= 3

    recording = Recording(bytes_max=100, hold=hold)
    recording.begin(200, [], is_stream=True)
    reading = asyncio.ensure_future(read(recording, recording.follow()))
    await recording.add(b"abc")
    assert recording.is_joinable
    await recording.add(b"d")
    assert not recording.is_joinable
    assert kept == 0
    recording.end()
    assert await reading == b"abcd"


async def test_a_whole_answer_without_room_reaches_who_waits_and_nobody_else() -> None:
    recording = Recording(bytes_max=3)
    waiting = recording.follow()
    recording.whole(200, [("a", "b")], b"abcd")
    recording.end()
    await recording.opened()
    assert not recording.is_stream
    assert not recording.is_joinable
    assert await read(recording, waiting) == b"abcd"
