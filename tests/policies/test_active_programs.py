"""ThunderAgent's count of programs by hand: who is let in, who is paused, who leaves."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import answered, arrived, at, prefix, reported

from agentsched.model import (
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLost,
    Instant,
    ProgramClosed,
    ProgramId,
    Reject,
    RejectReason,
    StepCancelled,
    StepClass,
    StepFailed,
    StepId,
    StepStarted,
)
from agentsched_policies.active_programs import ActiveProgram, ActivePrograms

E1, E2 = EngineId("e1"), EngineId("e2")
#: What each program counts beside its tokens.
EXTRA = 100


class Count:
    """A count that ticks once a second, of engines that hold so many tokens."""

    def __init__(self, *, acting_weight: float = 0.5, **engines: int | None) -> None:
        self.programs = ActivePrograms(tick_s=1.0, acting_weight=acting_weight)
        self.now = 0.0
        for name, tokens in engines.items():
            self.see(reported(name, kv_tokens=tokens))

    def see(self, event: Any) -> None:
        self.programs.observe(event, now=at(self.now))

    def tick(self) -> None:
        """A second goes by; anything that is observed then makes it look again."""
        self.now += 1.0
        self.see(StepCancelled(step=StepId("nobody's"), reason="left"))

    def arrive(self, step: str, program: str, tokens: int, **more: Any) -> None:
        whole = prefix(f"{program}/{tokens}", tokens)
        self.see(arrived(step, program, tokens=tokens, prefixes=(whole,), **more))

    def send(self, step: str, engine: EngineId = E1) -> None:
        self.programs.decided([Dispatch(step=StepId(step), engine=engine)], now=at(self.now))

    def finish(self, step: str, *, prompt: int, is_last: bool = False) -> None:
        self.see(answered(step, is_last=is_last, prompt=prompt, cached=0))

    def of(self, program: str) -> ActiveProgram:
        found = self.programs.get(ProgramId(program))
        assert found is not None
        return found


def test_a_new_program_waits_for_the_tick_that_finds_room_for_it() -> None:
    count = Count(e1=1_000)
    count.arrive("a1", "a", 800)
    count.arrive("b1", "b", 50)
    assert count.of("a").is_paused
    count.tick()
    # The smallest first: 150 of 1,000 for b; a with its 900 finds 850.
    assert not count.of("b").is_paused
    assert count.of("a").is_paused
    assert count.programs.room(E1) == 1_000 - (50 + EXTRA)
    assert not count.programs.is_queue_empty_but_for(ProgramId("b"))
    assert count.programs.is_queue_empty_but_for(ProgramId("a"))


def test_the_largest_goes_to_where_most_room_is() -> None:
    count = Count(e1=1_000, e2=2_000)
    count.arrive("a1", "a", 700)
    count.arrive("b1", "b", 300)
    count.tick()
    assert (count.of("a").engine, count.of("b").engine) == (E2, E2)
    assert count.programs.room(E2) == 2_000 - 800 - 400


def test_what_was_sent_is_active_whoever_sent_it() -> None:
    count = Count(e1=100)
    count.arrive("a1", "a", 800)
    count.send("a1")
    a = count.of("a")
    assert (a.is_paused, a.running, a.waiting, a.engine) == (False, 1, 0, E1)
    assert count.programs.room(E1) == 100 - 900


def test_an_acting_program_counts_less_and_is_paused_first() -> None:
    count = Count(e1=2_000, acting_weight=0.5)
    for program, tokens in (("a", 1_000), ("b", 700)):
        count.arrive(f"{program}1", program, tokens)
        count.send(f"{program}1")
    count.finish("a1", prompt=1_000)
    assert count.programs.room(E1) == 2_000 - (EXTRA + 500) - (EXTRA + 700)
    count.finish("b1", prompt=1_900)
    count.arrive("b2", "b", 1_900)
    count.send("b2")
    count.tick()
    # 600 and 2,000 in 2,000: who acts is paused, who computes goes on.
    assert count.of("a").is_paused
    assert not count.of("b").is_paused
    assert not count.of("b").is_marked


def test_a_reasoning_program_that_must_go_is_marked_and_pauses_at_its_next_step() -> None:
    count = Count(e1=2_000)
    for program in ("a", "b"):
        count.arrive(f"{program}1", program, 1_000)
        count.send(f"{program}1")
    count.tick()
    assert [count.of(p).is_marked for p in "ab"] == [True, False]
    assert not count.of("a").is_paused
    count.tick()  # one that is marked already is as good as gone
    assert [count.of(p).is_marked for p in "ab"] == [True, False]
    count.finish("a1", prompt=1_000)
    count.arrive("a2", "a", 1_100)
    assert (count.of("a").is_paused, count.of("a").is_marked) == (True, False)


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_step_that_ends_otherwise_is_neither_waiting_nor_running(is_sent: bool) -> None:
    count = Count(e1=2_000)
    count.arrive("a1", "a", 500)
    if is_sent:
        count.send("a1")
    count.see(StepCancelled(step=StepId("a1"), reason="left"))
    assert (count.of("a").waiting, count.of("a").running) == (0, 0)
    assert not count.of("a").is_reasoning


@pytest.mark.parametrize("is_sent", [True, False])
def test_whose_client_left_before_it_was_served_takes_no_room_and_no_place_in_the_queue(
    is_sent: bool,
) -> None:
    count = Count(e1=2_000)
    count.arrive("a1", "a", 1_500)
    if is_sent:
        count.send("a1")
    count.see(StepCancelled(step=StepId("a1"), reason="left"))
    assert count.programs.is_queue_empty_but_for(ProgramId("b"))
    count.tick()
    assert count.programs.room(E1) == 2_000
    # When it asks again it is as new.
    count.arrive("a2", "a", 1_500)
    assert not count.programs.is_queue_empty_but_for(ProgramId("b"))
    count.tick()
    assert not count.of("a").is_paused
    assert count.programs.room(E1) == 2_000 - (1_500 + EXTRA)


def test_a_step_that_may_be_sent_again_waits_again() -> None:
    count = Count(e1=2_000)
    count.arrive("a1", "a", 500)
    count.send("a1")
    count.see(StepFailed(step=StepId("a1"), reason="x", is_retryable=True))
    assert (count.of("a").waiting, count.of("a").running) == (1, 0)


def test_a_first_token_is_no_end() -> None:
    count = Count(e1=2_000)
    count.arrive("a1", "a", 500)
    count.send("a1")
    count.see(StepStarted(step=StepId("a1")))
    assert (count.of("a").waiting, count.of("a").running) == (0, 1)


def test_a_closed_programs_last_step_ends_without_it() -> None:
    count = Count(e1=2_000)
    count.arrive("a1", "a", 500)
    count.send("a1")
    count.see(ProgramClosed(program=ProgramId("a"), reason="done"))
    count.finish("a1", prompt=500)
    assert count.programs.get(ProgramId("a")) is None
    assert count.programs.room(E1) == 2_000


def test_programs_leave_with_their_last_word_their_end_or_a_no() -> None:
    count = Count(e1=5_000)
    for program in "abc":
        count.arrive(f"{program}1", program, 500)
    count.send("a1")
    count.finish("a1", prompt=500, is_last=True)
    count.see(ProgramClosed(program=ProgramId("b"), reason="done"))
    no = Reject(step=StepId("c1"), reason=RejectReason.QUEUE_FULL)
    count.programs.decided([no], now=Instant(0))
    assert [count.programs.get(ProgramId(p)) for p in "abc"] == [None, None, None]


@pytest.mark.parametrize(
    "step_class",
    [StepClass.AUXILIARY, StepClass.COMPACTION, StepClass.PROBE, StepClass.TOKEN_COUNT],
)
def test_a_word_beside_its_work_is_not_its_last_and_says_nothing_of_its_size(
    step_class: StepClass,
) -> None:
    count = Count(e1=5_000)
    count.arrive("a1", "a", 1_000)
    count.send("a1")
    count.finish("a1", prompt=1_000)
    for program in ("a", "title"):
        count.arrive(f"of {program}", program, 50, step_class=step_class)
        count.send(f"of {program}")
        count.finish(f"of {program}", prompt=50, is_last=True)
    a = count.of("a")
    assert (a.steps, a.tokens, a.is_paused, a.is_reasoning) == (1, 1_000, False, False)
    # Where nothing else was asked for, that was all.
    assert count.programs.get(ProgramId("title")) is None


def test_nobody_resumes_on_an_engine_that_is_drained() -> None:
    count = Count(e1=1_000, e2=9_000)
    count.see(EngineDrained(engine=E2, is_draining=True))
    count.arrive("a1", "a", 700)
    count.arrive("b1", "b", 5_000)
    count.tick()
    assert (count.of("a").engine, count.of("a").is_paused) == (E1, False)
    assert count.of("b").is_paused
    count.see(EngineDrained(engine=E2, is_draining=False))
    count.tick()
    assert (count.of("b").engine, count.of("b").is_paused) == (E2, False)


def test_drains_of_engines_that_went_are_forgotten() -> None:
    count = Count()
    for number in range(300):
        engine = EngineId(f"e{number}")
        count.see(reported(engine))
        count.see(EngineDrained(engine=engine, is_draining=True))
        count.see(EngineLost(engine=engine, reason="scaled in"))
    assert len(count.programs._drained) == 256


def test_one_that_was_served_outlives_a_no() -> None:
    count = Count(e1=5_000)
    count.arrive("a1", "a", 500)
    count.send("a1")
    count.finish("a1", prompt=500)
    count.arrive("a2", "a", 600)
    no = Reject(step=StepId("a2"), reason=RejectReason.QUEUE_FULL)
    count.programs.decided([no], now=Instant(0))
    assert (count.of("a").steps, count.of("a").waiting) == (1, 0)


def test_an_engine_of_unknown_size_has_room_for_all_and_a_lost_one_for_none() -> None:
    count = Count(e1=None)
    count.arrive("a1", "a", 10**9)
    count.tick()
    assert not count.of("a").is_paused
    count.see(EngineLost(engine=E1, reason="crash"))
    assert count.programs.room(E1) < 0


def test_parameters_out_of_range_are_refused() -> None:
    for tick_s, weight in ((0.0, 0.5), (1.0, -0.1), (1.0, 1.1)):
        with pytest.raises(ValueError, match="tick_s is positive"):
            ActivePrograms(tick_s=tick_s, acting_weight=weight)


def test_programs_are_counted_once_for_all_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every waiting step is asked for on every engine."""
    count = Count(e1=10_000, e2=10_000)
    for number in range(5):
        count.arrive(f"s{number}", f"p{number}", 1_000)
        count.send(f"s{number}", (E1, E2)[number % 2])
    weighed: list[ProgramId] = []
    weigh = ActivePrograms._weight
    monkeypatch.setattr(
        ActivePrograms, "_weight", lambda one, p: weighed.append(p.program) or weigh(one, p)
    )
    for _ in range(20):
        assert count.programs.room(E1) == 10_000 - 3 * (1_000 + EXTRA)
        assert count.programs.room(E2) == 10_000 - 2 * (1_000 + EXTRA)
        assert count.programs.is_queue_empty_but_for(ProgramId("nobody"))
    assert len(weighed) == 5
    # Until something happens: its tools run, so half of it counts, and another waits.
    count.finish("s0", prompt=1_000)
    assert count.programs.room(E1) == 10_000 - 2 * (1_000 + EXTRA) - (500 + EXTRA)
    count.arrive("new", "new", 1_000)
    assert count.programs.is_queue_empty_but_for(ProgramId("new"))
    assert not count.programs.is_queue_empty_but_for(ProgramId("p0"))
    count.send("new")
    assert count.programs.room(E1) == 10_000 - 3 * (1_000 + EXTRA) - (500 + EXTRA)
