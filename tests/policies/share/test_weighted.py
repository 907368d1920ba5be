"""Weighted fair share, step by step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agentsched.model import (
    Reconfigured,
    StepCancelled,
    StepClass,
    StepId,
    StepStarted,
    TenantId,
)
from agentsched.policy import Choice, PolicySet
from agentsched_policies.share.weighted import Weighted


def test_a_burst_of_one_does_not_keep_another_waiting(make_queue: Any) -> None:
    queue = make_queue("weighted")
    queue.ask("heavy", steps=20)
    queue.ask("light")
    assert "light" in queue.serve(3)


def test_without_shares_it_does(make_queue: Any) -> None:
    queue = make_queue("none")
    queue.ask("heavy", steps=20)
    queue.ask("light")
    assert "light" not in queue.serve(20)


def test_service_follows_the_weights(make_queue: Any) -> None:
    queue = make_queue("weighted")
    queue.weigh("gold", 3.0)
    for _ in range(60):
        queue.ask("gold")
        queue.ask("tin")
    served = Counter(queue.serve(40))
    assert abs(served["gold"] - 30) <= 2


def test_what_is_cached_is_not_charged(make_queue: Any) -> None:
    queue = make_queue("weighted", memory_price=0.0)
    queue.ask("a")
    queue.serve(1, cached=900)
    assert queue.scheduler.tenants[TenantId("a")].charged(now=queue.now) == 100 + 4 * 100


def test_nobody_saves_up_a_claim(make_queue: Any) -> None:
    queue = make_queue("weighted", memory_price=0.0)
    queue.ask("busy", steps=30)
    queue.serve(20)
    queue.ask("idle", steps=30)  # was away while the other was served twenty steps
    served = Counter(queue.serve(10))
    assert abs(served["busy"] - served["idle"]) <= 2


def test_nobody_saves_up_a_claim_while_batch_work_waits(make_queue: Any) -> None:
    queue = make_queue("weighted", memory_price=0.0)
    queue.ask("busy", steps=30)
    queue.ask("batchy", step_class=StepClass.BATCH)
    queue.serve(20)
    queue.ask("idle", steps=30)
    served = Counter(queue.serve(10))
    assert abs(served["busy"] - served["idle"]) <= 2


def test_nor_for_batch_work(make_queue: Any) -> None:
    queue = make_queue("weighted", memory_price=0.0)
    queue.ask("busy", steps=30, step_class=StepClass.BATCH)
    queue.serve(20)
    queue.ask("idle", steps=30, step_class=StepClass.BATCH)
    served = Counter(queue.serve(10))
    assert abs(served["busy"] - served["idle"]) <= 2


def test_batch_work_that_comes_late_is_level_with_that_which_waits(make_queue: Any) -> None:
    queue = make_queue("weighted", memory_price=0.0)
    queue.ask("busy", steps=20)
    queue.ask("early", steps=30, step_class=StepClass.BATCH)
    queue.serve(10)
    queue.ask("late", steps=30, step_class=StepClass.BATCH)
    served = Counter(queue.serve(20)[10:])
    assert abs(served["early"] - served["late"]) <= 2


def test_idle_memory_is_charged_by_time(make_queue: Any) -> None:
    queue = make_queue("weighted", memory_price=0.5)
    queue.ask("a")
    queue.serve(1)
    account = queue.scheduler.tenants[TenantId("a")]
    before = account.charged(now=queue.now)
    assert account.charged(now=queue.now + 10**10) - before == pytest.approx(0.5 * 1_100 * 10)
    queue.now += 10**10
    queue.ask("a", program="a-p1")  # it goes on: nothing is kept on its account any more
    charged = account.charged(now=queue.now)
    assert account.charged(now=queue.now + 10**10) == charged


def test_a_resident_conversation_may_run_ahead_by_the_burst(make_queue: Any) -> None:
    for burst, first in ((10_000.0, "a"), (0.0, "b")):
        queue = make_queue("weighted", burst=burst, memory_price=0.0)
        queue.ask("a", program="a")
        queue.serve(1)
        queue.ask("c")
        queue.ask("b")
        queue.ask("a", program="a")
        assert queue.serve(2)[1] == first


def test_batch_work_claims_no_share(make_queue: Any) -> None:
    queue = make_queue("weighted")
    queue.ask("a", steps=6)
    queue.ask("b", steps=3, step_class=StepClass.BATCH)
    assert queue.serve(9) == ["a"] * 6 + ["b"] * 3


@pytest.mark.parametrize(
    "params", [{"burst": -1.0}, {"output_price": -1.0}, {"burst": float("nan")}]
)
def test_wrong_parameters(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Weighted(**params)


def test_who_hangs_up_pays_for_what_was_done(make_queue: Any) -> None:
    queue = make_queue("weighted", memory_price=0.0)
    queue.ask("a")
    queue.now += 10**9
    queue.feed(StepStarted(step=StepId("a.1")))
    queue.now += 10**9
    queue.feed(StepCancelled(step=StepId("a.1"), reason="client"))
    # A prompt, and a second's worth of output at the first guess of 20 ms a token.
    assert queue.scheduler.tenants[TenantId("a")].charged(now=queue.now) == 1_000 + 4 * 50


def test_switching_it_on_starts_everybody_level(make_queue: Any) -> None:
    queue = make_queue("none")
    queue.ask("a", steps=9)
    queue.ask("b", steps=9)
    queue.serve(6)
    policies: PolicySet = queue.scheduler.policies
    choices = {**policies.choices, "share": Choice(name="weighted")}
    queue.feed(Reconfigured(profile="passthrough", choices=choices))
    assert abs(Counter(queue.serve(6))["a"] - 3) <= 1
