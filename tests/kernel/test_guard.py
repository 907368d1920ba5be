"""Policies that fail: counted, stood in for, and never heard of by the host."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.kernel import decode, encode
from agentsched.model import SECOND, Dispatch, Instant, Nanos
from agentsched.policy import Admitted, Held, Retention, TurnedAway

BAD_ADMISSIONS = [
    None,
    True,
    Admitted(releases=None),  # type: ignore[arg-type]
    Admitted(releases=(1,)),  # type: ignore[arg-type]
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
