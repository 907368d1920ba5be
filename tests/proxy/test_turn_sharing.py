"""What replicas tell each other, without a broker: told, heard, waited for, repaired, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from proxy_upstream import Gate, Upstream, answer, chunk
from shorthand import arrived, finished, reported

from agentsched.bus.service import Bus
from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry
from agentsched.model import (
    AgentschedError,
    ContinuedElsewhere,
    ConversationId,
    EngineId,
    EngineLost,
    Instant,
    StepArrived,
    StepId,
    StepStarted,
    TenantId,
)
from agentsched.proxy import sharing
from agentsched.proxy.answer import Answer
from agentsched.proxy.host import LiveHost
from agentsched.proxy.identity import Identity
from agentsched.proxy.identity.keeping import encode_turn
from agentsched.proxy.identity.sharing import SharedIndex
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.sharing import Home, TurnSharing
from agentsched.proxy.wire import WireLimits, parse_request
from agentsched.store.following import Follower

TENANT = TenantId("t")
ENGINE = EngineId("e0")
LIMITS = WireLimits(body_bytes_max=1 << 20, messages_max=1_000)


class Clock:
    def __init__(self) -> None:
        self.at = 0

    def now(self) -> Instant:
        self.at += 1_000
        return Instant(self.at)


class Wire:
    """A bus between replicas of this process: whatever one tells, the others hear at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.others: list[str] = []
        self.hear: Callable[[str, bytes], None] = lambda _, payload: self.told.append(payload)
        self.told: list[bytes] = []
        self.peer: Wire | None = None

    def tell_turns(self, payload: bytes) -> None:
        self.told.append(payload)
        if self.peer is not None:
            self.peer.hear(self.name, payload)


class Pages:
    """A store that answers page by page; an error in place of a page is raised."""

    def __init__(self, *pages: Any) -> None:
        self.pages = list(pages)
        self.is_closed = False

    @property
    def is_behind(self) -> bool:
        return bool(self.pages)

    async def news(self) -> list[tuple[int, bytes]]:
        page = self.pages.pop(0)
        if isinstance(page, Exception):
            raise page
        return list(page)

    async def aclose(self) -> None:
        self.is_closed = True


class Replica:
    """An index, a scheduler and what shares them."""

    def __init__(
        self, name: str, *, settle_s: float = 5.0, secret: int = 7, store: Pages | None = None
    ) -> None:
        self.index = SharedIndex(
            keep=lambda _: None, first_handle=sum(name.encode()) << 40, secret=secret
        )
        self.entries: list[JournalEntry] = []
        scheduler = build_scheduler(SchedulerConfig(profile="passthrough"))
        self.host = LiveHost(scheduler=scheduler, clock=Clock(), hints={}, sinks=[self])
        self.host.feed(reported(ENGINE))
        self.wire = Wire(name)
        self.sharing = TurnSharing(
            index=self.index,
            host=self.host,
            follower=cast("Follower | None", store),
            settle_s=settle_s,
        )
        self.sharing.join(cast("Bus", self.wire))
        self.wire.hear = self.sharing.hear

    def write(self, entry: JournalEntry) -> None:
        self.entries.append(entry)

    def ask(self, *said: str) -> Identity:
        return self.index.identify(request(*said), {}, tenant=TENANT, now=self.host.now())

    def answer(self, identity: Identity, text: str) -> None:
        answer = Answer(text=text, is_complete=True)
        self.index.answered(identity, answer, now=self.host.now())

    def run(self, identity: Identity, name: str, *, to_end: bool = True) -> None:
        """The scheduler's side of a turn: it is sent to the engine and, unless not, ends."""
        conversation, prefixes = identity.conversation, identity.prefixes
        self.host.submit(
            arrived(name, identity.program, conversation=conversation, prefixes=prefixes)
        )
        self.host.feed(StepStarted(step=StepId(name)))
        if to_end:
            self.host.feed(finished(name, prompt=100))

    async def settle(self, *said: str) -> None:
        await self.sharing.settle(request(*said), {}, tenant=TENANT)


def request(*said: str) -> ParsedRequest:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    body = msgspec.json.encode({"model": "m", "messages": messages})
    return parse_request(Dialect.CHAT, body, LIMITS)


def linked() -> tuple[Replica, Replica]:
    one, other = Replica("a"), Replica("b")
    one.wire.peer, other.wire.peer = other.wire, one.wire
    one.wire.others, other.wire.others = ["b"], ["a"]
    return one, other


async def turned() -> None:
    """What was to be told when the loop came round has been told."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_request_waits_for_the_turn_that_it_goes_on_from() -> None:
    a, b = linked()
    first = a.ask("fix it")
    waiting = asyncio.create_task(b.settle("fix it", "look at the file", "done"))
    await turned()
    assert not waiting.done()
    a.answer(first, "look at the file")
    await waiting
    second = b.ask("fix it", "look at the file", "done")
    assert second.conversation == first.conversation
    assert (b.sharing.counts["orphans_met"], b.sharing.counts["orphans_settled"]) == (1, 1)
    assert b.sharing.counts["heard"] == a.sharing.counts["told"] > 0


async def test_other_news_do_not_end_the_wait_and_its_end_does() -> None:
    a, b = linked()
    b.sharing._settle_s = 0.02
    waiting = asyncio.create_task(b.settle("fix it", "nobody said that", "done"))
    await turned()
    a.answer(a.ask("another task"), "an answer")
    await waiting
    assert (b.sharing.counts["orphans_met"], b.sharing.counts["orphans_settled"]) == (1, 0)
    assert b.sharing._waiters == 0


async def test_of_too_many_orphans_none_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    _, b = linked()
    monkeypatch.setattr(sharing, "_WAITERS_MAX", 0)
    await b.settle("fix it", "look at the file", "done")
    assert b.sharing.counts["orphans_met"] == 0


async def test_alone_nothing_is_told_and_nothing_waited_for() -> None:
    alone = Replica("a")
    alone.answer(alone.ask("fix it"), "look")
    await turned()
    await alone.settle("fix it", "nobody said that", "done")
    assert alone.wire.told == []
    assert alone.sharing.counts.total() == 0


def batch(version: int = sharing.TURNS_VERSION, mark: bytes = b"", turns: Any = ()) -> bytes:
    return msgspec.msgpack.encode([version, mark, turns])


async def test_what_cannot_be_read_is_counted_and_changes_nothing() -> None:
    _, b = linked()
    mark = b.index.secret_mark
    no_text = batch(mark=mark, turns=[[0, b"", "e0", 0]]).replace(b"e0", b"\xff\xfe")
    for payload in (b"", b"\xc1", no_text, batch(mark=mark, version=99), b"x" * (2 << 20)):
        b.sharing.hear("a", payload)
    b.sharing.hear("a", batch(mark=mark, turns=[[0, b"no turn", "", 0]]))
    assert b.sharing.counts["malformed"] == 6
    b.sharing.hear("a", batch(mark=b"of another secret", turns=[[0, b"no turn", "", 0]]))
    assert b.sharing.counts["foreign"] == 1
    assert len(b.index) == 0


async def test_what_is_to_be_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = linked()
    monkeypatch.setattr(sharing, "_PENDING_MAX", 2)
    for number in range(5):
        a.ask(f"task {number}")
    await turned()
    assert (a.sharing.counts["told"], a.sharing.counts["dropped"]) == (2, 3)
    assert len(b.index) == 2
    monkeypatch.setattr(sharing, "_BATCH_BYTES_MAX", 64)
    a.ask("one that is too large for a message")
    await turned()
    assert (a.sharing.counts["told"], a.sharing.counts["dropped"]) == (2, 4)


async def test_who_served_it_last_has_its_cache() -> None:
    a, b = linked()
    first = a.ask("fix it")
    a.run(first, "s1")
    a.answer(first, "look at the file")
    await turned()
    assert b.sharing.home(first.conversation) == Home(ENGINE, 100)
    assert b.sharing.home(first.conversation) is None  # it is asked for once
    # It goes on at b, so a no longer counts it as its own.
    second = b.ask("fix it", "look at the file", "done")
    b.run(second, "s2")
    b.answer(second, "now run it")
    await turned()
    left = [e.event for e in a.entries if isinstance(e.event, ContinuedElsewhere)]
    assert {event.conversation for event in left} == {first.conversation}
    assert a.sharing.home(first.conversation) == Home(ENGINE, 100)


async def test_looking_at_a_home_does_not_take_it() -> None:
    a, b = linked()
    first = a.ask("fix it")
    a.run(first, "s1")
    a.answer(first, "look at the file")
    await turned()
    home = Home(ENGINE, 100)
    assert [b.sharing.look(first.conversation) for _ in range(2)] == [home, home]
    assert b.sharing.home(first.conversation) == home
    assert b.sharing.look(first.conversation) is None


class TestInAProxy:
    """A conversation that was answered here and, as far as anybody told, elsewhere since."""

    async def left_elsewhere(self, proxy: Any) -> Any:
        """The body of its next request."""
        index = SharedIndex(keep=lambda _: None, first_handle=0, secret=7)
        proxy.gateway.sharing = TurnSharing(
            index=index, host=proxy.gateway.host, follower=None, settle_s=0.0
        )
        answered = await proxy.chat("fix it")
        conversation = ConversationId(answered.headers["x-agentsched-conversation"])
        proxy.gateway.sharing._homes[conversation] = Home(ENGINE, 7)
        said = answered.json()["choices"][0]["message"]
        messages = [{"role": "user", "content": "fix it"}, said, {"role": "user", "content": "go"}]
        return {"model": "m", "messages": messages}

    async def test_a_plan_takes_nothing(self, proxy: Any) -> None:
        body = await self.left_elsewhere(proxy)
        sharing = proxy.gateway.sharing
        plan = "/agentsched/v1/plan/v1/chat/completions"
        shown = [(await proxy.client.post(plan, json=body)).json() for _ in range(2)]
        assert shown[0] == shown[1]
        assert sharing.look(ConversationId(shown[0]["conversation"])) == Home(ENGINE, 7)
        assert (await proxy.client.post("/v1/chat/completions", json=body)).status_code == 200
        arrived = proxy.turns.events(StepArrived)[-1]
        assert (arrived.home, arrived.home_tokens) == (ENGINE, 7)
        assert sharing.look(arrived.conversation) is None

    async def test_nor_does_a_no_at_the_door(self, upstream: Upstream, start: Any) -> None:
        depth = {"admit": {"name": "depth", "params": {"depth": 1}}}
        limits = {"ready_steps_max": 1}
        async with start(upstream.url, profile="fcfs", policies=depth, limits=limits) as proxy:
            body = await self.left_elsewhere(proxy)
            gate = upstream.script = Gate(chunk("hel"))
            others = [asyncio.create_task(proxy.chat(str(n), stream=True)) for n in range(2)]
            await proxy.turns.until(lambda: proxy.scheduler.statistics().waiting_steps == 1)
            refused = await proxy.client.post("/v1/chat/completions", json=body)
            assert refused.status_code == 429
            gate.open.set()
            await asyncio.gather(*others)
            upstream.script = answer
            again = await proxy.client.post("/v1/chat/completions", json=body)
            assert again.status_code == 200
            homes = [(e.home, e.home_tokens) for e in proxy.turns.events(StepArrived)[-2:]]
            assert homes == [(ENGINE, 7), (ENGINE, 7)]
            assert not proxy.gateway.sharing._homes


async def test_whoever_goes_on_elsewhere_is_awaited_here_no_more_though_its_cache_is_gone() -> None:
    """Nothing lies here that two would count; but its silence here would be taken for its end."""
    a, b = linked()
    first = a.ask("fix it")
    a.run(first, "s1")
    a.answer(first, "look at the file")
    await turned()
    a.host.feed(EngineLost(engine=ENGINE, reason="crash"))
    talk = a.host.scheduler.programs[first.program].conversations[first.conversation]
    assert not talk.is_resident
    assert talk.paused_at is not None
    second = b.ask("fix it", "look at the file", "done")
    b.run(second, "s2")
    b.answer(second, "now run it")
    await turned()
    left = [e.event for e in a.entries if isinstance(e.event, ContinuedElsewhere)]
    assert [event.conversation for event in left] == [first.conversation]
    assert talk.paused_at is None


async def test_what_is_told_of_what_runs_here_is_old() -> None:
    a, b = linked()
    first = a.ask("fix it")
    a.answer(first, "look at the file")
    await turned()
    second = b.ask("fix it", "look at the file", "done")
    b.run(second, "s2", to_end=False)
    b.sharing.home(first.conversation)
    a.sharing.tell(next(iter(a.index._programs.values())).turns[0])
    await turned()
    assert b.sharing.home(first.conversation) is None
    assert not [e for e in b.entries if isinstance(e.event, ContinuedElsewhere)]


async def test_a_replica_that_died_leaves_its_open_turns_to_be_asked_again() -> None:
    a, b = linked()
    first = a.ask("fix it")
    await turned()
    b.sharing.gone("a")
    again = b.ask("fix it")
    assert again.is_retry
    assert again.conversation == first.conversation


async def test_the_store_repairs_what_the_bus_lost() -> None:
    a = Replica("a")
    told = []
    a.index.tell_with(told.append)
    first = a.ask("fix it")
    a.answer(first, "look at the file")
    rows = [(0, encode_turn(turn)[2]) for turn in told]
    store = Pages(rows[:1] * 70, rows, [])
    b = Replica("b", store=store)
    waiting = asyncio.create_task(b.settle("fix it", "look at the file", "done"))
    b.wire.others = ["a"]
    async with b.sharing.following():
        await waiting
        assert b.ask("fix it", "look at the file", "done").program == first.program
    assert b.sharing.counts["followed"] == 70 + len(rows)
    assert store.is_closed


async def test_a_store_that_does_not_answer_stops_no_start() -> None:
    store = Pages(AgentschedError("it is away"))
    b = Replica("b", store=store)
    async with b.sharing.following():
        assert b.sharing.counts["followed"] == 0
    assert store.is_closed


async def test_without_a_store_there_is_nothing_to_follow() -> None:
    b = Replica("b")
    await b.sharing.catch_up()
    async with b.sharing.following():
        assert b.sharing.counts["followed"] == 0


async def test_its_metrics() -> None:
    a, _ = linked()
    a.ask("fix it")
    await turned()
    registry = CollectorRegistry()
    registry.register(a.sharing)
    text = generate_latest(registry).decode()
    assert 'agentsched_shared_turns_total{outcome="told"} 1.0' in text
    assert 'agentsched_orphan_requests_total{outcome="met"} 0.0' in text
