"""The bus of one proxy: what is heard becomes events, what it holds is told to the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agentsched.bus.connection import Broker, Connection, Letter
from agentsched.bus.messages import (
    EngineMessage,
    ReplicaMessage,
    TenantMessage,
    ToolMessage,
    read_message,
    write_message,
)
from agentsched.bus.peers import Peers
from agentsched.bus.telling import TELL_AGAIN_S, TELL_EVERY_S, State, Telling
from agentsched.bus.topics import (
    EngineTopic,
    ReplicaTopic,
    TenantTopic,
    ToolTopic,
    TurnsTopic,
    read_topic,
    subscriptions,
    write_topic,
)
from agentsched.model import EngineId, Event, Instant, Nanos, TenantId, seconds
from agentsched.version import __version__

log = logging.getLogger(__name__)

#: A peer that is silent for so long counts as gone.
SILENCE: Final = Nanos(seconds(10))
_STATE_EXPIRY_S: Final = 10
#: That a replica is gone is news for so long; its name may never come back.
_GONE_EXPIRY_S: Final = 3_600
#: Batches of turns that may wait to be sent.
_SLOTS: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What the bus needs of its proxy. All are called on the event loop, and must not block."""

    now: Callable[[], Instant]
    feed: Callable[[Event], None]
    state: Callable[[], State]
    #: Takes a tool's message; says what became of it.
    tool: Callable[[ToolTopic, ToolMessage], str]
    #: Takes what another replica says of its programs; without it, none is asked for.
    turns: Callable[[str, bytes], None] | None = None
    #: Is told which replica is gone.
    gone: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The other replicas, for people. `gone`: lately, and since when; the latest last."""

    is_connected: bool
    others: tuple[str, ...]
    gone: Mapping[str, Instant]


class Bus:
    """Speaks for one replica. `async with bus.running(): ...`"""

    def __init__(
        self, broker: Broker, wiring: Wiring, *, cluster: str, replica: str, url: str = ""
    ) -> None:
        self.replica = replica
        self._cluster = cluster
        self._url = url
        self._wiring = wiring
        self._epoch = secrets.token_hex(8)
        self.peers = Peers(silence=SILENCE)
        self._telling = Telling(replica=replica, epoch=self._epoch)
        #: Messages heard, by what became of them.
        self.counts: Counter[str] = Counter()
        self._slot = 0
        #: How often the broker was there.
        self._connections = 0
        #: The broker has our word that we are there, in place of an earlier life's.
        self._is_known = False
        #: When this replica told the others anything last, in the loop's seconds.
        self._said_at = -math.inf
        self.connection = Connection(
            broker,
            name=f"{cluster}-{replica}",
            subscriptions=subscriptions(cluster, with_turns=wiring.turns is not None),
            hear=self._hear,
            on_up=self._introduce,
            on_down=self._alone,
            will=self._presence("gone"),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bus]:
        """Connected as well as can be while inside; the others are told of the end."""
        tasks = [
            asyncio.create_task(self.connection.run(), name="bus"),
            asyncio.create_task(self._tell(), name="bus states"),
        ]
        try:
            yield self
        finally:
            tasks[1].cancel()
            await self.connection.farewell(self._presence("gone"))
            tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- hearing -----------------------------------------------------------------------------------

    def _hear(self, name: str, payload: bytes) -> None:
        topic = read_topic(self._cluster, name)
        if isinstance(topic, TurnsTopic):
            self._hear_turns(topic, payload)
            return
        message = read_message(topic, payload) if topic is not None else None
        if topic is None or message is None:
            self.counts["malformed" if topic is not None else "foreign"] += 1
            return
        now = self._wiring.now()
        match topic, message:
            case ToolTopic(), ToolMessage():
                self.counts[f"tool_{self._wiring.tool(topic, message)}"] += 1
            case EngineTopic(engine, replica), EngineMessage() if replica != self.replica:
                self._feed(self.peers.engine(replica, EngineId(engine), message, now=now))
            case TenantTopic(tenant, replica), TenantMessage() if replica != self.replica:
                self._feed(self.peers.tenant(replica, TenantId(tenant), message, now=now))
            case ReplicaTopic(replica), ReplicaMessage() if replica != self.replica:
                self._met(replica, message)
            case ReplicaTopic(), ReplicaMessage():
                self._met_itself(message)
            case _:
                self.counts["own"] += 1

    def _hear_turns(self, topic: TurnsTopic, payload: bytes) -> None:
        if topic.replica == self.replica or self._wiring.turns is None:
            self.counts["own"] += 1
            return
        self.counts["turns"] += 1
        self._wiring.turns(topic.replica, payload)

    def _met(self, replica: str, message: ReplicaMessage) -> None:
        self.counts["replica"] += 1
        if message.state == "gone":
            log.info("replica %s is gone", replica)
            self._lose(replica)
        elif self.peers.introduce(
            replica, message.epoch, message.connections, now=self._wiring.now()
        ):
            self._telling.forget()

    def _met_itself(self, message: ReplicaMessage) -> None:
        """What is said under our name: by us, by an earlier life, or by who should have another.

        The broker keeps the later of two connections of a name, so that both come and go for ever.
        """
        self.counts["own"] += 1
        if message.epoch == self._epoch:
            self._is_known = True
        elif self._is_known:
            text = "another process is on the bus as %s: give each replica its own bus.replica"
            log.error(text, self.replica)

    def _lose(self, replica: str) -> None:
        self._feed(self.peers.gone(replica, now=self._wiring.now()))
        self._wiring.gone(replica)

    @property
    def others(self) -> tuple[str, ...]:
        """Replicas that are heard: whoever is not has nobody who listens there."""
        return self.peers.names

    def neighbours(self) -> Neighbours:
        """Who else is there, and who was."""
        return Neighbours(
            is_connected=self.connection.is_up.is_set(),
            others=tuple(sorted(self.peers.names)),
            gone=self.peers.missed(now=self._wiring.now()),
        )

    def _feed(self, events: Iterable[Event]) -> None:
        for event in events:
            self.counts["fed"] += 1
            self._wiring.feed(event)

    def _alone(self) -> None:
        """The broker is away: what the others hold is not known any more."""
        self._telling.forget()
        self._feed(self.peers.lost())  # whoever is there says so again, for that is retained

    # -- telling -----------------------------------------------------------------------------------

    def tell_turns(self, payload: bytes) -> None:
        """Tell the other replicas what is known anew of programs. Never blocks."""
        self._slot = (self._slot + 1) % _SLOTS
        self.connection.publish(
            Letter(
                topic=write_topic(self._cluster, TurnsTopic(self.replica, self._slot)),
                payload=payload,
                expiry_s=_STATE_EXPIRY_S,
                content_type="application/octet-stream",
            )
        )

    def _introduce(self) -> list[Letter]:
        self._connections += 1
        return [self._presence("up")]

    def _presence(self, state: str) -> Letter:
        message = ReplicaMessage.model_validate(
            {
                "state": state,
                "epoch": self._epoch,
                "url": self._url,
                "version": __version__,
                "connections": self._connections,
            }
        )
        return Letter(
            topic=write_topic(self._cluster, ReplicaTopic(self.replica)),
            payload=write_message(message),
            qos=1,
            is_retained=True,
            expiry_s=_GONE_EXPIRY_S if state == "gone" else None,
        )

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.connection.is_up.wait()
            try:
                self._beat(at=loop.time())
            except Exception:
                log.exception("a defect while telling other replicas")
            await asyncio.sleep(TELL_EVERY_S)

    def _beat(self, *, at: float) -> None:
        """Tell what is due, and take leave of whoever says nothing any more."""
        for topic, message in self._telling.due(self._wiring.state(), at=at):
            self._said_at = at
            self.connection.publish(
                Letter(
                    topic=write_topic(self._cluster, topic),
                    payload=write_message(message),
                    expiry_s=_STATE_EXPIRY_S,
                )
            )
        if at - self._said_at >= TELL_AGAIN_S:
            # With no engine up there is nothing to tell: silent, it would be taken for dead.
            self._said_at = at
            self.connection.publish(self._presence("up"))
        now = self._wiring.now()
        for replica in self.peers.silent(now=now):
            log.info("replica %s says nothing any more", replica)
            self._lose(replica)
        self._feed(self.peers.expire(now=now))
