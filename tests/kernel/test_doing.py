"""What a program is doing: the liveliest of its conversations says it, the earliest since when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shorthand import arrived, at

from agentsched.kernel.doing import Doing, by_program, doing
from agentsched.kernel.records import ConversationRecord, ProgramRecord, StepRecord
from agentsched.model import (
    CallId,
    ConversationId,
    ProgramId,
    StepId,
    StepState,
    TenantId,
    ToolName,
)


def program(**conversations: Any) -> ProgramRecord:
    """One that was last heard of at 9 s; its conversations by name, and what is said of them."""
    record = ProgramRecord(
        program=ProgramId("p"), tenant=TenantId("t"), ordinal=0, opened_at=at(0), last_at=at(9)
    )
    for name, said in conversations.items():
        key = ConversationId(name)
        record.conversations[key] = ConversationRecord(
            conversation=key, program=record.program, last_at=at(9), **said
        )
    return record


def step(name: str, time_s: float, **said: Any) -> StepRecord:
    when = at(time_s)
    record = StepRecord(
        arrived=arrived(name), tenant=TenantId("t"), arrived_at=when, waiting_since=when
    )
    return replace(record, **said)


def sent(name: str, time_s: float, state: StepState = StepState.DISPATCHED) -> StepRecord:
    return step(name, 0, state=state, dispatched_at=at(time_s))


def test_it_runs_since_the_first_of_its_steps_was_sent() -> None:
    steps = [step("w", 1), sent("b", 4, StepState.RUNNING), sent("a", 3)]
    assert doing(program(), steps, is_pinned=True) == Doing(state="running", since=at(3))


def test_it_waits_for_what_its_eldest_step_waits_for() -> None:
    steps = [step("c", 5, held_for="later"), step("b", 2, held_for="room"), step("a", 5)]
    told = doing(program(), iter(steps), is_pinned=True)
    assert told == Doing(state="waiting", since=at(2), held_for="room")


def test_of_two_that_came_at_once_the_name_decides() -> None:
    steps = [step("b", 2, held_for="b's"), step("a", 2, held_for="a's")]
    assert doing(program(), steps, is_pinned=False).held_for == "a's"


def test_without_steps_it_is_pinned_paused_or_idle() -> None:
    tools = {CallId("c"): ToolName("bash")}
    waits = program(done={"is_over": True}, waits={"tools": tools})
    may_return = program(c={})
    over = program(a={"is_over": True}, b={"is_over": True})
    assert may_return.conversations[ConversationId("c")].may_go_on
    told = [doing(one, [], is_pinned=False) for one in (waits, may_return, over, program())]
    assert [one.state for one in told] == ["paused", "paused", "idle", "idle"]
    assert doing(over, [], is_pinned=True).state == "pinned"
    assert {one.since for one in told} == {at(9)}


def test_steps_are_told_by_their_program() -> None:
    one, two, other = (
        step("1", 1),
        step("2", 2),
        replace(step("3", 3), arrived=arrived("3", "q")),
    )
    steps = {StepId(s.step): s for s in (one, other, two)}
    assert by_program(steps) == {"p": [one, two], "q": [other]}
    assert by_program({}) == {}
