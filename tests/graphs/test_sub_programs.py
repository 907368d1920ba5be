"""For how long a program waits for those that it opened: until their work is over, or it acts."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import (
    ContinuedElsewhere,
    ConversationId,
    Lineage,
    ProgramId,
    ProgramOpened,
    StepCancelled,
    StepClass,
    StepFailed,
    StepId,
    TenantId,
)
from agentsched_graphs.outlook import Outlook

P, Q = ProgramId("p"), ProgramId("q")


def view(course: Any, program: ProgramId = P) -> Outlook:
    found = course.builder.view(program)
    assert isinstance(found, Outlook)
    return found


def waits(course: Any) -> bool:
    return view(course).is_waiting_for_children()


def child(course: Any, step: str, *tools: str, program: str = "q", **more: Any) -> None:
    course.step(step, *tools, conversation=f"c{program}", program=program, parent=P, **more)


def elsewhere(course: Any, seconds: float) -> None:
    """Time passes, as the graphs learn from what another program does."""
    course.pass_time(seconds)
    course.step(f"other{course.now}", conversation="other", program="other")


@pytest.fixture
def pair(course: Any) -> Any:
    """A program that called a tool, and the sub-program that it opened, which called one, too."""
    course.step("s1", "t:Task", lineage=Lineage.NEW)
    child(course, "q1", "x:Read", lineage=Lineage.NEW)
    assert waits(course)
    assert view(course).fan_out() == 1
    return course


def test_a_last_word_ends_it(pair: Any) -> None:
    child(pair, "r1", "y:Read", program="r", lineage=Lineage.NEW)
    assert view(pair).fan_out() == 2
    child(pair, "q2", answers=["x"])
    assert waits(pair)  # for the other one
    assert view(pair).fan_out() == 1
    child(pair, "r2", program="r", answers=["y"])
    assert not waits(pair)
    assert view(pair).fan_out() == 0


def test_who_is_waited_for_beside_whom(pair: Any) -> None:
    def beside(*programs: str) -> list[int | None]:
        return [view(pair).subprograms_beside(ProgramId(key)) for key in programs]

    assert beside("q", "p", "unknown") == [0, None, None]
    child(pair, "r1", "y:Read", program="r", lineage=Lineage.NEW)
    assert beside("q", "r") == [1, 1]
    pair.step("k1", "z:Read", conversation="k", lineage=Lineage.SPAWNED, parent_conversation="c")
    assert beside("q", "r") == [2, 2]  # a sub-agent of its own, too
    child(pair, "r2", program="r", answers=["y"])
    pair.step("k2", conversation="k", answers=["z"])
    assert beside("q", "r") == [0, None]
    pair.arrive("s2")
    assert beside("q") == [None]


def test_so_does_a_pause_that_is_probably_the_last(course: Any) -> None:
    for number in range(30):
        name = f"p{number}"
        talk = {"conversation": name, "program": name}
        for step in range(number % 6):
            course.step(f"e{number}-{step}", f"k{number}-{step}:Read", **talk)
        course.step(f"e{number}", f"k{number}:submit", **talk)
        course.close(name)
    course.step("s1", "t:Task", lineage=Lineage.NEW)
    child(course, "q1", "x:Read", lineage=Lineage.NEW)
    assert waits(course)
    child(course, "q2", "z:submit", answers=["x"])
    assert not waits(course)
    # It was not: what follows is waited for again, for nobody went on meanwhile.
    child(course, "q3", "y:Read", answers=["z"])
    assert waits(course)


def test_so_does_silence_until_it_speaks_again(pair: Any) -> None:
    elsewhere(pair, 50)
    assert waits(pair)
    elsewhere(pair, 50)
    assert not waits(pair)
    pair.arrive("q2", "cq", "q", answers=["x"])
    assert waits(pair)


def test_one_that_was_announced_and_never_came(course: Any) -> None:
    course.step("s1", "t:Task", lineage=Lineage.NEW)
    course.feed(ProgramOpened(program=Q, tenant=TenantId("t"), parent=P))
    assert waits(course)
    elsewhere(course, 100)
    assert not waits(course)


@pytest.mark.parametrize(
    "end", [StepCancelled(step=StepId("q2"), reason="x"), StepFailed(step=StepId("q2"), reason="x")]
)
def test_one_whose_client_is_gone(pair: Any, end: Any) -> None:
    pair.arrive("q2", "cq", "q", answers=["x"])
    elsewhere(pair, 100)
    assert waits(pair)  # its step runs for long
    pair.feed(end)
    assert waits(pair)  # it may ask again
    elsewhere(pair, 100)
    assert not waits(pair)


def test_one_that_was_released_and_goes_on(pair: Any) -> None:
    pair.close("q")
    assert not waits(pair)
    pair.arrive("q2", "cq", "q", answers=["x"])
    assert waits(pair)


def test_whoever_goes_on_does_not_wait(pair: Any) -> None:
    pair.step("s2", "u:Bash")
    assert not waits(pair)
    assert view(pair).fan_out() == 1  # it works on behind
    child(pair, "q2", "y:Read", answers=["x"])
    pair.close("q")
    pair.step("s3", "v:Bash", answers=["u"])
    assert ("q", "s3", "joins") in pair.edges()


def test_a_title_or_another_conversations_step_is_not_its_own(pair: Any) -> None:
    pair.step("title", step_class=StepClass.AUXILIARY)
    pair.step("b1", "w:Bash", conversation="b", lineage=Lineage.NEW)
    assert waits(pair)
    # Under another id it is the same conversation.
    pair.step(
        "s2",
        "u:Bash",
        conversation="c'",
        lineage=Lineage.COMPACTS,
        parent_conversation=ConversationId("c"),
    )
    assert not waits(pair)


def test_one_that_is_asked_again_is_waited_for_again(pair: Any) -> None:
    child(pair, "q2", answers=["x"])
    pair.step("s2", "u:Send", answers=["t"])
    assert not waits(pair)
    child(pair, "q3", "y:Read")
    assert waits(pair)
    child(pair, "q4", answers=["y"])
    assert not waits(pair)


def test_whose_last_word_was_heard_is_joined_by_whoever_goes_on(pair: Any) -> None:
    child(pair, "q2", answers=["x"])
    pair.step("s2", "u:Bash", answers=["t"])
    pair.close("q")  # it is forgotten much later, which says nothing
    pair.step("s3", answers=["u"])
    assert {edge for edge in pair.edges() if edge[2] == "joins"} == {("q", "s2", "joins")}


def test_one_that_was_rewritten_under_another_id_ends_with_its_last_word(pair: Any) -> None:
    pair.step(
        "q2",
        conversation="cq'",
        program="q",
        lineage=Lineage.COMPACTS,
        parent_conversation=ConversationId("cq"),
    )
    assert not waits(pair)


def test_what_ended_while_its_parent_was_taken_to_be_over(pair: Any) -> None:
    pair.close("p")
    pair.close("q")
    pair.step("s2", "u:Bash", answers=["t"])
    assert not waits(pair)
    assert ("q", "s2", "joins") in pair.edges()


def test_one_that_waits_itself_is_not_silent(pair: Any) -> None:
    pair.arrive("k1", "ck", "k", parent=Q)
    elsewhere(pair, 100)
    assert waits(pair)
    pair.finish("k1")
    elsewhere(pair, 100)
    assert not waits(pair)


def test_one_that_another_replica_serves_is_not_silent(pair: Any) -> None:
    pair.feed(ContinuedElsewhere(program=Q, conversation=ConversationId("cq")))
    elsewhere(pair, 100)
    assert waits(pair)
    pair.step("s2", "u:Bash", answers=["t"])
    assert not waits(pair)


def test_two_that_are_each_others_children(pair: Any) -> None:
    pair.close("p")
    pair.arrive("s2", "c", "p", parent=Q)
    pair.finish("s2", "u:Task")
    elsewhere(pair, 100)
    for program in (P, Q):
        assert not view(pair, program).is_waiting_for_children()
