"""SAGA's agent fair share, and that its known defects are not here."""

from __future__ import annotations

from collections import Counter
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


@pytest.mark.parametrize("params", [{"burst": -1.0}, {"slack_s": 0.0}, {"horizon_s": -5.0}])
def test_wrong_parameters(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Afs(**params)
