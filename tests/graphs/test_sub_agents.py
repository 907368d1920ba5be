"""Sub-agents: until when their parent waits for them, and what they teach under their own name."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import (
    CallId,
    ConversationId,
    Lineage,
    ProgramId,
    StepCancelled,
    StepClass,
    StepFailed,
    StepFinished,
    StepId,
    ToolCall,
    ToolName,
    Usage,
)
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.graph import GraphLimits
from agentsched_graphs.workflow import read_workflow

P, C = ProgramId("p"), ConversationId("c")
TASK = ToolName("Task")


def waits(course: Any) -> bool:
    return bool(course.builder.view(P).is_waiting_for_children())


def spawn(course: Any, step: str, conversation: str = "k", **more: Any) -> None:
    course.arrive(step, conversation, lineage=Lineage.SPAWNED, parent_conversation=C, **more)


def compact(course: Any, step: str, conversation: str, *tools: str, of: str = "c") -> None:
    more = {"lineage": Lineage.COMPACTS, "parent_conversation": ConversationId(of)}
    course.step(step, *tools, conversation=conversation, **more)


def finished(step: str, reason: str, *tools: str) -> StepFinished:
    calls = tuple(ToolCall(call_id=CallId(tool), tool=ToolName(tool)) for tool in tools)
    usage = Usage(prompt_tokens=100, cached_tokens=0, output_tokens=5)
    return StepFinished(step=StepId(step), usage=usage, tool_calls=calls, finish_reason=reason)


@pytest.fixture
def family(course: Any) -> Any:
    """A program that called a tool, and the sub-agent that it spawned, whose first step runs."""
    course.step("m1", "t:Task", lineage=Lineage.NEW)
    spawn(course, "k1")
    assert waits(course)
    return course


def beside(course: Any, *conversations: str) -> list[int | None]:
    view = course.builder.view(P)
    return [view.subagents_beside(ConversationId(key)) for key in conversations]


class TestJoin:
    def test_a_sibling_whose_tool_runs_is_waited_for_as_one_that_computes(
        self, family: Any
    ) -> None:
        assert beside(family, "k", "c", "unknown") == [0, None, None]
        spawn(family, "l1", "l")
        family.feed(finished("l1", "tool_calls", "Read"))
        assert beside(family, "k", "l") == [1, 1]
        family.step("l2", conversation="l", step_class=StepClass.SUBAGENT)
        assert beside(family, "k", "l") == [0, None]

    def test_sub_programs_are_waited_for_beside_it(self, family: Any) -> None:
        family.step("q1", "x:Read", conversation="cq", program="q", parent=P)
        assert beside(family, "k") == [1]
        family.close("q")
        assert beside(family, "k") == [0]

    def test_nobody_waits_once_their_parent_goes_on(self, family: Any) -> None:
        family.arrive("m2")
        assert beside(family, "k") == [None]


class TestWaiting:
    @pytest.mark.parametrize(
        "end",
        [
            StepCancelled(step=StepId("k1"), reason="x"),
            StepFailed(step=StepId("k1"), reason="x"),
            finished("k1", "length"),
            finished("k1", "tool_calls", "Read"),
        ],
        ids=["cancelled", "failed", "cut", "with a tool call"],
    )
    def test_one_that_never_says_its_last_word(self, family: Any, end: Any) -> None:
        family.feed(end)
        assert waits(family)  # it may be asked again
        family.step("m2", "u:Bash", answers=["t"])
        assert not waits(family)
        family.step("m3", "v:Bash", answers=["u"])
        assert not waits(family)

    def test_one_that_runs_while_its_parent_goes_on(self, family: Any) -> None:
        family.step("m2", "u:Bash")
        assert waits(family)
        family.feed(StepCancelled(step=StepId("k1"), reason="x"))
        assert waits(family)
        family.step("m3", "v:Bash", answers=["u"])
        assert not waits(family)

    def test_one_that_was_idle_then_is_waited_for_from_its_next_step_on(self, family: Any) -> None:
        family.finish("k1", "x:Read")
        family.step("m2", "u:Bash")
        assert not waits(family)
        family.arrive("k2", "k", answers=["x"])
        assert waits(family)
        family.finish("k2", "y:Read")
        assert waits(family)
        family.step("k3", conversation="k", answers=["y"])
        assert not waits(family)
        family.arrive("m3", answers=["t", "u"])
        assert ("k3", "m3", "joins") in family.edges()

    def test_a_title_is_no_going_on(self, family: Any) -> None:
        family.finish("k1", "x:Read")
        family.step("title", step_class=StepClass.AUXILIARY)
        assert waits(family)

    def test_a_parent_that_goes_on_under_another_id(self, family: Any) -> None:
        family.finish("k1", "x:Read")
        compact(family, "m2", "c'", "u:Bash")
        assert not waits(family)
        family.arrive("k2", "k", answers=["x"])
        assert waits(family)
        family.finish("k2")
        assert not waits(family)
        family.arrive("m3", "c'", answers=["u"])
        assert ("k2", "m3", "joins") in family.edges()

    def test_one_that_goes_on_under_another_id(self, family: Any) -> None:
        family.finish("k1", "x:Read")
        family.step("m2", "u:Bash")
        compact(family, "k2", "k'", "y:Read", of="k")
        assert waits(family)
        family.step("m3", "v:Bash", answers=["u"])
        assert not waits(family)

    def test_of_too_many_conversations_the_parent_itself_is_forgotten(
        self, make_course: Any
    ) -> None:
        limits = GraphLimits(conversations_per_program_max=1)
        course = make_course(GraphBuilder(limits=limits))
        course.step("m1", "t:Task", lineage=Lineage.NEW)
        spawn(course, "k1")
        course.arrive("m2", answers=["t"])
        course.finish("k1")
        course.finish("m2", "u:Bash")
        assert not waits(course)


def test_joins_are_kept_for_as_many_as_the_graph_keeps_steps(make_course: Any) -> None:
    course = make_course(GraphBuilder(limits=GraphLimits(steps_per_program_max=4)))
    course.step("m1", "t:Task", lineage=Lineage.NEW)
    for number in range(12):
        spawn(course, f"k{number}", f"k{number}")
        course.finish(f"k{number}")
    assert len(course.graph().threads[C].returned) == 4
    course.arrive("m2", answers=["t"])
    joins = {edge for edge in course.edges() if edge[2] == "joins"}
    assert joins == {(f"k{number}", "m2", "joins") for number in range(8, 12)}


class TestAgentTypes:
    """As Claude Code names them: its own steps one way, its sub-agents' after their kind."""

    def test_a_pause_is_learnt_under_the_name_of_who_paused(self, course: Any) -> None:
        course.step("m0", "t0:Task", lineage=Lineage.NEW, agent="cc")
        for number in range(4):
            spawn(course, f"k{number}", f"k{number}", agent="Explore")
            course.pass_time(90)
            course.finish(f"k{number}")  # the main is given up here
            course.arrive(f"m{number + 1}", answers=[f"t{number}"], agent="cc")
            course.finish(f"m{number + 1}", f"t{number + 1}:Task")
        course.arrive("m5", answers=["t4"], agent="cc")
        finals = course.builder.learnt.finals
        assert finals.chance(agent="cc", tool=TASK, steps=9) < 0.2

    def test_returns_are_learnt_and_forecast_under_it(self, course: Any) -> None:
        for number in range(40):
            talk = f"k{number}"
            course.arrive(f"m{number}", agent="cc")
            course.finish(f"m{number}", f"t{number}:Bash")
            spawn(course, f"{talk}-1", talk, agent="Explore")
            course.finish(f"{talk}-1", f"x{number}:Bash")
            course.pass_time(1)
            course.arrive(f"{talk}-2", talk, agent="Explore")
            course.finish(f"{talk}-2")
            course.pass_time(30)
        gaps = course.builder.learnt.gaps
        slow, quick = (gaps.middle(agent=a, tool=ToolName("Bash")) for a in ("cc", "Explore"))
        assert slow > quick > 0

    def test_a_program_keeps_its_own(self, family: Any) -> None:
        family.finish("k1", "x:Read")
        family.step("k2", conversation="k", answers=["x"], agent="Explore")
        branch = {"lineage": Lineage.FORKS, "parent_conversation": ConversationId("k")}
        family.arrive("k3", "k'", agent="Explore", step_class=StepClass.SUBAGENT, **branch)
        assert family.graph().agent == "agent"
        assert family.builder._forecasts.view(P).agent == "agent"

    def test_its_declared_workflow_holds_while_a_sub_agent_works(self, course: Any) -> None:
        steps = {"x": {"tools": ["Task"], "next": ["y"]}, "y": {}}
        declared = read_workflow({"name": "cc", "start": "x", "steps": steps})
        course.builder.learnt.workflows["cc"] = declared
        course.step("m1", "t:Task", lineage=Lineage.NEW, agent="cc")
        spawn(course, "k1", agent="Explore")
        assert course.builder.view(P).steps_left() == 1.0
        course.finish("k1", "u:Read")
        assert course.builder.view(P).steps_left() == 1.0
        assert course.builder.view(P).last_pause_chance(C) == 0.0
