from __future__ import annotations

from agentsched.bus.messages import EngineMessage, TenantMessage
from agentsched.bus.telling import TELL_AGAIN_S, Served, State, Telling
from agentsched.bus.topics import EngineTopic, TenantTopic
from agentsched.model import EngineId, TenantId

E, T = EngineId("e"), TenantId("t")


def telling() -> Telling:
    return Telling(replica="r", epoch="life")


def held(tokens: int) -> State:
    return State(engines={E: EngineMessage(running_steps=0, resident_tokens=tokens)})


def of(uncached: int = 0, *, idle: int = 0, waits: bool = False) -> State:
    return State(tenants={T: Served(uncached_tokens=uncached, idle_token_s=idle, waits=waits)})


def said(told: Telling, state: State, at: float) -> list[TenantMessage]:
    return [m for _, m in told.due(state, at=at) if isinstance(m, TenantMessage)]


def test_an_engine_is_told_when_it_changes_and_before_it_is_not_believed_any_more() -> None:
    told = telling()
    [(topic, message)] = told.due(held(5), at=0.0)
    assert topic == EngineTopic("e", "r")
    assert message == EngineMessage(running_steps=0, resident_tokens=5)
    assert not list(told.due(held(5), at=1.0))
    assert len(list(told.due(held(6), at=1.5))) == 1
    assert not list(told.due(held(6), at=1.4 + TELL_AGAIN_S))
    assert len(list(told.due(held(6), at=1.5 + TELL_AGAIN_S))) == 1


def test_service_is_told_when_it_grows_and_kept_memory_at_a_slower_pace() -> None:
    told = telling()
    assert len(said(told, of(10), 0.0)) == 1
    assert not said(told, of(10, idle=50), 0.5)
    [grown] = said(told, of(11, idle=60), 1.0)
    assert (grown.uncached_tokens, grown.idle_token_s) == (11, 60)
    assert not said(told, of(11, idle=70), 1.5)
    [slow] = said(told, of(11, idle=99), 1.0 + TELL_AGAIN_S)
    assert slow.idle_token_s == 99
    assert not said(told, of(11, idle=99), 2.0 + 2 * TELL_AGAIN_S)


def test_who_waits_is_told_again_and_again() -> None:
    told = telling()
    assert [m.waits for m in said(told, of(waits=True), 0.0)] == [True]
    assert not said(told, of(waits=True), 1.0)
    assert [m.waits for m in said(told, of(waits=True), TELL_AGAIN_S)] == [True]
    assert [m.waits for m in said(told, of(), TELL_AGAIN_S + 0.5)] == [False]
    assert not said(told, of(), 5 * TELL_AGAIN_S)


def test_how_long_ago_a_tenant_had_been_served_nothing() -> None:
    told = telling()
    [known] = said(told, of(10), 0.0)
    assert known.age_s is None  # it may have been brought back from a store
    new = TenantId("new")
    state = State(tenants={**of(10).tenants, new: Served(uncached_tokens=7)})
    told_of = [(t, m) for t, m in told.due(state, at=2.0) if isinstance(m, TenantMessage)]
    [(topic, message)] = told_of
    assert topic == TenantTopic("new", "r")
    assert message.age_s == 2.0
    # Who is gone and comes back was served nothing in between.
    assert not list(told.due(State(), at=3.0))
    [back] = said(told, of(4), 4.0)
    assert back.age_s == 1.0


def test_who_hears_us_for_the_first_time_is_told_all() -> None:
    told = telling()
    both = State(engines=held(1).engines, tenants=of(3).tenants)
    assert len(list(told.due(both, at=0.0))) == 2
    assert not list(told.due(both, at=0.5))
    told.forget()
    assert len(list(told.due(both, at=1.0))) == 2
