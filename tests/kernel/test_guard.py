"""Policies that fail: counted, stood in for, and never heard of by the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shorthand import arrived

from agentsched.kernel import decode, encode
from agentsched.kernel.guard import GuardedPolicies
from agentsched.model import (
    SECOND,
    Dispatch,
    Instant,
    Limits,
    Nanos,
    Pin,
    Prefetch,
    Prefix,
    PrefixId,
    Reconfigured,
    TenantId,
    TenantLimits,
)
from agentsched.policy import Admitted, Held, Prices, Retention, TurnedAway

BAD_ADMISSIONS = [
    None,
    True,
    Admitted(releases=None),  # type: ignore[arg-type]
    Admitted(releases=(1,)),  # type: ignore[arg-type]
    Admitted(releases=("x", 1)),  # type: ignore[arg-type]
    Admitted(releases=["x"]),  # type: ignore[arg-type]
    Held(reason=None),  # type: ignore[arg-type]
    Held(reason="x", until=1.5),  # type: ignore[arg-type]
    TurnedAway(reason="\ud800"),
    TurnedAway(reason="x", retry_after=Nanos(2**63)),
    TurnedAway(reason="x", retry_after=1.5),  # type: ignore[arg-type]
]
BAD_RETENTIONS = [
    True,
    Retention(ttl=1.5),  # type: ignore[arg-type]
    Retention(ttl=None),  # type: ignore[arg-type]
    Retention(ttl=Nanos(SECOND), value=float("nan")),
    Retention(ttl=Nanos(SECOND), value=float("inf")),
    Retention(ttl=Nanos(SECOND), value="dear"),  # type: ignore[arg-type]
    Retention(ttl=Nanos(SECOND), prefix="all"),  # type: ignore[arg-type]
    Retention(ttl=Nanos(SECOND), prefix=Prefix(prefix=None, tokens=1)),  # type: ignore[arg-type]
    Retention(ttl=Nanos(SECOND), prefix=Prefix(prefix=PrefixId("\ud800"), tokens=1)),
    Retention(ttl=Nanos(SECOND), prefix=Prefix(prefix=PrefixId("x"), tokens=-1)),
    Retention(ttl=Nanos(SECOND), prefix=Prefix(prefix="x", tokens=1.5)),  # type: ignore[arg-type]
]


def explode(*_: Any) -> Any:
    raise RuntimeError("broken")


def drive(rig: Any) -> list[Any]:
    """Two programs over two engines through a step, a pause and another step."""
    rig.engine("e1")
    rig.engine("e2")
    commands = []
    for turn in range(2):
        for program in ("p1", "p2"):
            step = f"{program}-{turn}"
            commands += rig.arrive(step, program=program, at=turn)
            commands += rig.start(step)
            commands += rig.finish(step, tools={f"k-{step}": "bash"})
    assert [c.step for c in commands if isinstance(c, Dispatch)] == ["p1-0", "p2-0", "p1-1", "p2-1"]
    latest = rig.scheduler.latest
    assert decode(encode(latest)) == latest
    return commands


@pytest.mark.parametrize(
    ("answer", "counter"),
    [
        ("rank_of", "order.rank"),
        ("priority_of", "order.priority"),
        ("score_of", "place.score"),
        ("admission", "admit.admit"),
        ("room", "admit.has_room"),
        ("retention", "pin.retain"),
        ("warm", "prefetch.warm_at"),
    ],
)
def test_a_policy_that_raises_is_counted_and_stood_in_for(
    rig: Any, answer: str, counter: str
) -> None:
    setattr(rig.policy, answer, explode)
    drive(rig)
    assert set(rig.scheduler.policy_errors) == {counter}
    assert rig.scheduler.statistics().policy_errors_total >= 4
    assert str(rig.scheduler.latest_policy_error) == "broken"


def test_a_policy_that_cannot_learn_does_not_keep_the_others_from_it(rig: Any) -> None:
    rig.policy.observe = explode  # too late: the method was taken at the start
    rig.policy.seen = None
    drive(rig)
    counted = rig.scheduler.policy_errors
    points = ("order", "admit", "place", "pin", "prefetch", "share")
    assert set(counted) == {f"{p}.observe" for p in points}
    assert len(set(counted.values())) == 1


class Particular(Exception):
    """It cannot be made again from its text, as a copy of an exception is."""

    def __init__(self, text: str, *, policy: str) -> None:
        super().__init__(f"{policy}: {text}")


def test_what_was_raised_is_no_part_of_a_dry_run(rig: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise Particular("broken", policy="mine")

    rig.policy.rank_of = refuse
    drive(rig)
    plan = rig.scheduler.plan(arrived("more", "p3"), now=Instant(rig.now))
    assert isinstance(plan.verdict, Dispatch)
    assert str(rig.scheduler.latest_policy_error) == "mine: broken"


@pytest.mark.parametrize("rank", [None, ("a",), (None,), 5j])
def test_a_rank_that_cannot_be_compared(rig: Any, rank: Any) -> None:
    rig.policy.rank_of = lambda step: rank if step.step == "s2" else (0.0,)
    for number in (1, 2, 3):
        rig.arrive(f"s{number}", program=f"p{number}", at=number)
    commands = rig.engine()
    assert [c.step for c in commands] == ["s1", "s2", "s3"]
    assert rig.scheduler.policy_errors == {"order.rank": 1}


@pytest.mark.parametrize("priority", [None, 1.5, True, 2**63, "0"])
def test_a_priority_that_is_no_number(rig: Any, priority: Any) -> None:
    rig.policy.priority_of = lambda step: priority
    assert {c.priority for c in drive(rig) if isinstance(c, Dispatch)} == {0}


@pytest.mark.parametrize("priority", [-(2**63), 2**63 - 1])
def test_a_priority_is_any_number_of_64_bits(rig: Any, priority: int) -> None:
    rig.policy.priority_of = lambda step: priority
    assert {c.priority for c in drive(rig) if isinstance(c, Dispatch)} == {priority}
    assert not rig.scheduler.policy_errors


@pytest.mark.parametrize("score", [None, "high"])
def test_a_score_that_is_no_number_leaves_the_engines_their_turns(rig: Any, score: Any) -> None:
    rig.policy.score_of = lambda step, engine: score
    engines = [c.engine for c in drive(rig) if isinstance(c, Dispatch)]
    assert engines == ["e1", "e2", "e1", "e2"]


@pytest.mark.parametrize("admission", BAD_ADMISSIONS)
def test_an_admission_that_is_none_lets_in(rig: Any, admission: Any) -> None:
    rig.policy.admission = lambda step, engine: admission
    drive(rig)
    assert rig.scheduler.policy_errors == {"admit.admit": 4}


@pytest.mark.parametrize("retention", BAD_RETENTIONS)
def test_a_retention_that_is_none_pins_nothing(rig: Any, retention: Any) -> None:
    rig.policy.retention = lambda pause: retention
    drive(rig)
    assert rig.scheduler.policy_errors == {"pin.retain": 4}
    assert rig.scheduler.statistics().pins == 0


@pytest.mark.parametrize("at", [1.5, "now", 2**70])
def test_a_warm_up_time_that_is_none_warms_nothing(rig: Any, at: Any) -> None:
    rig.policy.warm = lambda pause: at
    drive(rig)
    assert rig.scheduler.policy_errors == {"prefetch.warm_at": 4}
    assert rig.scheduler.next_deadline() is None


def test_the_graph_is_guarded_too(make_rig: Any) -> None:
    class Graph:
        def observe(self, event: Any, *, now: Instant) -> None:
            raise KeyError("no such node")

        def view(self, program: Any) -> None:
            return None

    rig = make_rig(graph=Graph())
    drive(rig)
    assert set(rig.scheduler.policy_errors) == {"graph.observe"}


def test_an_interrupt_is_not_swallowed(rig: Any) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    rig.policy.admission = interrupt
    rig.engine()
    with pytest.raises(KeyboardInterrupt):
        rig.arrive("s1")


def wait_for_an_engine(rig: Any) -> list[str]:
    """Two tenants' steps in turn; the order in which an engine gets them."""
    for number, tenant in enumerate(("early", "late", "early", "late")):
        rig.arrive(f"{tenant}{number}", program=f"p{number}", tenant=tenant, at=number)
    return [c.step for c in rig.engine() if isinstance(c, Dispatch)]


def test_tenants_take_turns_by_their_ranks(rig: Any) -> None:
    rig.policy.share_of = lambda account: (0.0 if account.tenant == "late" else 1.0,)
    assert wait_for_an_engine(rig) == ["late1", "late3", "early0", "early2"]
    assert not rig.scheduler.policy_errors


def test_ranks_and_values_may_be_whole_numbers(rig: Any) -> None:
    rig.policy.share_of = lambda account: (int(account.tenant == "early"),)
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND), value=2)
    assert wait_for_an_engine(rig) == ["late1", "late3", "early0", "early2"]
    [pin] = rig.finish("late1")
    assert isinstance(pin, Pin)
    assert pin.value == 2
    assert not rig.scheduler.policy_errors


def test_a_tenants_rank_is_that_after_each_step_that_went(rig: Any) -> None:
    rig.policy.share_of = lambda account: (account.running_steps,)
    for number, tenant in enumerate(("early", "early", "late", "late")):
        rig.arrive(f"{tenant}{number}", program=f"p{number}", tenant=tenant, at=number)
    commands = rig.engine()
    assert [c.step for c in commands] == ["early0", "late2", "early1", "late3"]


def test_without_a_rank_for_tenants_steps_go_as_they_come(rig: Any) -> None:
    assert wait_for_an_engine(rig) == ["early0", "late1", "early2", "late3"]
    assert not rig.scheduler.policy_errors


def test_tenants_are_ranked_again_only_when_a_step_went(rig: Any) -> None:
    asked: list[str] = []
    rig.policy.share_of = lambda account: asked.append(account.tenant) or (0.0,)
    rig.policy.admission = lambda step, engine: Held(reason="x", blocks_others=False)
    rig.engine()
    for number in range(20):
        rig.arrive(f"s{number}", program=f"p{number}", tenant=f"t{number % 2}")
    asked.clear()
    rig.timer(at=1)
    assert asked.count("t1") == 1
    asked.clear()
    rig.policy.admission = lambda step, engine: (
        Admitted() if step.step == "s0" else Held(reason="x", blocks_others=False)
    )
    assert len(rig.timer(at=2)) == 1
    assert asked.count("t1") == 2


@pytest.mark.parametrize("rank", [5, "high", [1.0], ("a",), (float("nan"),), (True,)])
def test_a_tenants_rank_that_is_none_is_counted(rig: Any, rank: Any) -> None:
    rig.policy.share_of = lambda account: rank
    assert wait_for_an_engine(rig) == ["early0", "late1", "early2", "late3"]
    assert set(rig.scheduler.policy_errors) == {"share.rank_tenant"}


@pytest.mark.parametrize(
    ("times", "order"),
    [
        (0, ["early0", "late1", "early2", "late3"]),  # no turns: all wait in one line
        (1, ["early0", "early2", "late1", "late3"]),  # in the midst of a turn it stays where it was
    ],
)
def test_a_tenant_that_cannot_be_ranked_is_not_before_all_others(
    rig: Any, times: int, order: list[str]
) -> None:
    ranks = {"late": [(1.0,)] * times}
    rig.policy.share_of = lambda account: ranks.get(account.tenant, [(0.0,)] * 9).pop()
    assert wait_for_an_engine(rig) == order
    assert set(rig.scheduler.policy_errors) == {"share.rank_tenant"}


@pytest.mark.parametrize(
    ("chosen", "engines", "errors"),
    [
        (lambda engines: engines[-1], ["e2"] * 4, 0),
        # Not one of those that were asked about: another, a copy, a name.
        (lambda engines: replace(engines[-1]), ["e1", "e2", "e1", "e2"], 4),
        (lambda engines: engines[-1].engine, ["e1", "e2", "e1", "e2"], 4),
        (explode, ["e1", "e2", "e1", "e2"], 4),
    ],
)
def test_the_best_engine_is_one_of_those_asked_about(
    rig: Any, chosen: Any, engines: list[str], errors: int
) -> None:
    rig.policy.best = lambda step, among, world, *, now: chosen(among)
    rig.scheduler._guarded.adopt(rig.policy.as_set(), now=Instant(0))
    assert [c.engine for c in drive(rig) if isinstance(c, Dispatch)] == engines
    assert rig.scheduler.policy_errors.get("place.score", 0) == errors


def test_who_cannot_tell_room_is_asked_for_each_step(rig: Any) -> None:
    asked: list[Any] = []
    policies = replace(rig.policy.as_set(), admit=Doorkeeper(asked))
    guarded = GuardedPolicies(policies, books=rig.scheduler._books)
    assert not guarded.tells_room
    rig.engine()
    [engine] = rig.scheduler.engines.values()
    assert guarded.has_room(engine, now=Instant(0))
    assert asked == []


class Doorkeeper:
    """An admission that answers for steps alone."""

    def __init__(self, asked: list[Any]) -> None:
        self.asked = asked

    def observe(self, event: Any, *, now: Instant) -> None:
        pass

    def admit(self, step: Any, engine: Any, world: Any, *, now: Instant) -> Admitted:
        self.asked.append(step)
        return Admitted()


def test_a_tenant_that_may_have_nothing_more_is_not_asked_for(rig: Any) -> None:
    """Its ceilings come before the policies: one pin, no conversation kept warm."""
    limits = TenantLimits(pins_max=1, warm_max=1)
    rig.scheduler._books.shares.configure(TenantId("t1"), weight=1.0, limits=limits, now=Instant(0))
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(10 * SECOND))
    rig.policy.warm = lambda pause: Instant(0)
    commands = drive(rig)
    assert [c.program for c in commands if isinstance(c, Pin)] == ["p1", "p1"]
    assert [c.program for c in commands if isinstance(c, Prefetch)][:1] == ["p1"]
    talks = [c for p in rig.scheduler.programs.values() for c in p.conversations.values()]
    assert sum(talk.is_warmed for talk in talks) == 1


@pytest.mark.parametrize(
    ("prices", "charged"),
    [
        (Prices(prefill=2.0, output=3.0, memory=0.0), 2 * 100 + 3 * 10),
        ("dear", 100 + 4 * 10),  # the usual ones stand in
    ],
)
def test_a_share_policy_may_name_its_prices(rig: Any, prices: Any, charged: float) -> None:
    rig.policy.prices = prices
    rig.scheduler._guarded._take(rig.policy.as_set())
    rig.engine()
    rig.arrive("s1")
    rig.finish("s1", prompt=100, output=10)
    assert rig.scheduler.tenants["t1"].charged(now=Instant(rig.now)) == charged


@pytest.mark.parametrize(
    ("may_continue", "tenants", "order"),
    [
        (lambda account: account.tenant == "late", "early late", "late+ early early+ late"),
        (lambda account: False, "early late", "early early+ late late+"),
        (explode, "early late", "early early+ late late+"),
        (None, "early late", "early early+ late late+"),
        # Nobody else waits: what goes first is for the order policy alone to say.
        (lambda account: True, "late", "late late+"),
    ],
)
def test_resident_conversations_go_first_as_far_as_their_tenant_may(
    rig: Any, may_continue: Any, tenants: str, order: str
) -> None:
    """Of each tenant a new program waits, and then (+) one whose conversation is resident."""
    rig.policy.share_of = lambda account: (0.0,)
    if may_continue is not None:
        rig.policy.may_continue = lambda account, world, *, now: may_continue(account)
    rig.scheduler._guarded._take(rig.policy.as_set())
    rig.engine()
    for tenant in tenants.split():
        rig.arrive(f"{tenant}-", program=f"{tenant}+", tenant=tenant)
        rig.finish(f"{tenant}-")
    rig.policy.admission = lambda step, engine: Held(reason="x", blocks_others=False)
    for tenant in tenants.split():
        for name in (tenant, f"{tenant}+"):
            rig.arrive(name, program=name, tenant=tenant, at=rig.now / SECOND + 1)
    rig.policy.admission = lambda step, engine: Admitted()
    commands = rig.timer(at=rig.now / SECOND + 1)
    assert [c.step for c in commands if isinstance(c, Dispatch)] == order.split()
    failed = {"share.may_continue"} if may_continue is explode else set()
    assert set(rig.scheduler.policy_errors) == failed


def test_who_cannot_be_told_what_was_decided_is_counted_and_the_others_are(rig: Any) -> None:
    told: list[Any] = []
    rig.policy.decided = lambda commands, *, now: told.append(commands) or explode()
    rig.scheduler._guarded._take(rig.policy.as_set())
    rig.arrive("s1")
    assert told == []  # nothing was decided
    rig.engine()
    points = ("order", "admit", "place", "pin", "prefetch", "share")
    assert rig.scheduler.policy_errors == {f"{point}.decided": 1 for point in points}
    assert [[c.step for c in commands] for commands in told] == [["s1"]] * 6


def test_a_graph_that_takes_no_other_limits_is_counted(make_rig: Any) -> None:
    told: list[Limits] = []

    class Graph:
        def observe(self, event: Any, *, now: Instant) -> None:
            pass

        def view(self, program: Any) -> None:
            return None

        def set_limits(self, limits: Limits) -> None:
            told.append(limits)
            explode()

    rig = make_rig(graph=Graph())
    rig.scheduler._remake = lambda *_: rig.policy.as_set()
    limits = Limits(wait_ns_max=Nanos(5 * SECOND))
    rig.push(Reconfigured(profile="other", choices={}, limits=limits))
    assert told == [limits]
    assert rig.scheduler.policy_errors == {"graph.set_limits": 1}
