"""SAGA's agent fair share, and that its known defects are not here."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from agentsched.model import SECOND, Instant
from agentsched_policies.share.afs import Afs


def test_the_tenant_in_a_hurry_is_next(make_queue: Any) -> None:
    queue = make_queue("afs")
    queue.ask("x")
    queue.ask("calm", steps=3, deadline=Instant(900 * SECOND))
    queue.ask("hasty", steps=3, deadline=Instant(30 * SECOND))
    assert queue.serve(4) == ["x", "hasty", "hasty", "hasty"]


def test_one_overdue_tenant_does_not_take_everything(make_queue: Any) -> None:
    queue = make_queue("afs")
    queue.ask("x")
    queue.ask("late", steps=40, deadline=Instant(2 * SECOND))
    queue.ask("other", steps=40)
    served = Counter(queue.serve(60))
    assert served["other"] >= 15


def test_the_tightest_deadline_does_not_win_for_ever(make_queue: Any) -> None:
    queue = make_queue("afs", burst=5_000.0)
    queue.ask("x")
    queue.ask("liar", steps=40, deadline=Instant(1_000 * SECOND))
    queue.ask("honest", steps=40, deadline=Instant(9_000 * SECOND))
    served = Counter(queue.serve(41))
    assert served["liar"] > served["honest"] >= 15


def rank(
    *,
    left: float | None = 5.0,
    due_s: int | None,
    now_s: int,
    ahead: float = 0.0,
    programs: int = 1,
) -> Any:
    """Of a tenant whose programs began at 0 and were charged 8,000 tokens for four steps each."""
    program = SimpleNamespace(
        program="p",
        deadline=None if due_s is None else Instant(due_s * SECOND),
        opened_at=Instant(0),
        served_tokens=8_000,
        steps_done=4,
    )
    graph = SimpleNamespace(steps_left=lambda: left)
    world: Any = SimpleNamespace(
        programs={"p": program}, graph=lambda program: graph, least_service=lambda *, now: 100.0
    )
    tenant: Any = SimpleNamespace(service=lambda *, now: 100.0 + ahead, programs=["p"] * programs)
    policy = Afs(burst=500.0, slack_s=2.0, horizon_s=100.0)
    return policy.rank_tenant(tenant, world, now=Instant(now_s * SECOND))


@pytest.mark.parametrize(
    ("left", "due_s", "now_s", "urgency"),
    [
        (5.0, 50, 30, 10_000 / 20),
        (0.25, 50, 30, 2_000 / 20),  # the step that it asks for is still to come
        (5.0, 50, 49, 10_000 / 2),  # no sooner than the slack
        (5.0, None, 30, 10_000 / 120),  # 1.5 horizons from its start
        (5.0, 50, 50, 10_000 / 100),  # overdue: as if it had named none
        (5.0, 50, 150, 10_000 / 150),  # and that is over as well: all of it from now on
    ],
)
def test_urgency_is_the_work_that_is_left_over_the_time_that_is_left(
    left: float, due_s: int | None, now_s: int, urgency: float
) -> None:
    assert rank(left=left, due_s=due_s, now_s=now_s) == (0.0, pytest.approx(-urgency))
    both = rank(left=left, due_s=due_s, now_s=now_s, programs=2)
    assert both == (0.0, pytest.approx(-2 * urgency))


def test_beyond_the_burst_the_share_decides() -> None:
    assert rank(due_s=50, now_s=30, ahead=500.0) == (0.0, pytest.approx(-500.0))
    assert rank(due_s=50, now_s=30, ahead=501.0) == (1.0, pytest.approx(501.0))


@pytest.mark.parametrize("params", [{"burst": -1.0}, {"slack_s": 0.0}, {"horizon_s": -5.0}])
def test_wrong_parameters(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Afs(**params)
