from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentsched.bus.messages import EngineMessage, TenantMessage
from agentsched.bus.peers import Peers
from agentsched.model import (
    EngineId,
    Event,
    Instant,
    PeerReported,
    ServedElsewhere,
    TenantId,
    seconds,
)

E, T = EngineId("e"), TenantId("t")


def peers() -> Peers:
    return Peers(silence=seconds(10))


def engine(running: int, tokens: int) -> EngineMessage:
    return EngineMessage(running_steps=running, resident_tokens=tokens)


def tenant(uncached: int, output: int = 0, epoch: str = "1", **more: Any) -> TenantMessage:
    return TenantMessage(epoch=epoch, uncached_tokens=uncached, output_tokens=output, **more)


def served(events: list[Event]) -> tuple[int, int]:
    told = [e for e in events if isinstance(e, ServedElsewhere)]
    return sum(e.uncached_tokens for e in told), sum(e.output_tokens for e in told)


def test_engines_are_told_when_they_change() -> None:
    known = peers()
    [first] = known.engine("r", E, engine(1, 100), now=Instant(0))
    assert first == PeerReported(engine=E, peer="r", running_steps=1, resident_tokens=100)
    assert not list(known.engine("r", E, engine(1, 100), now=Instant(1)))
    assert len(list(known.engine("r", E, engine(2, 100), now=Instant(2)))) == 1


def test_a_peer_that_goes_holds_nothing() -> None:
    known = peers()
    list(known.engine("r", E, engine(1, 100), now=Instant(0)))
    [gone] = known.gone("r", now=Instant(1))
    assert gone == PeerReported(engine=E, peer="r", running_steps=0, resident_tokens=0)
    assert not list(known.gone("r", now=Instant(2)))


def test_who_went_is_missed_until_it_comes_back_or_long_ago() -> None:
    known = peers()
    for name in ("r", "s", "t"):
        known.meet(name, now=Instant(0))
    list(known.gone("r", now=Instant(seconds(1))))
    list(known.gone("r", now=Instant(seconds(2))))  # said twice
    list(known.gone("never heard", now=Instant(seconds(2))))
    known.meet("t", now=Instant(seconds(8)))
    list(known.expire(now=Instant(seconds(12))))  # `s` was silent
    now = Instant(seconds(13))
    assert known.missed(now=now) == {"r": seconds(1), "s": seconds(12)}
    known.meet("r", now=now)
    assert list(known.missed(now=now)) == ["s"]
    assert not known.missed(now=Instant(seconds(613)))
    list(known.lost())  # the broker is away: nobody is known to be gone
    assert not known.missed(now=now)


def test_few_are_missed_at_once() -> None:
    known = peers()
    for number in range(40):
        known.meet(f"r{number}", now=Instant(number))
        list(known.gone(f"r{number}", now=Instant(number)))
    assert list(known.missed(now=Instant(40))) == [f"r{number}" for number in range(24, 40)]


def test_silence_and_a_lost_broker() -> None:
    known = peers()
    list(known.engine("r", E, engine(1, 100), now=Instant(0)))
    list(known.engine("s", E, engine(1, 100), now=Instant(seconds(5))))
    assert not list(known.expire(now=Instant(seconds(10))))
    assert len(list(known.expire(now=Instant(seconds(12))))) == 1
    assert known.names == ("s",)
    assert len(list(known.lost())) == 1
    assert not len(known)


def test_what_is_not_said_again_of_an_engine_is_so_no_more() -> None:
    """A replica that lost an engine says nothing of it any more, and lives."""
    known = peers()
    list(known.engine("r", E, engine(1, 100), now=Instant(0)))
    assert not list(known.engine("r", E, engine(1, 100), now=Instant(seconds(5))))  # said again
    list(known.tenant("r", T, tenant(0), now=Instant(seconds(14))))
    assert not list(known.expire(now=Instant(seconds(14.5))))
    [gone] = known.expire(now=Instant(seconds(15.5)))
    assert gone == PeerReported(engine=E, peer="r", running_steps=0, resident_tokens=0)
    assert known.names == ("r",)
    [back] = known.engine("r", E, engine(1, 100), now=Instant(seconds(16)))
    assert back == PeerReported(engine=E, peer="r", running_steps=1, resident_tokens=100)


def test_engines_that_come_and_go_leave_room_for_others() -> None:
    known = peers()
    for number in range(1_024):
        list(known.engine("r", EngineId(f"e{number}"), engine(1, 1), now=Instant(0)))
    late = Instant(seconds(11))
    known.meet("r", now=late)
    assert not list(known.engine("r", E, engine(1, 100), now=late))
    assert len(list(known.expire(now=late))) == 1_024
    assert len(list(known.engine("r", E, engine(1, 100), now=late))) == 1


def test_service_begins_level_and_survives_a_new_life() -> None:
    known = peers()
    assert not list(known.tenant("r", T, tenant(1_000), now=Instant(0)))
    assert served(list(known.tenant("r", T, tenant(1_500, 10), now=Instant(1)))) == (500, 10)
    # It began anew, and what it brought back from its store was counted long ago.
    assert served(list(known.tenant("r", T, tenant(70, 7, "2"), now=Instant(2)))) == (0, 0)
    assert served(list(known.tenant("r", T, tenant(90, 7, "2"), now=Instant(3)))) == (20, 0)
    later = Instant(seconds(9))
    anew = tenant(30, 3, "3", age_s=2.0)
    assert served(list(known.tenant("r", T, anew, now=later))) == (30, 3)


def test_a_tenant_that_comes_after_we_met_is_charged_from_its_first_step() -> None:
    known = peers()
    known.meet("r", now=Instant(seconds(5)))
    before = tenant(400, age_s=3.0)  # it began a second before we met
    assert not list(known.tenant("r", T, before, now=Instant(seconds(7))))
    since = tenant(500, 20, age_s=1.5, idle_token_s=9)
    [event] = known.tenant("r", TenantId("new"), since, now=Instant(seconds(7)))
    assert event == ServedElsewhere(
        tenant=TenantId("new"), uncached_tokens=500, output_tokens=20, idle_token_s=9
    )


def test_who_was_forgotten_there_and_comes_back_is_charged_from_nothing() -> None:
    known = peers()
    list(known.tenant("r", T, tenant(0), now=Instant(0)))
    list(known.tenant("r", T, tenant(1_000), now=Instant(seconds(1))))
    anew = tenant(40, age_s=1.0, waits=True)  # it began a second ago, long after that
    events = list(known.tenant("r", T, anew, now=Instant(seconds(60))))
    assert served(events) == (40, 0)
    [event] = events
    assert isinstance(event, ServedElsewhere)
    assert event.waits
    # An earlier word that was overtaken is still none, also one that was long under way.
    assert not list(known.tenant("r", T, tenant(30, age_s=60.0), now=Instant(seconds(61))))
    assert not list(known.tenant("r", T, tenant(30, age_s=0.5), now=Instant(seconds(69))))
    assert served(list(known.tenant("r", T, tenant(50), now=Instant(seconds(70))))) == (10, 0)


def test_who_waits_elsewhere_is_told_once_and_ends_with_the_last_that_says_so() -> None:
    known = peers()
    waits, idle = tenant(0, waits=True), tenant(0)

    def heard(replica: str, said: TenantMessage, at_s: float) -> list[bool]:
        events = known.tenant(replica, T, said, now=Instant(seconds(at_s)))
        return [e.waits for e in events if isinstance(e, ServedElsewhere)]

    assert heard("r", waits, 0) == [True]
    assert heard("s", waits, 1) == []
    assert heard("r", idle, 2) == []
    assert heard("s", waits, 3) == []
    # `s` lives, and says nothing more of this tenant: its word ran out.
    list(known.engine("s", E, engine(1, 1), now=Instant(seconds(12))))
    assert not list(known.expire(now=Instant(seconds(12.5))))
    [ended] = known.expire(now=Instant(seconds(13.5)))
    assert isinstance(ended, ServedElsewhere)
    assert not ended.waits
    assert heard("s", waits, 14) == [True]
    assert [
        e.waits for e in known.gone("s", now=Instant(seconds(15))) if isinstance(e, ServedElsewhere)
    ] == [False]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_loss_repetition_and_disorder_never_charge_twice(steps: list[int], rng: object) -> None:
    totals = [sum(steps[: n + 1]) for n in range(len(steps))]
    heard = [total for total in totals for _ in range(rng.randint(0, 2))]  # type: ignore[attr-defined]
    rng.shuffle(heard)  # type: ignore[attr-defined]
    known = peers()
    events = list(known.tenant("r", T, tenant(0), now=Instant(0)))
    for total in [*heard, totals[-1]]:
        events += known.tenant("r", T, tenant(total), now=Instant(1))
    assert served(events)[0] == totals[-1]
