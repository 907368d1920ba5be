"""Replicas that say nothing any more, and those that have nothing to say. No broker is needed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from live import eventually

from agentsched.bus.connection import Broker
from agentsched.bus.messages import EngineMessage, ReplicaMessage, write_message
from agentsched.bus.service import Bus, Wiring
from agentsched.bus.telling import Served, State
from agentsched.bus.topics import EngineTopic, ReplicaTopic, Topic, write_topic
from agentsched.model import EngineId, Event, Instant, PeerReported, TenantId, seconds

E = EngineId("e")
HELD = EngineMessage(running_steps=1, resident_tokens=100)


@dataclass
class Replica:
    """One end of a bus whose broker is the test."""

    state: State = field(default_factory=State)
    now_s: float = 0.0
    events: list[Event] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    bus: Bus = field(init=False)

    def __post_init__(self) -> None:
        wiring = Wiring(
            now=lambda: Instant(seconds(self.now_s)),
            feed=self.events.append,
            state=lambda: self.state,
            tool=lambda topic, said: "accepted",
            gone=self.gone.append,
        )
        self.bus = Bus(Broker(host="nobody"), wiring, cluster="c", replica="one")

    def hear(self, topic: Topic, said: EngineMessage | ReplicaMessage) -> None:
        self.bus._hear(write_topic("c", topic), write_message(said))

    def told(self) -> list[str]:
        """What waits to be sent, once."""
        letters = list(self.bus.connection._letters)
        self.bus.connection._letters.clear()
        return letters


@contextlib.asynccontextmanager
async def telling(bus: Bus) -> AsyncIterator[None]:
    """As while the broker is there."""
    bus.connection.is_up.set()
    task = asyncio.create_task(bus._tell())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def up(epoch: str, connections: int = 1) -> ReplicaMessage:
    return ReplicaMessage(state="up", epoch=epoch, connections=connections)


async def test_who_says_nothing_any_more_has_nobody_who_listens() -> None:
    """As where it died together with its broker, which has but its first word left."""
    one = Replica()
    one.hear(ReplicaTopic("two"), up("1"))
    one.hear(EngineTopic(E, "two"), HELD)
    assert list(one.bus.others) == ["two"]
    async with telling(one.bus):
        one.now_s = 11
        await eventually(lambda: not one.bus.others)
    assert one.gone == ["two"]  # what it served may be asked for again here
    assert one.bus.neighbours().gone == {"two": seconds(11)}
    assert one.events[-1] == PeerReported(engine=E, peer="two", running_steps=0, resident_tokens=0)
    # It was slow, and lives.
    one.hear(EngineTopic(E, "two"), HELD)
    assert list(one.bus.others) == ["two"]
    assert not one.bus.neighbours().gone


async def test_one_without_an_engine_is_no_dead_one() -> None:
    one = Replica()
    here = "agentsched/c/replicas/one"
    async with telling(one.bus):
        await eventually(lambda: here in one.bus.connection._letters)
    at = one.bus._said_at
    one.told()
    one.bus._beat(at=at + 2)
    assert one.told() == []
    one.bus._beat(at=at + 3)
    assert one.told() == [here]
    one.state = State(engines={E: HELD})  # whoever says that is heard, and need not say it twice
    for later in range(4, 20):
        one.bus._beat(at=at + later)
        assert here not in one.told()


def test_who_says_again_that_it_is_there_has_heard_us_already() -> None:
    one = Replica(state=State(engines={E: HELD}))
    here = "agentsched/c/engines/e/one"

    def tells(at: float) -> bool:
        one.bus._beat(at=at)
        return here in one.told()

    assert tells(0)
    one.hear(ReplicaTopic("two"), up("1"))
    assert tells(0.5)
    one.hear(ReplicaTopic("two"), up("1"))
    assert not tells(1)
    one.hear(ReplicaTopic("two"), up("2"))  # it began anew
    assert tells(1.5)
    one.hear(ReplicaTopic("two"), ReplicaMessage(state="gone", epoch="2"))
    one.hear(ReplicaTopic("two"), up("2"))  # it was away, and did not hear what we told
    assert tells(2)


def test_who_was_away_for_a_moment_is_told_of_idle_tenants_again() -> None:
    """Its broker knew it again before anybody could say that it was gone."""
    one = Replica(state=State(tenants={TenantId("t"): Served(uncached_tokens=9)}))
    here = "agentsched/c/tenants/t/one"

    def tells(at: float) -> bool:
        one.bus._beat(at=at)
        return here in one.told()

    one.hear(ReplicaTopic("two"), up("1"))
    assert tells(0)
    assert not tells(30), "an idle tenant is nobody's news"
    one.hear(ReplicaTopic("two"), up("1", connections=2))
    assert tells(30.5)
    one.hear(ReplicaTopic("two"), up("1", connections=2))
    assert not tells(31)


def test_each_connection_is_told_as_one() -> None:
    """Nothing but its number tells others that what was heard before is forgotten."""
    one, two = Replica(), Replica()
    for number in range(1, 4):
        [letter] = two.bus._introduce()
        assert ReplicaMessage.model_validate_json(letter.payload).connections == number
        one.bus._hear(write_topic("c", ReplicaTopic("two")), letter.payload)
        assert one.bus.peers._peers["two"].life == (two.bus._epoch, number)
