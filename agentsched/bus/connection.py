"""One lasting connection to a broker: comes back by itself, never blocks, bounded both ways."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

_OUT_MAX: Final = 4_096
_IN_MAX: Final = 4_096
_BACK_OFF_S: Final = (0.2, 30.0)
#: A connection that held for so long forgets the failures before it.
_SETTLED_S: Final = 10.0
_TIMEOUT_S: Final = 5.0
#: Reason codes from here on are failures.
_REFUSED: Final = 0x80
_KEEPALIVE_S: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where the broker is and how to get in."""

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One message to be published. `expiry_s` after which a broker may throw it away."""

    topic: str
    payload: bytes
    qos: int = 0
    is_retained: bool = False
    expiry_s: int | None = None
    content_type: str = "application/json"


class Connection:
    """Publishes letters and hears topics, for as long as it runs.

    Of two letters for one topic the newer one is sent: what goes out are states. While the broker
    is away they wait, so many at most; the oldest goes first. `hear` is called on the loop for
    each message; `on_up` gives what is said at each (re)connect, `on_down` is told of each loss.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        name: str,
        subscriptions: Mapping[str, int],
        hear: Callable[[str, bytes], None],
        on_up: Callable[[], list[Letter]],
        on_down: Callable[[], None],
        will: Letter | None = None,
    ) -> None:
        self._broker = broker
        self._name = name
        self._subscriptions = dict(subscriptions)
        self._hear = hear
        self._on_up = on_up
        self._on_down = on_down
        self._will = will
        self._random = random.Random(name)
        self._letters: OrderedDict[str, Letter] = OrderedDict()
        self._has_letters = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._failures = 0
        #: What was logged last of a broker that is away, so that only what is new gets a line.
        self._said = ""
        #: Set while the broker is there.
        self.is_up = asyncio.Event()
        #: Messages by what became of them, and connections.
        self.counts: Counter[str] = Counter()

    def publish(self, letter: Letter) -> None:
        """Send it when the broker is there. Never blocks."""
        self._letters.pop(letter.topic, None)
        self._letters[letter.topic] = letter
        if len(self._letters) > _OUT_MAX:
            self._letters.popitem(last=False)
            self.counts["dropped"] += 1
        self._is_empty.clear()
        self._has_letters.set()

    async def run(self) -> None:
        """Until it is cancelled; no failure of the broker ends it."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._live()
            except (aiomqtt.MqttError, OSError, TimeoutError) as error:
                # One that takes a connection and drops it must not be knocked at for ever.
                has_held = self.is_up.is_set() and clock() - began >= _SETTLED_S
                self._failures = 0 if has_held else self._failures + 1
                self.counts["away"] += 1
                self._say_away(str(error) or type(error).__name__)
            finally:
                if self.is_up.is_set():
                    self.is_up.clear()
                    self._on_down()
            low, high = _BACK_OFF_S
            # Replicas that lost one broker must not all knock at once.
            wait = min(high, low * 2 ** min(self._failures, 10)) * (0.5 + self._random.random())
            await asyncio.sleep(wait)

    def _say_away(self, reason: str) -> None:
        """Once for each reason until it is there again: a broker may be away for days."""
        if self.is_up.is_set():
            self._said = ""
        if reason == self._said:
            return
        self._said = reason
        where = f"{self._broker.host}:{self._broker.port}"
        log.warning("the bus is away: %s: %s; this replica decides alone", where, reason)

    async def _live(self) -> None:
        client = aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            username=self._broker.username,
            password=self._broker.password,
            tls_context=self._broker.tls,
            identifier=f"agentsched-{self._name}",
            protocol=aiomqtt.ProtocolVersion.V5,
            will=_will(self._will),
            timeout=_TIMEOUT_S,
            keepalive=_KEEPALIVE_S,
            max_queued_incoming_messages=_IN_MAX,
        )
        async with client:
            self.counts["connected"] += 1
            answers = await client.subscribe(list(self._subscriptions.items()))
            if any(_is_refusal(answer) for answer in answers):
                # Deaf, it would be up and decide alone, and nobody would know.
                raise aiomqtt.MqttError(f"no subscription: {', '.join(map(str, answers))}")
            for letter in self._on_up():
                self.publish(letter)
            self.is_up.set()
            log.info("the bus is there: %s:%s", self._broker.host, self._broker.port)
            tasks = {
                asyncio.create_task(self._read(client), name="bus in"),
                asyncio.create_task(self._write(client), name="bus out"),
            }
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload: object = message.payload
            self.counts["heard"] += 1
            if not isinstance(payload, bytes):
                self.counts["foreign"] += 1
                continue
            try:
                self._hear(str(message.topic), payload)
            except Exception:
                # One bad message must not take the connection down with it.
                self.counts["failed"] += 1
                log.exception("a message on %s could not be taken in", message.topic)

    async def _write(self, client: aiomqtt.Client) -> None:
        while True:
            await self._has_letters.wait()
            while self._letters:
                topic, letter = self._letters.popitem(last=False)
                try:
                    await client.publish(
                        topic,
                        letter.payload,
                        qos=letter.qos,
                        retain=letter.is_retained,
                        properties=_properties(letter),
                    )
                except ValueError as error:
                    # No broker would ever take it.
                    self.counts["dropped"] += 1
                    log.warning("a message cannot be sent (%s): %s", error, topic[:128])
                    continue
                except BaseException:
                    self._letters.setdefault(topic, letter)
                    self._letters.move_to_end(topic, last=False)
                    raise
                self.counts["sent"] += 1
            self._has_letters.clear()
            self._is_empty.set()

    async def farewell(self, letter: Letter) -> None:
        """Send a last letter, if the broker is there to take it, before `run` is cancelled."""
        if not self.is_up.is_set():
            return
        self.publish(letter)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._is_empty.wait()


def _is_refusal(answer: ReasonCode | int) -> bool:
    return (answer if isinstance(answer, int) else answer.value) >= _REFUSED


def _properties(letter: Letter) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = letter.content_type
    properties.UserProperty = ("agentsched-schema", "1")
    if letter.expiry_s is not None:
        properties.MessageExpiryInterval = letter.expiry_s
    return properties


def _will(letter: Letter | None) -> aiomqtt.Will | None:
    if letter is None:
        return None
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
    if letter.expiry_s is not None:
        properties.MessageExpiryInterval = letter.expiry_s
    return aiomqtt.Will(letter.topic, letter.payload, letter.qos, letter.is_retained, properties)
