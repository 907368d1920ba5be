"""Two real proxies with one PostgreSQL and one broker: a conversation goes on wherever it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from live import eventually, replica, small_engine

from agentsched.proxy.gateway import Gateway
from agentsched.proxy.sharing import TurnSharing
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.services.mosquitto import LocalMosquitto
from agentsched_bench.services.postgres import LocalPostgres

pytestmark = [pytest.mark.services, pytest.mark.slow]


@pytest.fixture(scope="module")
def postgres() -> Iterator[LocalPostgres]:
    with LocalPostgres() as started:
        yield started


@pytest.fixture
def broker() -> Iterator[LocalMosquitto]:
    with LocalMosquitto() as started:
        yield started


@contextlib.asynccontextmanager
async def sharer(
    name: str, *, engines: list[str], store: str, broker: LocalMosquitto | None
) -> AsyncIterator[tuple[Gateway, str]]:
    bus = None if broker is None else {"url": broker.url, "settle": "2s"}
    kept = {"url": store, "replica": name}
    async with replica(name, *engines, bus=bus, profile="agentsched", store=kept) as (one, url, _):
        yield one, url


@contextlib.asynccontextmanager
async def engines() -> AsyncIterator[list[str]]:
    config = ServerConfig(engine=small_engine(blocks=1_025), models=("sim",), speed=100)
    async with running_engine(config) as first, running_engine(config) as second:
        yield [first.url, second.url]


class Agent:
    """One conversation without any id, a turn here and a turn there."""

    def __init__(self, task: str) -> None:
        self.messages: list[dict[str, str]] = [{"role": "user", "content": task}]
        self.programs: list[str] = []
        self.steps: list[int] = []
        self.engines: list[str] = []
        self.decisions: list[str] = []

    async def turn(self, url: str) -> None:
        body = {"model": "sim", "messages": self.messages, "max_tokens": 12}
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        said = answer.json()["choices"][0]["message"]["content"]
        self.messages.append({"role": "assistant", "content": said})
        self.messages.append({"role": "user", "content": f"result {len(self.messages)}"})
        self.programs.append(answer.headers["x-agentsched-program"])
        self.steps.append(int(answer.headers["x-agentsched-step"]))
        self.engines.append(answer.headers["x-agentsched-engine"])
        self.decisions.append(answer.headers["x-agentsched-decision"])


def counts(gateway: Gateway) -> Any:
    sharing = gateway.sharing
    assert isinstance(sharing, TurnSharing)
    return sharing.counts


async def test_turns_alternate_between_replicas(
    postgres: LocalPostgres, broker: LocalMosquitto
) -> None:
    store = postgres.create("alternate")
    async with (
        engines() as urls,
        sharer("a", engines=urls, store=store, broker=broker) as (one, first),
        sharer("b", engines=urls, store=store, broker=broker) as (two, second),
    ):
        sharings = [g.sharing for g in (one, two)]
        await eventually(lambda: all(s is not None and s._bus and s._bus.others for s in sharings))
        agents = [Agent(f"task {number} " + "context " * 400) for number in range(6)]
        for step in range(6):
            # No pause: the next request races with the word of the last one.
            await asyncio.gather(*(a.turn((first, second)[step % 2]) for a in agents))
        for agent in agents:
            assert len(set(agent.programs)) == 1, agent.decisions
            assert agent.steps == [1, 2, 3, 4, 5, 6]
            assert len(set(agent.engines)) == 1, agent.engines
        assert len({agent.programs[0] for agent in agents}) == 6
        # What is resident is counted once, by whoever served it last.
        held = [
            sum(
                c.is_resident
                for p in g.host.scheduler.programs.values()
                for c in p.conversations.values()
            )
            for g in (one, two)
        ]
        await eventually(lambda: counts(one)["heard"] > 0)
        assert held[1] == 6
        one.host.scheduler.check()
        two.host.scheduler.check()


async def test_a_replica_that_starts_later_knows_what_others_did(
    postgres: LocalPostgres, broker: LocalMosquitto
) -> None:
    store = postgres.create("later")
    async with engines() as urls:
        agent = Agent("one task")
        async with sharer("a", engines=urls, store=store, broker=broker) as (one, first):
            await agent.turn(first)
            await agent.turn(first)
            memory = one.sharing
            assert memory is not None
            await eventually(
                lambda: postgres.sql("SELECT count(*) FROM turns", database="later") > "1"
            )
            async with sharer("b", engines=urls, store=store, broker=broker) as (two, second):
                assert counts(two)["followed"] >= 2
                await agent.turn(second)
                assert len(set(agent.programs)) == 1
                assert agent.steps == [1, 2, 3]


async def test_without_a_broker_the_store_tells(postgres: LocalPostgres) -> None:
    store = postgres.create("alone")
    async with (
        engines() as urls,
        sharer("a", engines=urls, store=store, broker=None) as (_, first),
        sharer("b", engines=urls, store=store, broker=None) as (two, second),
    ):
        agent = Agent("one task")
        await agent.turn(first)
        await eventually(lambda: counts(two)["followed"] >= 1 and len(two.index) >= 1)
        assert two.sharing is not None
        await eventually(lambda: postgres.sql("SELECT count(*) FROM turns", database="alone") > "0")
        await two.sharing.catch_up()
        await agent.turn(second)
        assert len(set(agent.programs)) == 1, agent.decisions


async def test_another_secret_or_version_is_not_believed(
    postgres: LocalPostgres, broker: LocalMosquitto
) -> None:
    store = postgres.create("foreign")
    async with (
        engines() as urls,
        sharer("a", engines=urls, store=store, broker=broker) as (one, _),
    ):
        sharing = one.sharing
        assert sharing is not None
        sharing.hear("b", b"\x93\x01\xc4\x08aaaaaaaa\x90")
        sharing.hear("b", b"\x93\x02\xc4\x08aaaaaaaa\x90")
        sharing.hear("b", b"nonsense")
        sharing.hear("b", b"\x93" * (1 << 21))
        assert counts(one)["foreign"] == 1
        assert counts(one)["malformed"] == 3
