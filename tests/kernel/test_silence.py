"""An engine that takes steps and answers nothing: when it counts as silent, and what follows."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import at

from agentsched.kernel.silence import hear
from agentsched.model import (
    SECOND,
    Capabilities,
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLoad,
    EngineLost,
    EngineReported,
    EngineUnanswered,
    Reject,
    RejectReason,
    StepCancelled,
    StepFailed,
    StepId,
    seconds,
)

A, B = EngineId("a"), EngineId("b")
#: Its step is inside, and nothing moves.
STILL = EngineLoad(running=1, waiting=0, kv_usage=0.25, computed_tokens=7)


def look(rig: Any, time_s: float, load: EngineLoad = STILL, *, heard: float | None = None) -> None:
    """A look at `a` is answered."""
    heard_at = None if heard is None else at(heard)
    capabilities = Capabilities(warm=True)
    report = EngineReported(engine=A, capabilities=capabilities, load=load, heard_at=heard_at)
    rig.push(report, at=time_s)


def no_look(rig: Any, time_s: float, *, since: float, heard: float | None = None) -> None:
    """A look at `a`, begun at `since`, gets no answer."""
    heard_at = None if heard is None else at(heard)
    event = EngineUnanswered(engine=A, since=at(since), reason="no answer", heard_at=heard_at)
    rig.push(event, at=time_s)


def since(rig: Any) -> float | None:
    """Since when `a` is silent."""
    instant = rig.scheduler.engines[A].silent_since
    return None if instant is None else instant / SECOND


def where(commands: Any) -> list[EngineId]:
    return [c.engine for c in commands if isinstance(c, Dispatch)]


@pytest.fixture
def two(rig: Any) -> Any:
    """Two engines, of which `a` is taken first; it has one step since second 1."""
    rig.policy.score_of = lambda step, engine: float(engine.engine == A)
    rig.engine("a", at=0)
    rig.engine("b", at=0)
    assert where(rig.arrive("first", at=1, tokens=100)) == [A]
    return rig


class TestUnansweredLooks:
    def test_one_is_enough_where_no_byte_came_while_it_lasted(self, two: Any) -> None:
        no_look(two, 7, since=2)
        assert since(two) == 1.0

    def test_a_byte_meanwhile_says_that_it_works(self, two: Any) -> None:
        no_look(two, 7, since=2, heard=2.5)
        assert since(two) is None
        no_look(two, 14, since=9, heard=8.9)
        assert since(two) == 8.9

    def test_a_step_that_was_sent_meanwhile_had_no_time_to_answer(self, two: Any) -> None:
        no_look(two, 3, since=0.5)
        assert since(two) is None

    def test_with_nothing_inside_nothing_can_be_told(self, two: Any) -> None:
        two.finish("first", at=2)
        no_look(two, 9, since=4)
        assert since(two) is None

    def test_the_next_answer_heals_it_whatever_it_reads(self, two: Any) -> None:
        look(two, 2)
        no_look(two, 9, since=4)
        assert since(two) is not None
        look(two, 11)
        assert since(two) is None
        assert two.scheduler.engines[A].returned_at == at(11)


class TestAnsweredLooks:
    @pytest.mark.parametrize(("time_s", "expected"), [(11.9, None), (12.1, 2.0)])
    def test_silent_after_so_long_without_anything_that_moves(
        self, two: Any, time_s: float, expected: float | None
    ) -> None:
        look(two, 2)
        for known in (4, 6, 8, 10, time_s):
            look(two, known)
        assert since(two) == expected

    @pytest.mark.parametrize(
        "moved",
        [
            EngineLoad(running=1, waiting=0, kv_usage=0.25, computed_tokens=8),
            EngineLoad(running=1, waiting=0, kv_usage=0.26, computed_tokens=7),
            EngineLoad(running=2, waiting=0, kv_usage=0.25, computed_tokens=7),
        ],
    )
    def test_any_gauge_that_moves_is_a_sign_of_life(self, two: Any, moved: EngineLoad) -> None:
        look(two, 2)
        look(two, 10, moved)
        look(two, 14, moved)
        assert since(two) is None
        look(two, 20.5, moved)
        assert since(two) == 10.0
        look(two, 22)
        assert since(two) is None

    def test_a_queue_that_grows_is_none(self, two: Any) -> None:
        for time_s in range(2, 16, 2):
            look(two, time_s, EngineLoad(running=1, waiting=time_s, kv_usage=0.25))
        assert since(two) == 2.0

    def test_bytes_are_signs_of_life_where_gauges_stand(self, two: Any) -> None:
        two.start("first", at=2)
        for time_s in range(4, 60, 2):
            look(two, time_s, heard=time_s - 1.5)
            assert since(two) is None

    def test_an_engine_without_gauges_is_not_judged_by_them(self, two: Any) -> None:
        for time_s in range(2, 60, 2):
            look(two, time_s, EngineLoad())
            assert since(two) is None

    def test_a_long_prompt_has_the_time_that_it_takes(self, two: Any) -> None:
        """A minute for 100,000 tokens in one go, none of which the engine shows."""
        assert where(two.arrive("long", program="p2", at=2, tokens=100_000)) == [A]
        look(two, 2)
        for time_s in range(4, 72, 2):
            look(two, time_s)
            assert since(two) is None
        look(two, 73)
        assert since(two) == 2.0

    def test_what_has_begun_to_answer_asks_for_no_patience(self, two: Any) -> None:
        two.arrive("long", program="p2", at=2, tokens=100_000)
        two.start("long", at=3)
        look(two, 3)
        look(two, 14)
        assert since(two) == 3.0

    def test_an_engine_that_is_slow_by_its_own_law_has_more(self, two: Any) -> None:
        two.arrive("slow", program="p2", at=2, tokens=10_000)
        two.start("slow", at=22)  # 2 ms a token
        two.finish("slow", at=23, prompt=10_000)
        two.arrive("again", program="p3", at=24, tokens=10_000)
        look(two, 24)
        look(two, 50)
        assert since(two) is None
        look(two, 80)
        assert since(two) == 24.0


class TestWhatFollows:
    def test_new_steps_go_elsewhere_and_what_began_stays(self, two: Any) -> None:
        no_look(two, 7, since=2)
        assert where(two.arrive("new", program="p2", at=8)) == [B]
        assert [s.step for s in two.scheduler.engines[A].running.values()] == ["first"]
        two.start("first", at=9)
        assert since(two) is None

    def test_a_conversation_goes_on_elsewhere(self, two: Any) -> None:
        two.finish("first", at=2, tools={"c": "bash"})
        assert where(two.arrive("other", program="p2", at=3)) == [A]
        no_look(two, 9, since=4)
        assert where(two.arrive("second", at=10)) == [B]

    def test_without_another_of_its_model_it_gets_them_still(self, two: Any) -> None:
        two.engine("b", at=2, models=("other",))
        two.engine("a", at=2, models=("mine",))
        no_look(two, 9, since=4)
        assert since(two) is not None
        assert where(two.arrive("new", program="p2", at=10, model="mine")) == [A]
        two.push(EngineDrained(engine=B, is_draining=True), at=11)
        assert where(two.arrive("any", program="p3", at=12)) == [A]

    def test_when_all_are_silent_none_is_shunned(self, two: Any) -> None:
        two.policy.score_of = lambda step, engine: float(engine.engine == B)
        assert where(two.arrive("second", program="p2", at=2)) == [B]
        no_look(two, 9, since=4)
        event = EngineUnanswered(engine=B, since=at(4), reason="no answer")
        two.push(event, at=9)
        assert where(two.arrive("third", program="p3", at=10)) == [B]

    def test_the_bound_does_not_send_a_step_there(self, make_rig: Any) -> None:
        rig = make_rig(wait_ns_max=seconds(5), running_steps_per_engine_max=2)
        rig.policy.score_of = lambda step, engine: float(engine.engine == A)
        rig.engine("a", at=0)
        rig.engine("b", at=0)
        rig.arrive("first", at=1)
        no_look(rig, 3, since=2)
        for number in range(3):
            rig.arrive(f"next-{number}", program=f"p{number}", at=4)
        late = rig.timer(at=10)
        assert where(rig.commands) == [A, B, B]
        assert [(c.step, c.reason) for c in late if isinstance(c, Reject)] == [
            ("next-2", RejectReason.WAIT_BOUND)
        ]

    @pytest.mark.parametrize(
        "end",
        [
            StepCancelled(step=StepId("first"), reason="client"),
            StepFailed(step=StepId("first"), reason="silent for too long"),
        ],
    )
    def test_when_its_last_step_has_left_it_is_tried_little_by_little(
        self, two: Any, end: Any
    ) -> None:
        no_look(two, 7, since=2)
        two.push(end, at=8)
        assert since(two) is None
        assert two.scheduler.engines[A].returned_at == at(8)
        assert where(two.arrive("probe", program="p2", at=8)) == [A]
        # The slow start: no second one while the first has not answered.
        assert where(two.arrive("next", program="p3", at=8.1)) == [B]

    def test_one_that_is_lost_is_not_silent_too(self, two: Any) -> None:
        no_look(two, 7, since=2)
        two.push(EngineLost(engine=A, reason="no answer"), at=9)
        assert since(two) is None

    def test_a_look_at_an_engine_that_nobody_knows_changes_nothing(self, rig: Any) -> None:
        no_look(rig, 7, since=2)
        assert not rig.scheduler.engines[A].is_alive

    def test_a_byte_of_a_well_engine_is_no_return(self, two: Any) -> None:
        hear(two.scheduler.engines[A], now=at(2))
        assert two.scheduler.engines[A].returned_at is None
