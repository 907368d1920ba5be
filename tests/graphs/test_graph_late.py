"""What comes late, twice, about strangers or beyond the bounds: the graph stays what it was."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import (
    CallId,
    ConversationId,
    Instant,
    Lineage,
    Nanos,
    ProgramId,
    ProgramOpened,
    StepCancelled,
    StepClass,
    StepFailed,
    StepId,
    TenantId,
    ToolFinished,
    ToolName,
    ToolStarted,
    WorkflowDeclared,
)
from agentsched_graphs import builder as builders
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.graph import GraphLimits
from agentsched_graphs.nodes import ToolState
from agentsched_graphs.snapshot import snapshot

SECOND = 1_000_000_000
MAIN, PROGRAM = ConversationId("c"), ProgramId("p")


def limited(**limits: Any) -> GraphBuilder:
    return GraphBuilder(limits=GraphLimits(**limits))


def tool(kind: Any, call: str, name: str = "Bash", **more: Any) -> Any:
    about = {"conversation": MAIN} | more
    return kind(program=PROGRAM, call_id=CallId(call), tool=ToolName(name), **about)


class TestTwice:
    def test_a_step_that_arrives_again_is_the_one_that_is_there(self, course: Any) -> None:
        course.arrive("s1")
        course.arrive("s1")
        assert course.graph().active_steps == 1
        course.finish("s1")
        course.arrive("s1")  # it has ended, and its name is still known
        graph = course.graph()
        assert (graph.active_steps, graph.steps_done, list(graph.steps)) == (0, 1, ["s1"])

    def test_a_sub_program_opened_and_closed_again(self, course: Any) -> None:
        course.step("s1")
        graph = course.graph()
        child = ProgramId("q")
        for at in (1, 2):
            graph.add_child(child, now=Instant(at))
        for at in (3, 4):
            graph.close_child(child, now=Instant(at))
        graph.close_child(ProgramId("unknown"), now=Instant(5))
        node = graph.children[child]
        assert (node.opened_at, node.closed_at, len(graph.children)) == (1, 3, 1)

    def test_a_program_that_closes_again_and_one_that_never_was(self, course: Any) -> None:
        course.step("s1")
        course.close()
        first = course.graph().closed_at
        course.pass_time(5)
        course.close()
        course.close("never")
        assert course.graph().closed_at == first
        assert course.builder.graph(ProgramId("never")) is None

    def test_a_call_id_that_is_handed_out_again_stays_the_first_steps(self, course: Any) -> None:
        course.step("s1", "a:Read")
        course.step("s2", "a:Bash", answers=["a"])
        assert course.graph().tools[CallId("a")].asked_by == "s1"
        assert course.graph().steps[StepId("s2")].tools == []

    def test_a_tool_whose_start_and_end_are_told_again(self, course: Any) -> None:
        course.step("s1", "a:Bash")
        course.feed(tool(ToolStarted, "a", expected=Nanos(9 * SECOND)))
        found = course.graph().tools[CallId("a")]
        assert (found.state, found.started_at) == (ToolState.RUNNING, 3 * SECOND)
        assert found.expected_at == 12 * SECOND
        course.pass_time(1)
        course.feed(tool(ToolStarted, "a", expected=Nanos(-SECOND)))  # the later word counts
        assert (found.started_at, found.expected_at) == (3 * SECOND, 4 * SECOND)
        course.feed(tool(ToolFinished, "a"))
        course.pass_time(1)
        course.feed(tool(ToolFinished, "a", is_error=True))
        assert (found.state, found.finished_at) == (ToolState.FINISHED, 4 * SECOND)


class TestLate:
    def test_a_start_that_is_told_after_the_answer_changes_no_state(self, course: Any) -> None:
        course.step("s1", "a:Bash")
        course.step("s2", answers=["a"])
        course.feed(tool(ToolStarted, "a"))
        course.feed(tool(ToolFinished, "a", is_error=True))
        found = course.graph().tools[CallId("a")]
        assert found.state is ToolState.ANSWERED
        assert (found.started_at, found.finished_at) == (6 * SECOND, 6 * SECOND)

    def test_what_its_runner_measured_counts_more_than_when_it_was_told(self, course: Any) -> None:
        course.step("s1", "a:Bash")
        course.pass_time(30)
        course.feed(tool(ToolStarted, "a"))
        course.feed(tool(ToolFinished, "a", took=Nanos(25 * SECOND)))
        found = course.graph().tools[CallId("a")]
        assert (found.started_at, found.finished_at) == (8 * SECOND, 33 * SECOND)

    @pytest.mark.parametrize("is_finished", [False, True])
    def test_a_start_that_is_told_last_makes_no_negative_time(
        self, course: Any, *, is_finished: bool
    ) -> None:
        course.step("s1", "a:Bash")
        course.pass_time(1)
        if is_finished:
            course.feed(tool(ToolFinished, "a"))
        course.step("s2", answers=["a"])
        course.feed(tool(ToolStarted, "a"))
        [node] = [n for n in snapshot(course.graph(), now=course.now).nodes if n.kind == "tool"]
        assert (node.begins, node.ends) == (3 * SECOND, 4 * SECOND)

    def test_attempts_that_came_to_nothing_are_no_steps_of_the_chain(self, course: Any) -> None:
        course.step("s1", "a:Bash")
        for number in range(3):
            course.arrive(f"r{number}", answers=["a"])
            course.reject(f"r{number}")
        course.step("s2", answers=["a"])
        graph = course.graph()
        assert graph.depth == 2
        # Each is drawn as what it was: an attempt at the second step.
        assert [graph.steps[StepId(f"r{number}")].depth for number in range(3)] == [2, 2, 2]
        assert graph.steps[StepId("s2")].depth == 2

    def test_ends_of_steps_that_nobody_knows(self, course: Any) -> None:
        course.arrive("s1")
        course.start("unknown")
        course.finish("unknown")
        course.dispatch("unknown")
        course.reject("unknown")
        course.feed(StepFailed(step=StepId("unknown"), reason="x", is_retryable=True))
        course.feed(StepCancelled(step=StepId("unknown"), reason="x"))
        graph = course.graph()
        assert (list(graph.steps), graph.active_steps) == (["s1"], 1)

    @pytest.mark.parametrize("call", ["", "x"])
    def test_tools_of_a_program_without_a_step(self, course: Any, call: str) -> None:
        course.feed(ProgramOpened(program=PROGRAM, tenant=TenantId("t")))
        for kind in (ToolStarted, ToolFinished):
            course.feed(tool(kind, call))
        assert not course.graph().tools

    def test_a_tool_behind_a_folded_step_is_nobodys(self, make_course: Any) -> None:
        course = make_course(limited(steps_max=1))
        course.step("s1")
        course.step("other", conversation="co", program="other")
        assert not course.graph().steps
        course.feed(tool(ToolFinished, "x"))
        assert not course.graph().tools

    def test_of_two_open_calls_of_one_tool_a_nameless_report_says_nothing(
        self, course: Any
    ) -> None:
        course.step("s1", "a:Bash", "b:Bash")
        course.feed(tool(ToolFinished, ""))
        assert all(t.finished_at is None for t in course.graph().tools.values())

    def test_a_pause_is_no_ones_end_who_only_names_a_title(self, course: Any) -> None:
        course.step("s1", "a:Bash")
        course.arrive("title", step_class=StepClass.AUXILIARY)
        assert course.graph().threads[MAIN].paused_at == 3 * SECOND

    def test_whoever_was_given_up_and_closes_then_is_not_given_up_again(self, course: Any) -> None:
        course.step("s1", "a:Bash")
        course.pass_time(100)
        course.start("unknown")
        learnt = course.builder._learnt.gaps._all.total
        assert not course.builder._away
        course.close()
        assert course.builder._learnt.gaps._all.total == learnt
        assert course.graph().threads[MAIN].paused_at is None


class TestPrefixes:
    def test_an_answers_end_that_another_step_took_meanwhile_stays_its(self, course: Any) -> None:
        course.arrive("s1", prefixes=["same"])
        course.arrive("s2", "d", prefixes=["same"])
        course.finish("s1", prefix="answered")
        fork = {"lineage": Lineage.FORKS, "parent_conversation": MAIN}
        course.arrive("f", "fork", prefixes=["same", "own"], **fork)
        assert ("s2", "f", "forks") in course.edges()
        course.arrive("g", "fork 2", prefixes=["same", "answered"], **fork)
        assert ("s1", "g", "forks") in course.edges()

    def test_a_folded_steps_prefix_forks_nothing(self, make_course: Any) -> None:
        course = make_course(limited(steps_per_program_max=1))
        for name in ("s1", "s2"):
            course.arrive(name, prefixes=[name])
            course.finish(name)
        assert [node.step for node in course.graph().ended()] == ["s2"]
        course.arrive(
            "f", "fork", lineage=Lineage.FORKS, parent_conversation=MAIN, prefixes=["s1", "f"]
        )
        assert ("s2", "f", "forks") in course.edges()  # the latest of the parent's instead


class TestFolding:
    def test_parallel_steps_that_are_folded_are_one_source(self, make_course: Any) -> None:
        course = make_course(limited(steps_per_program_max=1))
        course.arrive("s1")
        course.arrive("s2")
        course.finish("s1")
        course.finish("s2")
        course.arrive("s3")
        course.arrive("x", "elsewhere")
        course.finish("x")  # s2 is folded too, while s3 lives
        graph = course.graph()
        assert sorted(graph.steps) == ["s3", "x"]
        doubled = [edge for edge in graph.edges() if edge[1] == "step:s3"]
        assert [source for source, _, _ in doubled] == ["folded:c", "folded:c"]
        made = graph.to_networkx()
        assert made.nodes["folded:c"]["steps"] == 2
        assert list(made.in_edges("step:s3")) == [("folded:c", "step:s3")]

    def test_other_ties_into_folded_steps_are_gone(self, make_course: Any) -> None:
        course = make_course(limited(steps_per_program_max=1))
        course.step("s1", "t:Task")
        parent = {"lineage": Lineage.SPAWNED, "parent_conversation": MAIN}
        course.step("k1", "x:Read", conversation="k", **parent)
        assert list(course.graph().steps) == ["k1"]
        assert course.edges() == {("k1", "x", "calls")}

    def test_sub_programs_whose_steps_are_folded_hang_on_nothing(self, make_course: Any) -> None:
        course = make_course(limited(steps_per_program_max=1))
        course.step("s1", "t:Task")
        course.step("q1", conversation="cq", program="q", parent=PROGRAM)
        course.close("q")
        course.step("s2", "u:Bash", answers=["t"])  # it joins q, and s1 is folded
        assert ("q", "s2", "joins") in course.edges()
        assert not any(kind == "spawns" for _, _, kind in course.edges())
        course.step("s3", answers=["u"])
        assert not any("q" in edge for edge in course.edges())
        made = course.graph().to_networkx()
        assert made.nodes["program:q"]["kind"] == "program"
        assert made.degree("program:q") == 0

    def test_nothing_is_folded_of_what_has_not_ended(self, course: Any) -> None:
        course.arrive("s1")
        assert course.graph().foldable is None


class TestForgetting:
    def test_a_forgotten_parent_leaves_its_sub_agents_alone(self, make_course: Any) -> None:
        course = make_course(limited(conversations_per_program_max=2))
        course.step("s1", "t:Task")
        parent = {"lineage": Lineage.SPAWNED, "parent_conversation": MAIN}
        course.arrive("k1", "k", **parent)
        course.arrive("d1", "d", lineage=Lineage.NEW)
        graph = course.graph()
        assert list(graph.threads) == ["k", "d"]
        assert graph.threads[ConversationId("k")].parent is None
        course.finish("k1")  # nobody to come back to
        course.step("s2", answers=["t"])
        assert not any(kind == "joins" for _, _, kind in course.edges())

    def test_a_forgotten_sub_agent_is_not_waited_for(self, make_course: Any) -> None:
        course = make_course(limited(conversations_per_program_max=2))
        course.step("s1", "t:Task")
        parent = {"lineage": Lineage.SPAWNED, "parent_conversation": MAIN}
        course.step("k1", "x:Bash", conversation="k", **parent)
        assert course.graph().threads[MAIN].open_children == 1
        course.arrive("s2")  # from now on the sub-agent is the idlest
        course.arrive("d1", "d", lineage=Lineage.NEW)
        graph = course.graph()
        assert list(graph.threads) == ["c", "d"]
        assert graph.threads[MAIN].open_children == 0

    def test_who_has_a_live_step_is_never_forgotten(self, make_course: Any) -> None:
        course = make_course(limited(conversations_per_program_max=2))
        for name in "abc":
            course.arrive(name, f"talk {name}", lineage=Lineage.NEW)
        assert len(course.graph().threads) == 3
        for name in "abc":
            course.finish(name)  # each still finds its own
        assert all(t.is_over for t in course.graph().threads.values())

    def test_a_step_outlives_its_conversation(self, make_course: Any) -> None:
        course = make_course(limited(conversations_per_program_max=1, steps_per_program_max=1))
        course.step("s1")
        course.step("d1", conversation="d", lineage=Lineage.NEW)
        graph = course.graph()
        assert list(graph.threads) == ["d"]
        assert graph.folded[MAIN].steps == 1

    def test_answers_to_calls_that_never_come_are_bounded(self, make_course: Any) -> None:
        course = make_course(limited(tools_per_step_max=2))
        course.arrive("s1")
        course.arrive("s2", answers=["a", "b", "d"])
        assert list(course.graph()._early) == ["b", "d"]
        course.finish("s1", "a:Bash", "b:Bash")
        assert {e for e in course.edges() if e[2] == "data"} == {("b", "s2", "data")}

    def test_a_conversation_that_says_it_only_extends_has_no_origin(self, course: Any) -> None:
        course.step("s1")
        course.step("d1", conversation="d", parent_conversation=MAIN)
        assert course.edges() == set()


def test_one_workflow_too_many_is_not_taken_and_a_known_one_is_replaced(
    course: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders, "WORKFLOWS_MAX", 1)
    text = "name: {}\nstart: a\nsteps:\n  a: {{tools: [{}]}}\n"
    known = course.builder._learnt.workflows
    for name, first in (("one", "ls"), ("two", "ls"), ("one", "cat")):
        course.feed(WorkflowDeclared(text=text.format(name, first)))
    course.feed(WorkflowDeclared(text="steps: ["))
    assert list(known) == ["one"]
    assert known["one"].next_tools(None)[0][0] == "cat"
