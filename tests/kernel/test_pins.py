from __future__ import annotations

import pytest

from agentsched.kernel.pins import PinLedger
from agentsched.model import (
    ConversationId,
    EngineId,
    Instant,
    Pin,
    PinId,
    Prefix,
    PrefixId,
    ProgramId,
)

E1, E2 = EngineId("e1"), EngineId("e2")


def make(
    name: str, *, tokens: int = 10, value: float = 0.0, engine: EngineId = E1, until: int = 100
) -> Pin:
    return Pin(
        pin=PinId(name),
        program=ProgramId("p"),
        conversation=ConversationId(f"c-{name}"),
        engine=engine,
        prefix=Prefix(prefix=PrefixId("x"), tokens=tokens),
        expires_at=Instant(until),
        value=value,
    )


@pytest.fixture
def ledger() -> PinLedger:
    return PinLedger(pins_per_engine_max=2, tokens_per_engine_max=100)


def test_a_pin_is_held_and_ends_once(ledger: PinLedger) -> None:
    pin = make("a")
    ledger.hold(pin)
    assert (len(ledger), ledger.tokens(E1), list(ledger)) == (1, 10, [pin])
    assert ledger.of_conversation(pin.conversation) is pin
    assert ledger.get(pin.pin) is pin
    assert ledger.on_engine(E1) == (pin,)
    ledger.check()
    assert ledger.release(pin.pin) is pin
    assert ledger.release(pin.pin) is None
    assert ledger.of_conversation(pin.conversation) is None
    assert (len(ledger), ledger.tokens(E1), ledger.earliest()) == (0, 0, None)
    ledger.check()


def test_room_is_counted_by_engine(ledger: PinLedger) -> None:
    ledger.hold(make("a"))
    ledger.hold(make("b"))
    assert ledger.room_for(make("c", engine=E2)) == ()


def test_the_cheapest_give_way_as_many_as_needed(ledger: PinLedger) -> None:
    dear, cheap = make("dear", value=5, tokens=40), make("cheap", value=1, tokens=50)
    ledger.hold(dear)
    ledger.hold(cheap)
    assert ledger.room_for(make("c", value=2)) == (cheap,)
    assert ledger.room_for(make("c", value=2, tokens=61)) is None
    assert ledger.room_for(make("c", value=6, tokens=61)) == (cheap, dear)


def test_of_equal_value_the_one_that_ends_first_gives_way(ledger: PinLedger) -> None:
    late, soon = make("late", until=200), make("soon", until=100)
    ledger.hold(late)
    ledger.hold(soon)
    assert ledger.room_for(make("c")) == (soon,)


def test_a_pin_beyond_the_whole_budget_costs_nobody_theirs(ledger: PinLedger) -> None:
    ledger.hold(make("a"))
    assert ledger.room_for(make("huge", tokens=101, value=99)) is None


def test_expiry(ledger: PinLedger) -> None:
    first, second = make("first", until=5), make("second", until=9)
    ledger.hold(second)
    ledger.hold(first)
    assert ledger.earliest() == 5
    assert ledger.expired(now=Instant(4)) == ()
    assert ledger.expired(now=Instant(9)) == (first, second)


def test_an_engine_may_have_it_end_earlier(ledger: PinLedger) -> None:
    pin = make("a", until=100)
    ledger.hold(pin)
    ledger.reschedule(pin.pin, expires_at=Instant(7))
    assert ledger.earliest() == 7
    ledger.check()
