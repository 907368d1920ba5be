"""Orders, each by its own formula with numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from shorthand import pin, prefetch, unpin

from agentsched.model import (
    SECOND,
    HintAnswered,
    HintOutcome,
    Instant,
    PinId,
    PolicyError,
    ProgramClosed,
    ProgramId,
    StepCancelled,
    StepId,
    after,
    seconds,
)
from agentsched.policy import Choice, load

Floors = Callable[..., Any]


def order(name: str, **params: object) -> Choice:
    return Choice(name=name, params=params)


ONE = Choice(name="depth", params={"depth": 1})


class TestAutellix:
    def level(self, floor: Floors, **params: object) -> Any:
        return floor(order=order("autellix", **params), admit=ONE)

    def test_plas_sums_the_run_times_of_finished_calls(self, floor: Floors) -> None:
        f = self.level(floor)
        for number in range(3):
            f.ask(f"a{number}", "pa", at=2 * number)
            f.answer(f"a{number}", at=2 * number + 1.5)
        # 4.5 s of service: bounds are 1, 2, 4, 8, ... seconds, so the fourth queue.
        f.ask("x", "px", at=6)
        f.ask("a3", "pa", at=6)
        assert f.rank("a3") == (3.0, 6.0 * SECOND)
        f.ask("b", "pb", at=6)
        assert f.rank("b")[0] == 0.0

    def test_parallel_calls_count_once_in_atlas_and_twice_in_plas(self, floor: Floors) -> None:
        for variant, service_level in (("plas", 2.0), ("atlas", 1.0)):
            f = floor(order=order("autellix", variant=variant), admit=Choice(name="open"))
            f.ask("a1", "pa", at=0, branch="/1")
            f.ask("a2", "pa", at=0, branch="/2")
            f.answer("a1", at=1.5)
            f.answer("a2", at=1.5)
            f.lose("e1")
            f.ask("a3", "pa", at=2, branch="/1")
            # 1.5 + 1.5 = 3 s in the third queue; max(1.5, 0 + 1.5) in the second.
            assert f.rank("a3")[0] == service_level

    def test_calls_one_after_another_are_one_chain_in_atlas(self, floor: Floors) -> None:
        f = self.level(floor, variant="atlas")
        f.ask("a1", "pa", at=0)
        f.answer("a1", at=1.5)
        f.ask("a2", "pa", at=2)
        f.answer("a2", at=5)
        f.ask("x", "px", at=5)
        f.ask("a3", "pa", at=5)
        # 1.5 s when the second call came, and its 3 s: the fourth queue, from 4 s on.
        assert f.rank("a3")[0] == 3.0

    def test_waiting_beta_times_its_service_promotes(self, floor: Floors) -> None:
        f = self.level(floor, beta=4.0)
        f.ask("a", "pa", at=0)
        f.answer("a", at=2)
        f.ask("x", "px", at=2)
        f.ask("a2", "pa", at=2)
        f.tick(at=9.9)
        assert f.rank("a2")[0] == 2.0
        f.tick(at=10.0)  # 8 s of waiting for 2 s of service
        assert f.rank("a2")[0] == 0.0

    def test_a_closed_program_starts_anew_and_what_never_ran_was_no_service(
        self, floor: Floors
    ) -> None:
        f = self.level(floor)
        f.ask("a", "pa", at=0)
        f.answer("a", at=5)
        f.ask("x", "px", at=5)
        f.ask("a2", "pa", at=5)
        assert f.rank("a2")[0] == 3.0
        policy = f.scheduler.policies.order
        policy.observe(StepCancelled(step=StepId("a2"), reason="left"), now=Instant(6 * SECOND))
        assert f.rank("a2")[0] == 3.0
        policy.observe(
            ProgramClosed(program=ProgramId("pa"), reason="done"), now=Instant(6 * SECOND)
        )
        assert f.rank("a2")[0] == 0.0


class TestHexgen:
    def test_urgency_is_the_time_it_takes_less_what_is_left_of_its_budget(
        self, floor: Floors
    ) -> None:
        f = floor(order=order("hexgen", slo_s=60), admit=ONE)
        f.ask("x", "px", at=0)
        f.ask("a", "pa", at=0)
        # Nothing is known: 1 s a step, and the graph's prior of 10 more after this one.
        f.tick(at=5)
        urgency = 1.0 - (55 / 11 - 5)
        assert f.rank("a") == pytest.approx((-urgency,))

    def test_a_deadline_comes_before_the_default(self, floor: Floors) -> None:
        f = floor(order=order("hexgen"), admit=ONE)
        f.ask("x", "px", at=0)
        f.ask("a", "pa", at=0)
        f.ask("b", "pb", at=0, deadline=Instant(10 * SECOND))
        assert f.answer("x", at=1) == {"b": "e1"}


class TestSaga:
    def test_cached_sessions_by_urgency_then_the_rest(self, floor: Floors) -> None:
        f = floor(order=order("saga"), admit=ONE)
        f.ask("a", "pa", at=0, deadline=Instant(100 * SECOND))
        f.answer("a", at=1)
        f.ask("b", "pb", at=1, deadline=Instant(20 * SECOND))
        f.answer("b", at=2)
        f.ask("x", "px", at=2)
        f.ask("new", "pn", at=2)
        f.ask("a2", "pa", 1_100, at=3)
        f.ask("b2", "pb", 1_100, at=4)
        assert [f.answer("x", at=5), f.answer("b2", at=6), f.answer("a2", at=7)] == [
            {"b2": "e1"},
            {"a2": "e1"},
            {"new": "e1"},
        ]

    @pytest.mark.parametrize(
        ("deadline_s", "now_s", "urgency"),
        [
            (20, 10, 4 / 10),
            (None, 10, 4 / (1.5 * 8 - 10)),  # 1.5 times the seconds of all its eight steps
            (20, 30, 4 / 0.001),  # overdue: nothing but a millisecond is left
        ],
    )
    def test_urgency_is_work_to_come_over_the_time_to_the_deadline(
        self, deadline_s: int | None, now_s: int, urgency: float
    ) -> None:
        """Of four steps done, the one that asks and three to come, at a second each."""
        policy: Any = load("order", "saga", {})
        program = _Named(
            deadline=deadline_s and Instant(deadline_s * SECOND),
            opened_at=Instant(0),
            steps_done=4,
            agent="",
        )
        talk = _Named(is_resident=True)
        world = _Named(
            programs={"p": program},
            conversation=lambda step: talk,
            graph=lambda program: _Named(steps_left=lambda: 3.0),
        )
        step = _Named(program="p", arrived_at=Instant(7))
        now = Instant(now_s * SECOND)
        assert policy.rank(step, world, now=now) == (0.0, pytest.approx(-urgency))
        talk.is_resident = False
        assert policy.rank(step, world, now=now) == (1.0, 7.0)

    def test_an_overdue_program_takes_everything(self, floor: Floors) -> None:
        """The method's own defect: urgency grows without end."""
        f = floor(order=order("saga"), admit=ONE)
        for name, due in (("a", 10), ("b", 1_000)):
            f.ask(name, f"p{name}", at=0, deadline=Instant(due * SECOND))
            f.answer(name, at=1)
        f.ask("x", "px", at=1)
        f.ask("b2", "pb", 1_100, at=2)
        f.ask("a2", "pa", 1_100, at=20)
        assert f.rank("a2")[1] < -1e3 < f.rank("b2")[1]


class TestDlpm:
    def test_rounds_that_a_tenant_needs(self, floor: Floors) -> None:
        f = floor(order=order("dlpm", quantum=1_000, output_weight=2.0), admit=ONE)
        f.ask("a", "pa", 900, at=0, tenant="a")
        # Deficit 1,000 - 900; then 600 tokens of output at 2 each: -1,100, which is two rounds.
        f.answer("a", at=1, prompt=900, output=600)
        f.ask("x", "px", 50, at=1, tenant="x")
        f.ask("a2", "pa", 1_600, at=1, tenant="a")
        f.ask("b", "pb", 1_600, at=1, tenant="b", head="other")
        assert f.rank("a2") == (2.0, -1_500.0)
        assert f.rank("b") == (0.0, 0.0)
        assert f.answer("x", at=2, prompt=50, output=0) == {"b": "e1"}

    def test_the_longer_cached_prefix_goes_first(self, floor: Floors) -> None:
        f = floor(order=order("dlpm", quantum=10**6), admit=ONE)
        for name, tokens in (("a", 1_000), ("b", 2_000)):
            f.ask(name, f"p{name}", tokens, at=0)
            f.answer(name, at=1, prompt=tokens)
        f.ask("x", "px", 50, at=1)
        f.ask("a2", "pa", 1_100, at=1)
        f.ask("b2", "pb", 2_100, at=2)
        assert f.answer("x", at=3) == {"b2": "e1"}

    def test_a_refill_comes_with_the_one_that_needed_it(self, floor: Floors) -> None:
        f = floor(order=order("dlpm", quantum=1_000), admit=ONE)
        f.ask("a", "pa", 2_500, at=0, tenant="a")
        f.ask("b", "pb", 2_500, at=0, tenant="b")
        assert f.answer("a", at=1, prompt=2_500, cached=0, output=0) == {"b": "e1"}
        f.ask("a2", "pa", 2_500, at=1, tenant="a")
        f.ask("b2", "pb", 2_500, at=1, tenant="b")
        # Both are at -1,500: two rounds each, so they are equal again.
        assert f.rank("a2")[0] == f.rank("b2")[0] == 2.0


class TestThunderAgent:
    def test_served_first_then_smallest(self, floor: Floors) -> None:
        f = floor(order=order("thunderagent"), admit=ONE)
        f.ask("a", "pa", 3_000, at=0)
        f.answer("a", at=1)
        f.ask("x", "px", 50, at=1)
        f.ask("b", "pb", 100, at=2)
        f.ask("c", "pc", 80, at=3)
        f.ask("a2", "pa", 3_100, at=4)
        assert f.answer("x", at=5) == {"a2": "e1"}
        assert f.answer("a2", at=6) == {"c": "e1"}


class TestContinuum:
    def test_pinned_first_then_the_oldest_program(self) -> None:
        policy: Any = load("order", "continuum", {})
        world, steps = programs(pa=0, pb=1)
        assert policy.rank(steps["pb"], world, now=Instant(0)) == (1.0, 1.0)
        policy.decided((pin(program="pb", conversation="b", until=5),), now=Instant(0))
        assert policy.rank(steps["pb"], world, now=Instant(5)) == (0.0, 1.0)
        assert policy.rank(steps["pa"], world, now=Instant(5)) == (1.0, 0.0)
        assert policy.rank(steps["pb"], world, now=Instant(6)) == (1.0, 1.0)
        policy.decided((unpin(),), now=Instant(6))
        assert policy.rank(steps["pb"], world, now=Instant(5)) == (1.0, 1.0)
        assert policy.priority(steps["pa"], world, now=Instant(5)) == 1


class TestKvflow:
    def test_what_is_loading_is_passed_over(self) -> None:
        policy: Any = load("order", "kvflow", {"loading_s_max": 2.0})
        world, steps = programs(pa=0, pb=1)
        policy.decided((prefetch("warm", "pa", conversation="a"),), now=Instant(0))
        assert policy.rank(steps["pa"], world, now=Instant(1))[0] == 1.0
        assert policy.rank(steps["pb"], world, now=Instant(1))[0] == 0.0
        assert policy.rank(steps["pa"], world, now=after(Instant(0), seconds(2)))[0] == 0.0
        policy.observe(
            HintAnswered(pin=PinId("warm"), outcome=HintOutcome.ACCEPTED), now=Instant(2)
        )
        assert policy.rank(steps["pa"], world, now=Instant(2))[0] == 0.0


class _Named:
    """A step, program or world of so many words."""

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)


def programs(**ordinals: int) -> tuple[Any, dict[str, Any]]:
    world = _Named(programs={name: _Named(ordinal=n) for name, n in ordinals.items()})
    steps = {
        name: _Named(program=name, conversation=name.removeprefix("p"), arrived_at=Instant(0))
        for name in ordinals
    }
    return world, steps


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("autellix", {"variant": "x"}),
        ("autellix", {"beta": 0}),
        ("hexgen", {"slo_s": 0}),
        ("saga", {"stretch": 0}),
        ("dlpm", {"quantum": 0}),
        ("kvflow", {"loading_s_max": 0}),
    ],
)
def test_parameters_that_make_no_sense(name: str, params: dict[str, object]) -> None:
    with pytest.raises(PolicyError, match="bad parameters"):
        load("order", name, params)


class TestRemainingWork:
    """Steps left x tokens; a share of 0.36 of the time that is left is worth a factor of 0.6."""

    def build(self, floor: Floors, **more: Any) -> Any:
        f = floor(order=order("remaining-work"), admit=ONE, **more)
        f.ask("x", "px", 50, at=0)
        return f

    def test_a_deadline_makes_work_smaller_as_it_comes_near(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 1_000, at=0)
        f.ask("b", "pb", 1_000, at=0, deadline=Instant(100 * SECOND))
        f.tick(at=64)
        assert f.rank("b")[-1] == pytest.approx(0.6 * f.rank("a")[-1])

    def test_a_deadline_that_has_passed_is_no_reason(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 1_000, at=0)
        f.ask("b", "pb", 1_000, at=0, deadline=Instant(10 * SECOND))
        f.tick(at=11)
        assert f.rank("b") == f.rank("a")

    def test_work_is_steps_by_tokens_and_shrinks_with_the_wait(self, floor: Floors) -> None:
        f = self.build(floor, wait_s=100)
        f.ask("a", "pa", 1_000, at=0)
        assert f.rank("a")[-1] == pytest.approx(10 * 1_000)
        f.tick(at=75.0)  # three quarters of 100 s
        assert f.rank("a")[-1] == pytest.approx(10 * 1_000 * 0.5)
