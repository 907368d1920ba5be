"""Last pauses: by tool, by steps, taken back, bounded; and what a builder makes of silence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.model import (
    SECOND,
    CallId,
    ContinuedElsewhere,
    ConversationId,
    ProgramClosed,
    ProgramId,
    StepCancelled,
    StepFailed,
    StepId,
    ToolName,
    ToolStarted,
)
from agentsched_graphs.finals import FinalPauses

BASH, SUBMIT = ToolName("bash"), ToolName("submit")
GREP, DONE = ToolName("bash grep"), ToolName("bash submit")


def run(finals: FinalPauses, *, steps: int, last: ToolName, others: ToolName = BASH) -> None:
    """A program that pauses for one tool all the way, and at last for another, for ever."""
    for step in range(1, steps):
        finals.ended(agent="a", tool=others, steps=step, is_last=False)
    finals.ended(agent="a", tool=last, steps=steps, is_last=True)


def chance(finals: FinalPauses, tool: ToolName, steps: int = 5) -> float:
    return finals.chance(agent="a", tool=tool, steps=steps)


def test_a_twentieth_of_all_before_anything_is_known() -> None:
    assert chance(FinalPauses(), BASH) == pytest.approx(0.05)


def test_the_tool_that_ends_the_work_is_told_from_the_others() -> None:
    finals = FinalPauses()
    for steps in range(8, 28):
        run(finals, steps=steps, last=SUBMIT)
    assert chance(finals, SUBMIT) > 0.9
    assert chance(finals, BASH) < 0.01
    assert chance(finals, ToolName("unheard")) < 0.1
    assert finals.chance(agent="another", tool=SUBMIT, steps=5) == pytest.approx(0.05)


def test_so_is_a_command_of_the_same_tool() -> None:
    """As mini-swe-agent says goodbye: a shell command like any other."""
    finals = FinalPauses()
    for steps in range(8, 28):
        run(finals, steps=steps, last=DONE, others=GREP)
    assert chance(finals, DONE) > 0.8
    assert chance(finals, GREP) < 0.01


def test_a_limit_of_steps_is_learnt_though_no_tool_tells() -> None:
    finals = FinalPauses()
    for _ in range(30):
        run(finals, steps=20, last=BASH)
    assert chance(finals, BASH, 20) > 0.8
    assert chance(finals, BASH, 19) < 0.1


def test_who_comes_back_after_all_leaves_no_trace() -> None:
    right, wrong = FinalPauses(), FinalPauses()
    for finals in (right, wrong):
        run(finals, steps=9, last=SUBMIT)
    wrong.ended(agent="a", tool=BASH, steps=3, is_last=True)
    wrong.took_back(agent="a", tool=BASH, steps=3)
    for finals in (right, wrong):
        finals.ended(agent="a", tool=BASH, steps=3, is_last=False)
    for tool in (BASH, SUBMIT):
        assert chance(wrong, tool, 3) == pytest.approx(chance(right, tool, 3))


def test_agents_change() -> None:
    """Where `submit` was the end and is no more, as much is unlearnt as was learnt."""
    finals = FinalPauses()
    for _ in range(2_000):
        run(finals, steps=2, last=SUBMIT)
    for _ in range(2_000):
        finals.ended(agent="a", tool=SUBMIT, steps=2, is_last=False)
    assert chance(finals, SUBMIT) < 0.1


def test_keys_are_bounded() -> None:
    finals = FinalPauses(keys_max=10)
    for steps in range(100):
        finals.ended(agent="a", tool=SUBMIT, steps=steps, is_last=True)
    assert len(finals._keys) == 10
    assert chance(finals, SUBMIT) > 0.9


def test_programs_that_fall_silent_teach_it(course: Any) -> None:
    for number in range(12):
        program = f"p{number}"
        for name in ("look", "edit"):
            course.step(f"{program}/{name}", f"{program}/{name}:bash", program=program)
        course.step(f"{program}/end", f"{program}/end:submit", program=program)
    course.pass_time(100)
    for number in range(12):  # two are given up at each event
        course.start(f"nobody {number}")
    main = ConversationId("c")
    course.step("x1", "x1:bash", program="x")
    outlook = course.builder.view(ProgramId("x"))
    assert outlook.last_pause_chance(main) < 0.1
    course.step("x2", "x2:submit", program="x")
    assert outlook.last_pause_chance(main) > 0.7
    course.arrive("x3", program="x")
    assert outlook.last_pause_chance(main) == 0.0
    assert outlook.last_pause_chance(ConversationId("unknown")) == 0.0


def test_a_return_after_a_minute_is_no_end(course: Any) -> None:
    course.step("s1", "s1:bash")
    course.pass_time(100)
    course.start("nobody")
    finals = course.builder.learnt.finals
    given_up = finals.chance(agent="agent", tool=BASH, steps=1)
    course.arrive("s2")
    assert finals.chance(agent="agent", tool=BASH, steps=1) < 0.05 < given_up


PAUSES = st.lists(
    st.tuples(
        st.sampled_from([BASH, SUBMIT, GREP, DONE]),
        st.integers(1, 4),
        st.sampled_from(["last", "no", "taken back"]),
    ),
    max_size=80,
)


def learnt(pauses: list[tuple[ToolName, int, str]], *, keys_max: int = 4_096) -> FinalPauses:
    finals = FinalPauses(keys_max=keys_max)
    for tool, steps, became in pauses:
        if became == "taken back":
            finals.took_back(agent="a", tool=tool, steps=steps)
        else:
            finals.ended(agent="a", tool=tool, steps=steps, is_last=became == "last")
    return finals


@given(pauses=PAUSES, keys_max=st.sampled_from([3, 4_096]))
def test_a_chance_is_one_whatever_was_learnt_in_which_order(
    pauses: list[tuple[ToolName, int, str]], keys_max: int
) -> None:
    """Also where what is taken back had been forgotten, or was never learnt."""
    finals = learnt(pauses, keys_max=keys_max)
    for tool in (BASH, SUBMIT, GREP, DONE):
        for steps in range(6):
            assert 0.0 <= chance(finals, tool, steps) <= 1.0
            assert chance(finals, tool, steps) == chance(finals, tool, steps)


@given(pauses=PAUSES, tool=st.sampled_from([BASH, SUBMIT, GREP]), steps=st.integers(1, 4))
def test_one_more_last_pause_makes_the_like_no_less_likely_to_be_the_last(
    pauses: list[tuple[ToolName, int, str]], tool: ToolName, steps: int
) -> None:
    seen = [pause for pause in pauses if pause[2] != "taken back"]
    less, more = learnt([*seen, (tool, steps, "no")]), learnt([*seen, (tool, steps, "last")])
    before = learnt(seen)
    assert chance(more, tool, steps) >= chance(before, tool, steps) - 1e-12
    assert chance(less, tool, steps) <= chance(before, tool, steps) + 1e-12


@given(pauses=PAUSES, data=st.data())
def test_in_which_order_pauses_were_seen_does_not_matter(
    pauses: list[tuple[ToolName, int, str]], data: st.DataObject
) -> None:
    seen = [pause for pause in pauses if pause[2] != "taken back"]
    shuffled = data.draw(st.permutations(seen))
    for tool in (BASH, SUBMIT, GREP, DONE):
        one, other = learnt(seen), learnt(shuffled)
        assert chance(one, tool) == pytest.approx(chance(other, tool))


def test_a_tool_that_only_its_runner_spoke_of_is_no_last_word(course: Any) -> None:
    """Agents that call tools in prose: each of their answers looks like the last one."""
    for number in range(12):
        course.step(f"p{number}/look", f"p{number}/look:bash", program=f"p{number}")
        course.step(f"p{number}/end", program=f"p{number}")
    course.pass_time(100)
    for number in range(12):
        course.start(f"nobody {number}")
    main, builder = ConversationId("c"), course.builder
    course.step("x1", program="x")
    outlook = builder.view(ProgramId("x"))
    assert outlook.last_pause_chance(main) > 0.7
    assert builder._forecasts.view(ProgramId("x")).counted == 1
    tool = ToolName("search")
    course.feed(ToolStarted(program=ProgramId("x"), call_id=CallId("t"), tool=tool))
    assert outlook.last_pause_chance(main) < 0.5
    assert builder._forecasts.view(ProgramId("x")).counted is None


@pytest.mark.parametrize("is_given_up", [False, True])
def test_who_goes_on_at_another_replica_has_not_ended(course: Any, *, is_given_up: bool) -> None:
    for name in ("look", "edit"):
        course.step(name, f"{name}:bash")
    if is_given_up:
        course.pass_time(100)
        course.start("nobody")
    builder = course.builder
    moved = ContinuedElsewhere(program=ProgramId("p"), conversation=ConversationId("c"))
    course.feed(moved)
    assert builder.view(ProgramId("p")).last_pause_chance(ConversationId("c")) == 0.0
    known, steps = chance_of(builder), expected(builder)
    course.pass_time(100)
    course.start("nobody 2")
    course.close()
    assert chance_of(builder) == known < 0.05
    assert expected(builder) == steps == 10.0


def test_time_at_another_replica_is_no_silence(course: Any) -> None:
    moved = ContinuedElsewhere(program=ProgramId("p"), conversation=ConversationId("c"))
    for number in range(40):
        course.step(f"s{number}", f"t{number}:bash")
        course.feed(moved)
        course.pass_time(1)
    assert course.builder._forecasts._silences._seen == 0


@pytest.mark.parametrize("end", ["reject", "cancel", "fail"])
def test_the_wait_of_who_got_no_answer_is_no_silence(course: Any, end: str) -> None:
    """It asks again when it was told to; how long others pause is not to be learnt from that."""
    course.step("s", "k:bash")
    course.pass_time(50)
    for number in range(80):
        step = StepId(f"r{number}")
        course.arrive(step)
        if end == "reject":
            course.reject(step)
        else:
            kind = StepCancelled if end == "cancel" else StepFailed
            course.feed(kind(step=step, reason="test"))
        course.pass_time(2)
    forecasts = course.builder._forecasts
    assert forecasts._silences._seen == 1
    assert forecasts.silence == 60 * SECOND
    course.step("t", "l:bash")
    course.pass_time(5)
    course.arrive("u")
    assert forecasts._silences._seen == 2


@pytest.mark.parametrize("is_silent", [False, True])
def test_who_goes_for_room_has_not_ended(course: Any, *, is_silent: bool) -> None:
    """Unless it had been silent for so long that it counted as over before."""
    for name in ("look", "edit"):
        course.step(name, f"{name}:bash")
    if is_silent:
        course.pass_time(100)
        course.start("nobody")
    builder = course.builder
    known, steps = chance_of(builder), expected(builder)
    course.feed(ProgramClosed(program=ProgramId("p"), reason="forgotten for room"))
    assert builder.view(ProgramId("p")) is None
    assert (chance_of(builder), expected(builder)) == (known, steps)
    assert (steps == 10.0) is not is_silent


def chance_of(builder: Any) -> float:
    return float(builder.learnt.finals.chance(agent="agent", tool=BASH, steps=2))


def expected(builder: Any) -> float:
    return float(builder._forecasts._remaining.expected(agent="agent", steps_done=0))
