"""Live pins: who holds them, when they expire, and the budget of each engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentsched.kernel.alarms import Alarms
from agentsched.model import ConversationId, EngineId, Instant, Pin, PinId


class PinLedger:
    """All pins that were granted and not yet ended.

    Each pin leaves exactly once, through `release`. A conversation holds at most one pin.
    """

    def __init__(self, *, pins_per_engine_max: int, tokens_per_engine_max: int) -> None:
        self._pins_max = pins_per_engine_max
        self._tokens_max = tokens_per_engine_max
        #: All and only live pins, oldest first.
        self._pins: dict[PinId, Pin] = {}
        self._by_conversation: dict[ConversationId, PinId] = {}
        self._by_engine: dict[EngineId, dict[PinId, Pin]] = {}
        self._tokens: dict[EngineId, int] = {}
        #: When each live pin expires: as granted, or earlier where its engine said so.
        self._expiry: Alarms[PinId] = Alarms()

    def __len__(self) -> int:
        return len(self._pins)

    def __iter__(self) -> Iterator[Pin]:
        return iter(self._pins.values())

    def of_conversation(self, conversation: ConversationId) -> Pin | None:
        """The conversation's pin, where it holds one."""
        pin = self._by_conversation.get(conversation)
        return self._pins[pin] if pin is not None else None

    def on_engine(self, engine: EngineId) -> tuple[Pin, ...]:
        """Pins on an engine, oldest first."""
        return tuple(self._by_engine.get(engine, {}).values())

    def tokens(self, engine: EngineId) -> int:
        """Tokens pinned on an engine."""
        return self._tokens.get(engine, 0)

    def room_for(self, pin: Pin) -> tuple[Pin, ...] | None:
        """Pins that must go for `pin` to fit its engine's budget, least value first.

        None when it cannot or should not fit: it alone exceeds the budget, or only dearer pins
        could make room.
        """
        if pin.prefix.tokens > self._tokens_max:
            return None
        held = self._by_engine.get(pin.engine, {})
        count, tokens = len(held), self.tokens(pin.engine)
        if count < self._pins_max and tokens + pin.prefix.tokens <= self._tokens_max:
            return ()
        victims: list[Pin] = []
        cheapest = sorted(held.values(), key=lambda p: (p.value, p.expires_at, p.pin))
        for victim in cheapest:
            if count < self._pins_max and tokens + pin.prefix.tokens <= self._tokens_max:
                break
            if victim.value > pin.value:
                return None
            victims.append(victim)
            count -= 1
            tokens -= victim.prefix.tokens
        return tuple(victims)

    def hold(self, pin: Pin) -> None:
        """Enter a pin that fits (see `room_for`) into the books."""
        assert pin.pin not in self._pins
        assert pin.conversation not in self._by_conversation
        self._pins[pin.pin] = pin
        self._by_conversation[pin.conversation] = pin.pin
        self._by_engine.setdefault(pin.engine, {})[pin.pin] = pin
        self._tokens[pin.engine] = self.tokens(pin.engine) + pin.prefix.tokens
        self._expiry.set(pin.pin, pin.expires_at)

    def release(self, pin: PinId) -> Pin | None:
        """End a pin; None when it has ended already."""
        held = self._pins.pop(pin, None)
        if held is None:
            return None
        del self._by_conversation[held.conversation]
        del self._by_engine[held.engine][pin]
        self._tokens[held.engine] -= held.prefix.tokens
        self._expiry.cancel(pin)
        return held

    def get(self, pin: PinId) -> Pin | None:
        """The pin while it is held."""
        return self._pins.get(pin)

    def reschedule(self, pin: PinId, *, expires_at: Instant) -> None:
        """Let a held pin expire earlier, as the engine wants it."""
        assert pin in self._pins
        self._expiry.set(pin, expires_at)

    def expired(self, *, now: Instant) -> tuple[Pin, ...]:
        """Pins whose time has come, earliest first, each told once: release them."""
        return tuple(self._pins[pin] for pin in self._expiry.ring(now=now))

    def earliest(self) -> Instant | None:
        """When the next pin expires."""
        return self._expiry.earliest()

    def check(self) -> None:
        """Assert that the books agree with each other and with the budgets."""
        assert set(self._by_conversation.values()) == set(self._pins)
        assert len(self._expiry) == len(self._pins)
        by_engine: Mapping[EngineId, dict[PinId, Pin]] = self._by_engine
        assert sum(len(pins) for pins in by_engine.values()) == len(self._pins)
        for engine, pins in by_engine.items():
            assert self.tokens(engine) == sum(p.prefix.tokens for p in pins.values())
            assert self.tokens(engine) <= self._tokens_max
            assert len(pins) <= self._pins_max
