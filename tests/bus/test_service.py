"""The bus over a real mosquitto: replicas hear each other, and a broker may come and go."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiomqtt
import pytest
from live import eventually

from agentsched.bus.connection import Broker
from agentsched.bus.messages import EngineMessage, ToolMessage
from agentsched.bus.service import Bus, Wiring
from agentsched.bus.telling import Served, State
from agentsched.bus.topics import ToolTopic
from agentsched.clock import MonotonicClock
from agentsched.model import EngineId, Event, PeerReported, ServedElsewhere, TenantId
from agentsched_bench.services.mosquitto import LocalMosquitto

pytestmark = pytest.mark.services

E, T = EngineId("e"), TenantId("team/a")


@dataclass
class Replica:
    """One end of the bus with nothing behind it."""

    name: str
    running: int = 0
    tokens: int = 0
    served: int = 0
    events: list[Event] = field(default_factory=list)
    tools: list[tuple[ToolTopic, ToolMessage]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    bus: Bus | None = None

    def state(self) -> State:
        held = EngineMessage(running_steps=self.running, resident_tokens=self.tokens)
        return State(engines={E: held}, tenants={T: Served(uncached_tokens=self.served)})

    def feed(self, event: Event) -> None:
        self.events.append(event)
        self.changed.set()

    def tool(self, topic: ToolTopic, said: ToolMessage) -> str:
        self.tools.append((topic, said))
        self.changed.set()
        return "accepted"

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def latest(self, peer: str) -> int | None:
        said = [e for e in self.events if isinstance(e, PeerReported) and e.peer == peer]
        return said[-1].resident_tokens if said else None

    def charged(self) -> int:
        return sum(e.uncached_tokens for e in self.events if isinstance(e, ServedElsewhere))

    @contextlib.asynccontextmanager
    async def on(self, broker: Broker) -> AsyncIterator[Bus]:
        wiring = Wiring(now=MonotonicClock().now, feed=self.feed, state=self.state, tool=self.tool)
        async with Bus(broker, wiring, cluster="c", replica=self.name).running() as bus:
            self.bus = bus
            async with asyncio.timeout(60):
                await bus.connection.is_up.wait()
            yield bus


def at(broker: LocalMosquitto) -> Broker:
    return Broker(host="127.0.0.1", port=broker.port)


async def test_replicas_hear_what_others_hold_and_serve(broker: LocalMosquitto) -> None:
    one, two = Replica("one", running=2, tokens=700), Replica("two")
    async with one.on(at(broker)), two.on(at(broker)):
        await two.until(lambda: two.latest("one") == 700)
        assert two.bus is not None
        async with asyncio.timeout(60):  # what one served before they met is heard, and not charged
            while "one" not in two.bus.peers.names_of(T):  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)
        one.tokens, one.served = 900, 50
        await two.until(lambda: two.latest("one") == 900 and two.charged() == 50)
        assert not one.charged()  # nobody hears an echo of what it served itself
    assert not two.bus.counts["malformed"]


async def test_one_that_leaves_and_one_that_dies_hold_nothing(broker: LocalMosquitto) -> None:
    one, two, three = (Replica(n, running=1, tokens=100) for n in ("one", "two", "three"))
    async with one.on(at(broker)):
        async with two.on(at(broker)):
            await one.until(lambda: one.latest("two") == 100)
        await one.until(lambda: one.latest("two") == 0)
        assert one.bus is not None
        assert one.bus.neighbours().is_connected
        assert not one.bus.neighbours().others
        async with relay(broker) as (port, cut), three.on(Broker(host="127.0.0.1", port=port)):
            await one.until(lambda: one.latest("three") == 100)
            # Its connection breaks without a goodbye: the broker speaks its last will.
            assert one.bus.neighbours().others == ("three",)
            cut()
            await one.until(lambda: one.latest("three") == 0)
            assert list(one.bus.neighbours().gone) == ["two", "three"]


@contextlib.asynccontextmanager
async def relay(broker: LocalMosquitto) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """A way to the broker, and what breaks all connections that go by it for good."""
    open_now: list[asyncio.StreamWriter] = []
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", broker.port)
        open_now.extend((writer, outer))
        tasks.add(asyncio.ensure_future(copy(reader, outer)))
        tasks.add(asyncio.ensure_future(copy(inner, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)

    def cut() -> None:
        server.close()
        for writer in open_now:
            writer.transport.abort()

    try:
        yield server.sockets[0].getsockname()[1], cut
    finally:
        cut()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_stranger_can_tell_what_a_message_is_and_until_when(
    broker: LocalMosquitto,
) -> None:
    """What MQTT 5 has for it: content type, user property, expiry, retention of presence."""
    heard: dict[str, aiomqtt.Message] = {}
    async with aiomqtt.Client(
        "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5
    ) as stranger:
        await stranger.subscribe("agentsched/c/#", qos=1)
        async with Replica("one", running=1).on(at(broker)), asyncio.timeout(60):
            async for message in stranger.messages:
                heard[message.topic.value.split("/")[2]] = message
                if {"engines", "replicas"} <= heard.keys():
                    break
    for message in heard.values():
        assert message.properties is not None
        assert message.properties.ContentType == "application/json"
        assert message.properties.UserProperty == [("agentsched-schema", "1")]
    assert 0 < heard["engines"].properties.MessageExpiryInterval <= 10
    async with (
        aiomqtt.Client("127.0.0.1", broker.port) as late,
        asyncio.timeout(60),
    ):
        await late.subscribe("agentsched/c/#", qos=1)
        message = await anext(aiter(late.messages))
        assert message.retain
        assert message.topic.value == "agentsched/c/replicas/one"


async def test_tools_come_from_anybody_who_may_publish(broker: LocalMosquitto) -> None:
    hearer = Replica("one")
    async with (
        hearer.on(at(broker)) as bus,
        aiomqtt.Client("127.0.0.1", broker.port) as runner,
    ):
        base = "agentsched/c/tools/team%2Fa/call-1"
        await runner.publish(f"{base}/started", json.dumps({"tool": "bash", "expected_s": 3}), 1)
        await runner.publish(f"{base}/finished", json.dumps({"took_s": 2.5}), 1)
        await runner.publish(f"{base}/finished", b"{nonsense", 1)
        await runner.publish("agentsched/c/tools/p/c/exploded", b"{}", 1)
        await runner.publish(f"{base}/progress", b"", 1)
        await hearer.until(lambda: len(hearer.tools) == 3)
        assert [topic.verb for topic, _ in hearer.tools] == ["started", "finished", "progress"]
        assert hearer.tools[0] == (
            ToolTopic("team/a", "call-1", "started"),
            ToolMessage(tool="bash", expected_s=3),
        )
        assert bus.counts["malformed"] == 1
        assert bus.counts["foreign"] == 1
        assert bus.counts["tool_accepted"] == 3


async def test_a_broker_that_dies_and_comes_back(broker: LocalMosquitto) -> None:
    one, two = Replica("one", running=1, tokens=100), Replica("two", running=1, tokens=50)
    async with one.on(at(broker)) as bus, two.on(at(broker)):
        await one.until(lambda: one.latest("two") == 50)
        await two.until(lambda: two.latest("one") == 100)
        broker.kill()
        # Alone: what the others hold is not known, so it does not count.
        await one.until(lambda: one.latest("two") == 0)
        assert not bus.connection.is_up.is_set()
        two.tokens, two.served = 70, 30
        broker.start()
        await one.until(lambda: one.latest("two") == 70)
        await two.until(lambda: two.latest("one") == 100)
        assert bus.connection.counts["connected"] == 2


async def test_no_broker_at_the_start() -> None:
    with LocalMosquitto() as found:
        port = found.port
    alone = Replica("one", running=1)
    wiring = Wiring(now=MonotonicClock().now, feed=alone.feed, state=alone.state, tool=alone.tool)
    bus = Bus(Broker(host="127.0.0.1", port=port), wiring, cluster="c", replica="one")
    async with bus.running():
        assert not bus.connection.is_up.is_set()
    assert not alone.events


async def test_a_password_is_asked_for() -> None:
    settings = ("allow_anonymous false",)
    replica = Replica("one")
    with LocalMosquitto(settings=settings) as closed:
        wiring = Wiring(
            now=MonotonicClock().now, feed=replica.feed, state=replica.state, tool=replica.tool
        )
        bus = Bus(at(closed), wiring, cluster="c", replica="one")
        async with bus.running(), asyncio.timeout(60):
            while not bus.connection.counts["away"]:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0)
            assert not bus.connection.counts["connected"]


async def test_two_of_one_name_are_told_what_is_wrong(
    broker: LocalMosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker keeps the later of two, so each ends the other's connection, again and again."""
    said = "another process is on the bus as same"
    async with Replica("same").on(at(broker)):
        pass
    async with Replica("same").on(at(broker)) as bus:
        await eventually(lambda: bus._is_known)
        assert said not in caplog.text  # that was an earlier life
        async with Replica("same").on(at(broker)):
            await eventually(lambda: said in caplog.text)


async def test_what_is_said_of_one_that_is_gone_does_not_stay_for_ever(
    broker: LocalMosquitto,
) -> None:
    """Names may never come back, as those of Kubernetes' pods; all who come would be told them."""
    async with Replica("polite").on(at(broker)):
        pass
    async with (
        relay(broker) as (port, cut),
        Replica("dead").on(Broker(host="127.0.0.1", port=port)) as bus,
    ):
        cut()
        await eventually(lambda: not bus.connection.is_up.is_set())
    left: dict[str, aiomqtt.Message] = {}
    async with (
        aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as late,
        asyncio.timeout(60),
    ):
        await late.subscribe("agentsched/c/replicas/+", qos=1)
        async for message in late.messages:
            left[message.topic.value.rpartition("/")[2]] = message
            if left.keys() == {"polite", "dead"}:
                break
    for message in left.values():
        assert json.loads(message.payload)["state"] == "gone"
        assert message.retain
        assert message.properties is not None
        assert 0 < message.properties.MessageExpiryInterval <= 3_600
