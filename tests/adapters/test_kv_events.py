"""KV events: what an engine says by itself of its cache, from a publisher on the wire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec
import pytest
from zmtp_publisher import GREETING, Publisher, batch, cleared, heard, publishing, removed, stored

from agentsched.model import EngineId, EngineUnreachable
from agentsched_adapters import kv_events, zmtp
from agentsched_adapters.kv_events import CacheAccount, KvEvents


class TestAccount:
    """Which conversations have nothing of their own left."""

    @pytest.fixture
    def account(self) -> CacheAccount:
        return CacheAccount()

    def test_one_that_lost_its_last_block_is_told_once(self, account: CacheAccount) -> None:
        account.apply(batch(stored(1, 2, 3, to="a"), stored(4, to="a", after=3)))
        account.apply(batch(removed(4), removed(3, 2)))
        assert account.take_gone() == ()
        account.apply(batch(removed(1)))
        assert account.take_gone() == ("a",)
        assert account.take_gone() == ()

    def test_what_several_begin_with_is_nobodys_own(self, account: CacheAccount) -> None:
        account.apply(batch(stored(1, 2, 3, to="a"), stored(5, 6, to="b", after=2)))
        account.apply(batch(removed(6, 5)))
        assert account.take_gone() == ("b",)  # the common beginning is there
        account.apply(batch(removed(3)))
        assert account.take_gone() == ("a",)
        account.apply(batch(removed(2, 1)))
        assert account.take_gone() == ()

    def test_of_one_that_has_nothing_of_its_own_nothing_is_said(
        self, account: CacheAccount
    ) -> None:
        account.apply(batch(stored(1, 2, to="a"), stored(5, to="b", after=2)))
        account.apply(batch(removed(2, 1)))
        assert account.take_gone() == ()

    def test_one_that_is_back_before_it_was_told_has_not_gone(self, account: CacheAccount) -> None:
        account.apply(batch(stored(1, to="a"), removed(1), stored(1, to="a")))
        assert account.take_gone() == ()

    def test_blocks_without_a_session_are_nobodys(self, account: CacheAccount) -> None:
        account.apply(batch(stored(1, to=None), stored(2, to="a", after=1), removed(2)))
        assert account.take_gone() == ("a",)
        account.apply(batch(stored(3, to="a", after=1), stored(4, to=None, after=3), removed(3)))
        assert account.take_gone() == ("a",)  # a stranger's steps take nothing away from it

    def test_a_cache_that_was_cleared_has_nothing(self, account: CacheAccount) -> None:
        account.apply(batch(stored(1, to="a"), stored(2, to="b"), cleared()))
        assert account.take_gone() == ("a", "b")
        account.apply(batch(removed(1, 2)))
        assert account.take_gone() == ()

    def test_tiers_below_and_further_groups_of_layers_do_not_count(
        self, account: CacheAccount
    ) -> None:
        account.apply(batch(stored(1, to="a"), stored(1, to="a", medium="CPU")))
        account.apply(batch(removed(1, medium="CPU"), removed(1, group_idx=1)))
        assert account.take_gone() == ()
        account.apply(batch(removed(1)))
        assert account.take_gone() == ("a",)

    def test_of_too_many_the_oldest_is_forgotten_and_not_told(
        self, account: CacheAccount, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kv_events, "_KNOWN_MAX", 2)
        account.apply(batch(stored(1, to="a"), stored(2, to="b"), stored(3, to="c")))
        assert len(account) == 2
        account.apply(batch(removed(1, 2, 3)))
        assert account.take_gone() == ("b", "c")

    def test_too_many_blocks_mean_that_removals_were_missed(
        self, account: CacheAccount, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kv_events, "_BLOCKS_MAX", 2)
        account.apply(batch(stored(1, 2, 3, to="a"), removed(1, 2, 3)))
        assert account.take_gone() == ()

    @pytest.mark.parametrize("nonsense", [b"", b"\x00", msgspec.msgpack.encode([1.0, [{}]])])
    def test_nonsense_is_an_error(self, account: CacheAccount, nonsense: bytes) -> None:
        with pytest.raises(msgspec.DecodeError):
            account.apply(nonsense)


class TestListening:
    """Over the wire."""

    @pytest.fixture
    async def publisher(self) -> AsyncIterator[Publisher]:
        async with publishing() as made:
            yield made

    @pytest.fixture
    async def events(
        self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[KvEvents]:
        monkeypatch.setattr(kv_events, "_RETRY_S", 0.0)
        made = KvEvents(EngineId("e"), publisher.address)
        made.start()
        await publisher.subscribed.wait()
        yield made
        await made.aclose()

    async def test_what_is_published_is_heard(self, publisher: Publisher, events: KvEvents) -> None:
        assert not events.is_heard
        many = list(range(1, 400))  # more than fits a short frame
        publisher.publish(stored(*many, to="a"))
        publisher.publish(removed(*reversed(many)))
        assert await heard(events.take_gone) == ["a"]
        assert events.is_heard
        assert publisher.topics == [b""]

    async def test_a_lost_message_forgets_what_was_known(
        self, publisher: Publisher, events: KvEvents
    ) -> None:
        publisher.publish(stored(1, to="a"), number=5)
        publisher.publish(stored(2, to="b"), number=7)
        publisher.publish(removed(1, 2))
        assert await heard(events.take_gone) == ["b"]

    async def test_a_connection_that_broke_is_made_again(
        self, publisher: Publisher, events: KvEvents
    ) -> None:
        publisher.publish(stored(1, to="a"))
        publisher.hang_up()
        await publisher.subscribed.wait()
        publisher.publish(stored(2, to="b"), number=0)
        publisher.publish(removed(1, 2))
        assert await heard(events.take_gone) == ["b"]

    @pytest.mark.parametrize(
        "parts", [(b"one",), (b"", b"short", batch()), (b"", bytes(8), b"\xc1")]
    )
    async def test_what_is_no_kv_event_is_said_and_tried_again(
        self,
        publisher: Publisher,
        events: KvEvents,
        parts: tuple[bytes, ...],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        publisher.subscribed.clear()
        with caplog.at_level(logging.INFO, "agentsched_adapters.kv_events"):
            publisher.send(*parts)
            await publisher.subscribed.wait()
        assert "engine e tells no KV events" in caplog.text
        publisher.publish(stored(1, to="a"), removed(1))
        assert await heard(events.take_gone) == ["a"]


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n".ljust(64), "does not speak ZMTP 3"),
        (GREETING[:10] + b"\x01" + GREETING[11:], "does not speak ZMTP 3"),
        (GREETING.replace(b"NULL\0", b"PLAIN"), "wants a secret"),
    ],
)
async def test_whoever_is_no_publisher_is_told_apart(greeting: bytes, said: str) -> None:
    async with publishing(greeting) as publisher:
        host, _, port = publisher.address.removeprefix("tcp://").rpartition(":")
        with pytest.raises(EngineUnreachable, match=said):
            await anext(zmtp.messages(host, int(port)))


async def test_a_place_where_nobody_is_costs_nothing_but_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with publishing() as publisher:
        address = publisher.address  # free again when it is closed
    with caplog.at_level(logging.INFO, "agentsched_adapters.kv_events"):
        events = KvEvents(EngineId("e"), address)
        events.start()
        async with asyncio.timeout(20):
            while not caplog.records:  # noqa: ASYNC110
                await asyncio.sleep(0)
    await events.aclose()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert events.take_gone() == ()


async def test_a_frame_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmtp, "_FRAME_BYTES_MAX", 100)
    async with publishing() as publisher:
        host, _, port = publisher.address.removeprefix("tcp://").rpartition(":")
        stream = zmtp.messages(host, int(port))
        first = asyncio.ensure_future(anext(stream))
        await publisher.subscribed.wait()
        publisher.send(bytes(101))
        with pytest.raises(EngineUnreachable, match="101 bytes"):
            await first
