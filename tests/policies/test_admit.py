"""Admission policies of published systems, with numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentsched.model import (
    SECOND,
    Capabilities,
    Dispatch,
    EngineId,
    EngineLoad,
    EngineLost,
    EngineReported,
    Instant,
    PolicyError,
    StepCancelled,
    StepClass,
    StepId,
)
from agentsched.policy import Admitted, Choice, load

Floors = Callable[..., Any]


class TestThunderAgent:
    """10,000 tokens; each program counts its tokens and 100."""

    def build(self, floor: Floors, **more: Any) -> Any:
        return floor(profile="thunderagent", **more)

    def test_new_programs_go_at_once_while_there_is_room_and_no_queue(self, floor: Floors) -> None:
        f = self.build(floor)
        assert f.ask("a", "pa", 6_000, at=0.1) == {"a": "e1"}
        assert f.ask("b", "pb", 6_000, at=0.2) == {"b": "e1"}  # room was 3,900: some is enough
        assert f.ask("c", "pc", 100, at=0.3) == {}  # 12,200 of 10,000
        assert f.ask("d", "pd", 100, at=0.4) == {}  # and now there is a queue

    def test_the_tick_pauses_the_smallest_acting_program(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 6_000, at=0.1)
        f.ask("b", "pb", 5_000, at=0.2)
        f.answer("a", at=1, prompt=5_990)
        f.answer("b", at=2, prompt=4_990)
        f.tick(at=5)  # 11,200 of 10,000: pb (5,000) is the smaller
        assert f.ask("a2", "pa", 6_100, at=6) == {"a2": "e1"}
        assert f.ask("b2", "pb", 5_100, at=6.1) == {}

    def test_a_paused_program_resumes_when_it_fits(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 6_000, at=0.1)
        f.ask("b", "pb", 5_000, at=0.2)
        f.answer("a", at=1, prompt=5_990)
        f.answer("b", at=2, prompt=4_990)
        f.tick(at=5)
        f.ask("b2", "pb", 5_100, at=6)
        f.close("pa", at=7)
        assert f.tick(at=9.9) == {}  # nobody looks before the tick
        assert f.tick(at=10) == {"b2": "e1"}

    def test_a_reasoning_program_is_marked_and_pauses_at_its_next_step(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 6_000, at=0.1)
        f.ask("b", "pb", 5_000, at=0.2)
        f.tick(at=5)  # both compute: pb is marked
        f.answer("a", at=6, prompt=5_990)
        f.answer("b", at=6, prompt=4_990)
        assert f.ask("b2", "pb", 5_100, at=7) == {}
        assert f.ask("a2", "pa", 6_100, at=7) == {"a2": "e1"}

    def test_served_programs_resume_before_new_ones_though_larger(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 9_000, at=0.1)
        f.ask("b", "pb", 5_000, at=0.2)
        f.answer("b", at=1, prompt=4_990)
        f.tick(at=5)  # pb acts: paused
        f.ask("new", "pn", 1_000, at=6)
        f.ask("b2", "pb", 5_100, at=7)
        f.answer("a", at=8, prompt=9_000, is_last=True)
        assert list(f.tick(at=10)) == ["b2", "new"]

    def test_the_bound_forces_a_step_that_fits_nowhere(self, floor: Floors) -> None:
        f = self.build(floor, wait_s=30)
        f.ask("a", "pa", 9_990, at=0)
        assert f.ask("b", "pb", 9_000, at=1) == {}
        assert f.tick(at=30.9) == {}
        assert f.tick(at=31) == {"b": "e1"}

    def test_its_own_patience_where_that_is_shorter(self, floor: Floors) -> None:
        admit = Choice(name="thunderagent", params={"resume_after_s": 12})
        f = self.build(floor, admit=admit)
        f.ask("a", "pa", 9_990, at=0)
        f.ask("b", "pb", 9_000, at=1)
        assert f.scheduler.next_deadline() == 5 * SECOND  # the next tick
        f.tick(at=10)
        assert f.scheduler.next_deadline() == 13 * SECOND  # sooner than the one at 15
        assert f.tick(at=12.9) == {}
        assert f.tick(at=13) == {"b": "e1"}

    def test_shared_prompts_count_once_a_program(self, floor: Floors) -> None:
        """A defect that belongs to the method: ten programs that share all count ten times."""
        f = self.build(floor)
        for number in range(10):
            f.ask(f"s{number}", f"p{number}", 1_000, at=number / 10, head="s")
        assert len(f.scheduler.engines["e1"].running) == 10
        assert f.ask("s10", "p10", 1_000, at=2) == {}


class TestConcur:
    def build(self, floor: Floors, **params: object) -> Any:
        params = {"start": 2, **params}
        return floor(profile="concur", admit=Choice(name="concur", params=params))

    def test_a_window_of_agents(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 2_000, at=0.1)
        f.ask("b", "pb", 2_000, at=0.2)
        assert f.ask("c", "pc", 2_000, at=0.3) == {}
        f.answer("a", at=0.4)  # it pauses and is active all the same
        assert f.tick(at=0.5) == {}
        assert f.ask("a2", "pa", 2_000, at=0.6) == {"a2": "e1"}
        assert [c.step for c in f.close("pb", at=0.7)] == ["c"]

    def test_use_below_the_low_mark_adds_one(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 500, at=1.1)
        f.ask("b", "pb", 500, at=1.2)
        f.ask("c", "pc", 500, at=1.3)
        f.ask("d", "pd", 500, at=1.4)
        assert f.scheduler.engines["e1"].running_steps == 3  # 0 s: 2, 1.1 s: 3 agents
        assert f.tick(at=2.2) == {"d": "e1"}  # 1,500 of 10,000 in use

    def test_use_above_the_high_mark_halves(self, floor: Floors) -> None:
        f = self.build(floor, start=4)
        for number in range(4):
            f.ask(f"s{number}", f"p{number}", 1_500, at=0.1)
        f.tick(at=1.1)  # 6,000 of 10,000: two agents from here on
        for number in range(4):
            f.answer(f"s{number}", at=1.2)
        started = [f.ask(f"t{number}", f"p{number}", 1_500, at=1.3) for number in range(4)]
        assert started == [{"t0": "e1"}, {"t1": "e1"}, {}, {}]

    @pytest.mark.parametrize("tokens", [2_000, 3_000, 5_000])
    def test_between_the_marks_nothing_changes(self, floor: Floors, tokens: int) -> None:
        """20 and 50 % are published; an agent more is for use below, a cut for use above."""
        f = self.build(floor)
        f.ask("a", "pa", tokens, at=0.1)
        f.tick(at=1.1)
        f.tick(at=2.2)
        assert f.ask("b", "pb", 100, at=2.3) == {"b": "e1"}
        assert f.ask("c", "pc", 100, at=2.4) == {}

    def test_the_engines_own_gauge_comes_first(self, floor: Floors) -> None:
        f = self.build(floor, start=4)
        gauge = EngineReported(
            engine=EngineId("e1"),
            capabilities=Capabilities(kv_tokens=10_000),
            load=EngineLoad(kv_usage=0.9),
        )
        f.feed(gauge, at=0.1)
        f.tick(at=1.1)  # nothing of ours runs, but the pool is full: half as many
        assert [f.ask(f"s{n}", f"p{n}", 100, at=1.2) for n in range(3)] == [
            {"s0": "e1"},
            {"s1": "e1"},
            {},
        ]

    def test_a_last_word_ends_an_agents_turn(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 2_000, at=0.1)
        f.ask("b", "pb", 2_000, at=0.2)
        assert f.ask("c", "pc", 2_000, at=0.3) == {}
        assert f.answer("a", at=0.4, is_last=True) == {"c": "e1"}

    def test_one_place_is_one_newcomers(self, floor: Floors) -> None:
        """All that wait are asked in one turn, and what is sent in it counts at once."""
        f = self.build(floor)
        for number in range(6):
            f.ask(f"s{number}", f"p{number}", 500, at=0.1)
        assert f.scheduler.engines["e1"].running_steps == 2
        assert f.tick(at=1.2) == {"s2": "e1"}  # a place more: 1,000 of 10,000 in use
        assert f.answer("s0", at=1.3, is_last=True) == {"s3": "e1"}
        assert f.tick(at=2.3) == {"s4": "e1"}

    def test_a_titles_last_word_ends_nobodys_turn(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("a", "pa", 2_000, at=0.1)
        f.ask("b", "pb", 2_000, at=0.2)
        f.ask("title", "pa", 200, at=0.2, branch="/title", step_class=StepClass.AUXILIARY)
        assert f.answer("title", at=0.3, prompt=200, is_last=True) == {}
        assert f.ask("c", "pc", 2_000, at=0.3) == {}
        f.answer("a", at=0.4)
        assert f.ask("a2", "pa", 2_000, at=0.5) == {"a2": "e1"}

    def test_a_title_alone_takes_no_agents_turn(self, floor: Floors) -> None:
        f = self.build(floor)
        f.ask("title", "p", 200, at=0.1, step_class=StepClass.AUXILIARY)
        f.ask("a", "pa", 2_000, at=0.1)
        assert f.ask("b", "pb", 2_000, at=0.2) == {"b": "e1"}

    def test_a_lost_engine_starts_with_a_new_window(self, floor: Floors) -> None:
        f = self.build(floor, start=3)
        for number in range(3):
            f.ask(f"s{number}", f"p{number}", 2_000, at=0.1)
        f.tick(at=1.1)
        admit = f.scheduler.policies.admit
        assert admit._engines["e1"].limit == 1.5  # 6,000 of 10,000
        f.lose("e1", at=1.2)
        assert not admit._engines
        # The end of what ran there is in no window any more.
        f.feed(StepCancelled(step=StepId("s0"), reason="left"), at=1.2)
        f.report("e1", kv_tokens=10_000, at=1.3)
        assert admit._engines["e1"].limit == 3.0

    def test_an_engine_without_a_window_lets_everybody_in(self, floor: Floors) -> None:
        f = self.build(floor, start=1)
        f.ask("a", "pa", 100, at=0.1)
        f.ask("b", "pb", 100, at=0.1)
        admit, step = f.scheduler.policies.admit, f.scheduler.steps["b"]
        engine = f.scheduler.engines["e1"]
        assert admit.admit(step, engine, f.world, now=Instant(0)).reason == "agents"
        admit.observe(EngineLost(engine=EngineId("e1"), reason="x"), now=Instant(0))
        assert isinstance(admit.admit(step, engine, f.world, now=Instant(0)), Admitted)
        # And what is sent there all the same fills no window.
        dispatch = Dispatch(step=StepId("b"), engine=EngineId("e1"))
        unknown = Dispatch(step=StepId("unknown"), engine=EngineId("e1"))
        admit.decided([unknown, dispatch], now=Instant(0))
        assert not admit._engines
        assert admit._active.get("pb") == "e1"


class TestDepthThatFits:
    def test_a_prompt_waits_for_room_as_it_would_in_the_engine(self, floor: Floors) -> None:
        f = floor(admit=Choice(name="depth", params={"fits": True}))
        assert f.ask("a", "pa", 6_000)
        assert f.ask("b", "pb", 4_100)  # the first 100 tokens are shared
        assert f.ask("c", "pc", 500) == {}
        assert f.answer("b") == {"c": "e1"}

    def test_a_beginning_that_is_not_there_is_shared_with_nobody(self, floor: Floors) -> None:
        f = floor(admit=Choice(name="depth", params={"fits": True}))
        assert f.ask("a", "pa", 6_000, head="one")
        assert f.ask("b", "pb", 4_050, head="another") == {}

    @pytest.mark.parametrize(
        "profile", ["autellix", "continuum", "kvflow", "saga", "hexgen", "dlpm"]
    )
    def test_profiles_that_reorder_an_engines_queue_keep_it_here(
        self, floor: Floors, profile: str
    ) -> None:
        f = floor(profile=profile)
        assert f.ask("a", "pa", 6_000)
        assert f.ask("b", "pb", 6_000) == {}

    def test_an_oversize_prompt_goes_alone(self, floor: Floors) -> None:
        f = floor(admit=Choice(name="depth", params={"fits": True}))
        assert f.ask("a", "pa", 60_000)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("thunderagent", {"tick_s": 0}),
        ("thunderagent", {"resume_after_s": 0}),
        ("concur", {"low": 0.5, "high": 0.4}),
        ("concur", {"start": 0}),
    ],
)
def test_parameters_that_make_no_sense(name: str, params: dict[str, object]) -> None:
    with pytest.raises(PolicyError, match="bad parameters"):
        load("admit", name, params)
