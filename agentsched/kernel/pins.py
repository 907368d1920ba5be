"""Live pins: who holds them, when they expire, and the budget of each engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

from agentsched.kernel.alarms import Alarms
from agentsched.kernel.cheapest import CheapestPins
from agentsched.kernel.residency import Residency
from agentsched.model import ConversationId, EngineId, Instant, Pin, PinId, Prefix, TenantId

_NOBODY: Final = TenantId("")


class PinLedger:
    """All pins that were granted and not yet ended.

    Each pin leaves exactly once, through `release`. A conversation holds at most one pin. Tokens
    of prefixes that pins share count once on their engine, and in full for each tenant's own cap.
    """

    def __init__(
        self,
        *,
        pins_per_engine_max: int,
        tokens_per_engine_max: int,
        tokens_per_tenant_max: int | None = None,
    ) -> None:
        self._pins_max = pins_per_engine_max
        self._tokens_max = tokens_per_engine_max
        self._tenant_max = tokens_per_tenant_max
        #: What an operator set for single tenants.
        self._caps: dict[TenantId, int] = {}
        #: All and only live pins, oldest first.
        self._pins: dict[PinId, Pin] = {}
        self._by_conversation: dict[ConversationId, PinId] = {}
        self._by_engine: dict[EngineId, dict[PinId, Pin]] = {}
        self._cheapest: dict[EngineId, CheapestPins] = {}
        #: Pinned tokens, named by conversation, what is shared counted once.
        self._account = Residency()
        self._tenant_of: dict[PinId, TenantId] = {}
        self._of_tenant: dict[tuple[EngineId, TenantId], int] = {}
        #: When each live pin expires: as granted, or earlier where its engine said so.
        self._expiry: Alarms[PinId] = Alarms()

    def set_bounds(
        self,
        *,
        pins_per_engine_max: int,
        tokens_per_engine_max: int,
        tokens_per_tenant_max: int | None,
    ) -> None:
        """Other budgets from now on; `one_too_many` says what is above them."""
        self._pins_max = pins_per_engine_max
        self._tokens_max = tokens_per_engine_max
        self._tenant_max = tokens_per_tenant_max

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
        """Tokens pinned on an engine, what pins share counted once."""
        return self._account.tokens(engine)

    def tenant_tokens(self, engine: EngineId, tenant: TenantId) -> int:
        """Tokens pinned on an engine for a tenant, each pin in full."""
        return self._of_tenant.get((engine, tenant), 0)

    def of_tenant(self, tenant: TenantId) -> int:
        """How many pins a tenant holds."""
        return sum(1 for owner in self._tenant_of.values() if owner == tenant)

    def cap(self, tenant: TenantId, tokens: int | None) -> None:
        """Set how much of an engine a tenant's pins may take; None for the usual."""
        if tokens is None:
            self._caps.pop(tenant, None)
        else:
            self._caps[tenant] = tokens

    def room_for(
        self, pin: Pin, *, tenant: TenantId = _NOBODY, prefixes: Sequence[Prefix] = ()
    ) -> tuple[Pin, ...] | None:
        """Pins that must go for `pin` to fit its engine's and its tenant's budget.

        Least value first; where the tenant's budget is short, only the tenant's own. None when it
        cannot or should not fit: it alone exceeds a budget, or only dearer pins could make room.
        """
        if pin.prefix.tokens > self._tokens_max:
            return None
        victims: dict[PinId, Pin] = {}
        cap = self._caps.get(tenant, self._tenant_max)
        if cap is not None:
            own = self.tenant_tokens(pin.engine, tenant) + pin.prefix.tokens
            for victim in self._cheapest_on(pin.engine) if own > cap else ():
                if own <= cap:
                    break
                if self._tenant_of[victim.pin] == tenant and victim.value <= pin.value:
                    victims[victim.pin] = victim
                    own -= victim.prefix.tokens
            if own > cap:
                return None
        return self._make_room(pin, prefixes, victims)

    def one_too_many(self, engine: EngineId) -> Pin | None:
        """The pin of least value where a budget, the engine's or its tenant's there, has no room
        for all; release it."""
        pins = self._by_engine.get(engine, {})
        if len(pins) > self._pins_max or self.tokens(engine) > self._tokens_max:
            return next(self._cheapest_on(engine))
        for pin in self._cheapest_on(engine):
            tenant = self._tenant_of[pin.pin]
            cap = self._caps.get(tenant, self._tenant_max)
            if cap is not None and self.tenant_tokens(engine, tenant) > cap:
                return pin
        return None

    def _cheapest_on(self, engine: EngineId) -> Iterator[Pin]:
        return iter(self._cheapest.get(engine, ()))

    def _make_room(
        self, pin: Pin, prefixes: Sequence[Prefix], victims: Mapping[PinId, Pin]
    ) -> tuple[Pin, ...] | None:
        """`victims`, and as many others as the engine's budget wants."""
        account = self._account
        taken = [(v, account.take_out(v.conversation)) for v in victims.values()]
        fits = False
        rest = (v for v in self._cheapest_on(pin.engine) if v.pin not in victims)
        for victim in chain(rest, (None,)):
            missing = account.missing_tokens(
                pin.engine, prefixes=prefixes, prompt_tokens=pin.prefix.tokens
            )
            count = len(self._by_engine.get(pin.engine, {})) - len(taken)
            fits = count < self._pins_max and account.tokens(pin.engine) + missing <= (
                self._tokens_max
            )
            if fits or victim is None or victim.value > pin.value:
                break
            taken.append((victim, account.take_out(victim.conversation)))
        for gone, pieces in reversed(taken):
            account.put_back(gone.conversation, pin.engine, pieces)
        return tuple(victim for victim, _ in taken) if fits else None

    def hold(
        self, pin: Pin, *, tenant: TenantId = _NOBODY, prefixes: Sequence[Prefix] = ()
    ) -> None:
        """Enter a pin that fits (see `room_for`) into the books."""
        assert pin.pin not in self._pins
        assert pin.conversation not in self._by_conversation
        self._pins[pin.pin] = pin
        self._by_conversation[pin.conversation] = pin.pin
        held = self._by_engine.setdefault(pin.engine, {})
        held[pin.pin] = pin
        if pin.engine not in self._cheapest:
            self._cheapest[pin.engine] = CheapestPins(held)
        self._cheapest[pin.engine].put(pin)
        self._account.place(
            pin.conversation, pin.engine, prefixes=prefixes, context_tokens=pin.prefix.tokens
        )
        self._tenant_of[pin.pin] = tenant
        self._of_tenant[pin.engine, tenant] = (
            self.tenant_tokens(pin.engine, tenant) + pin.prefix.tokens
        )
        self._expiry.set(pin.pin, pin.expires_at)

    def release(self, pin: PinId) -> Pin | None:
        """End a pin; None when it has ended already."""
        held = self._pins.pop(pin, None)
        if held is None:
            return None
        del self._by_conversation[held.conversation]
        del self._by_engine[held.engine][pin]
        self._account.remove(held.conversation)
        key = held.engine, self._tenant_of.pop(pin)
        self._of_tenant[key] -= held.prefix.tokens
        if not self._of_tenant[key]:
            del self._of_tenant[key]
        self._expiry.cancel(pin)
        return held

    def forget_engine(self, engine: EngineId) -> None:
        """An engine that has no pins is gone for good."""
        assert not self._by_engine.pop(engine, None)
        self._cheapest.pop(engine, None)
        self._account.lose(engine)

    def extend(self, pin: PinId, *, expires_at: Instant) -> Pin:
        """Let a held pin expire later."""
        held = replace(self._pins[pin], expires_at=expires_at)
        self._pins[pin] = self._by_engine[held.engine][pin] = held
        self._cheapest[held.engine].put(held)
        self._expiry.set(pin, expires_at)
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
            assert self.tokens(engine) <= sum(p.prefix.tokens for p in pins.values())
            assert self.tokens(engine) <= self._tokens_max
            assert len(pins) <= self._pins_max
        of_tenant: dict[tuple[EngineId, TenantId], int] = {}
        for pin, held in self._pins.items():
            key = held.engine, self._tenant_of[pin]
            of_tenant[key] = of_tenant.get(key, 0) + held.prefix.tokens
        assert of_tenant == self._of_tenant
        assert set(self._tenant_of) == set(self._pins)
        self._account.check()
