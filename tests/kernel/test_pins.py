from __future__ import annotations

import pytest
from shorthand import pin as pin_of
from shorthand import prefix

from agentsched.kernel.pins import PinLedger
from agentsched.model import EngineId, Instant, Pin, PinId, Prefix, TenantId

E1, E2 = EngineId("e1"), EngineId("e2")


def make(
    name: str, *, tokens: int = 10, value: float = 0.0, engine: EngineId = E1, until: int = 100
) -> Pin:
    conversation = f"c-{name}"
    return pin_of(
        name, conversation=conversation, engine=engine, tokens=tokens, until=until, value=value
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


def shared_pin(name: str, *, tokens: int = 500, value: float = 1.0) -> tuple[Pin, list[Prefix]]:
    """A pin of a conversation that begins with 400 tokens that all share."""
    pin = pin_of(name, name, of=f"x-{name}", tokens=tokens, until=10, value=value)
    return pin, [prefix("head", 400), pin.prefix]


def test_shared_prefixes_are_paid_for_once() -> None:
    ledger = PinLedger(pins_per_engine_max=99, tokens_per_engine_max=800)
    for name in "abcd":
        pin, prefixes = shared_pin(name)
        assert ledger.room_for(pin, prefixes=prefixes) == ()
        ledger.hold(pin, prefixes=prefixes)
        ledger.check()
    assert ledger.tokens(EngineId("e")) == 800
    late, prefixes = shared_pin("e", value=2.0)
    assert [p.pin for p in ledger.room_for(late, prefixes=prefixes) or ()] == ["a"]
    ledger.check()
    # One that shares nothing needs all of its own: even all four give up only so much.
    alone, _ = shared_pin("f", tokens=790, value=2.0)
    assert len(ledger.room_for(alone, prefixes=[]) or ()) == 4
    ledger.check()


def test_a_tenant_has_a_cap_of_its_own() -> None:
    ledger = PinLedger(
        pins_per_engine_max=99, tokens_per_engine_max=9_000, tokens_per_tenant_max=1_200
    )
    rich, poor = TenantId("rich"), TenantId("poor")
    ledger.cap(poor, 600)
    for name, tenant, value in (("a", rich, 1.0), ("b", rich, 3.0), ("c", poor, 0.5)):
        pin, _ = shared_pin(name, value=value)
        assert ledger.room_for(pin, tenant=tenant) == ()
        ledger.hold(pin, tenant=tenant)
    second, _ = shared_pin("d", value=2.0)
    assert [p.pin for p in ledger.room_for(second, tenant=rich) or ()] == ["a"]
    assert [p.pin for p in ledger.room_for(second, tenant=poor) or ()] == ["c"]
    cheap, _ = shared_pin("e", value=0.1)
    assert ledger.room_for(cheap, tenant=poor) is None
    ledger.cap(poor, None)
    assert ledger.room_for(cheap, tenant=poor) == ()
    ledger.release(PinId("a"))
    assert ledger.tenant_tokens(EngineId("e"), rich) == 500
    ledger.check()


def test_an_extended_pin_is_the_same_pin() -> None:
    ledger = PinLedger(pins_per_engine_max=9, tokens_per_engine_max=9_000)
    pin, _ = shared_pin("a")
    ledger.hold(pin)
    assert ledger.extend(pin.pin, expires_at=Instant(20)).expires_at == 20
    assert ledger.expired(now=Instant(15)) == ()
    assert [p.pin for p in ledger.expired(now=Instant(20))] == ["a"]


def test_a_budget_may_be_used_to_the_last_token(ledger: PinLedger) -> None:
    assert ledger.room_for(make("whole", tokens=100)) == ()
    ledger.hold(make("most", tokens=60))
    assert ledger.room_for(make("rest", tokens=40)) == ()
    assert ledger.room_for(make("more", tokens=41, value=-1.0)) is None


def test_a_tenants_cap_may_be_used_to_the_last_token_and_its_equals_give_way() -> None:
    ledger = PinLedger(
        pins_per_engine_max=99, tokens_per_engine_max=9_000, tokens_per_tenant_max=20
    )
    tenant, other = TenantId("t"), TenantId("other")
    cheap, first, second = (
        make("cheap", value=0.0),
        make("first", value=1.0),
        make("second", value=2.0),
    )
    ledger.hold(cheap, tenant=other)
    for pin in (first, second):
        assert ledger.room_for(pin, tenant=tenant) == ()
        ledger.hold(pin, tenant=tenant)
    assert ledger.room_for(make("equal", value=1.0), tenant=tenant) == (first,)
    assert ledger.room_for(make("less", value=0.9), tenant=tenant) is None
    # As many as it takes, and no more.
    assert ledger.room_for(make("dear", value=9.0), tenant=tenant) == (first,)
    assert ledger.one_too_many(E1) is None
    ledger.cap(tenant, 19)
    assert ledger.one_too_many(E1) == first
    ledger.release(first.pin)
    assert ledger.one_too_many(E1) is None


@pytest.mark.parametrize(("pins", "tokens", "gone"), [(2, 20, 0), (1, 20, 1), (2, 19, 1)])
def test_one_is_too_many_where_either_of_an_engines_budgets_is_short(
    ledger: PinLedger, pins: int, tokens: int, gone: int
) -> None:
    dear, cheap = make("dear", value=2.0), make("cheap", value=1.0)
    for pin in (dear, cheap):
        ledger.hold(pin)
    ledger.set_bounds(
        pins_per_engine_max=pins, tokens_per_engine_max=tokens, tokens_per_tenant_max=None
    )
    assert ledger.one_too_many(E1) == (cheap if gone else None)
    if gone:
        ledger.release(cheap.pin)
    assert ledger.one_too_many(E1) is None
