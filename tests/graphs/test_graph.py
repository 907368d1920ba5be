"""What a program's graph is made of: nodes, edges, times, and what it costs to grow."""

from __future__ import annotations

import sys
from typing import Any

import networkx
import pytest

from agentsched.model import (
    CallId,
    ConversationId,
    Lineage,
    Nanos,
    ProgramId,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    StepState,
    ToolFinished,
    ToolName,
    ToolStarted,
    Usage,
)
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.graph import GraphLimits
from agentsched_graphs.nodes import ToolState

SECOND = 1_000_000_000


def limited(**limits: Any) -> GraphBuilder:
    return GraphBuilder(limits=GraphLimits(**limits))


class TestEdges:
    def test_steps_follow_and_tools_answer(self, course: Any) -> None:
        course.step("s1", "a:Read", "b:Bash ls")
        course.step("s2", answers=["a", "b"])
        assert course.edges() == {
            ("s1", "s2", "control"),
            ("s1", "a", "calls"),
            ("s1", "b", "calls"),
            ("a", "s2", "data"),
            ("b", "s2", "data"),
        }

    def test_steps_in_parallel_follow_the_same_and_are_joined(self, course: Any) -> None:
        course.step("s1")
        course.arrive("s2")
        course.arrive("s3")
        course.finish("s3")
        course.finish("s2")
        course.arrive("s4")
        assert course.edges() == {
            ("s1", "s2", "control"),
            ("s1", "s3", "control"),
            ("s2", "s4", "control"),
            ("s3", "s4", "control"),
        }
        assert course.graph().depth == 3

    def test_a_later_step_beside_a_live_one(self, course: Any) -> None:
        course.arrive("slow")
        course.step("s2")
        course.step("s3")
        assert course.edges() == {("s2", "s3", "control")}
        course.finish("slow")
        course.arrive("s4")
        assert ("slow", "s4", "control") in course.edges()
        assert ("s3", "s4", "control") in course.edges()

    def test_sub_agents_are_spawned_and_joined(self, course: Any) -> None:
        course.step("s1", "t:Task", lineage=Lineage.NEW)
        parent = {"lineage": Lineage.SPAWNED, "parent_conversation": ConversationId("c")}
        course.step("k1", "x:Read", conversation="k", **parent)
        view = course.builder.view(ProgramId("p"))
        assert view.is_waiting_for_children()
        course.step("k2", conversation="k", answers=["x"])
        assert not view.is_waiting_for_children()
        course.arrive("s2", answers=["t"])
        edges = course.edges()
        assert ("s1", "k1", "spawns") in edges
        assert ("k2", "s2", "joins") in edges
        assert ("t", "s2", "data") in edges
        assert ("k1", "s2", "joins") not in edges

    def test_a_sub_agent_that_goes_on_is_not_joined_yet(self, course: Any) -> None:
        course.step("s1", "t:Task", lineage=Lineage.NEW)
        parent = {"lineage": Lineage.SPAWNED, "parent_conversation": ConversationId("c")}
        course.step("k1", conversation="k", **parent)
        course.arrive("k2", "k")
        course.arrive("s2", answers=["t"])
        assert not any(kind == "joins" for _, _, kind in course.edges())
        assert course.graph().threads[ConversationId("c")].open_children == 1

    def test_forks_start_at_the_step_whose_prefix_they_share(self, course: Any) -> None:
        course.arrive("s1", lineage=Lineage.NEW, prefixes=["x1"])
        course.finish("s1", prefix="x1a")
        course.arrive("s2", prefixes=["x1", "x1a", "x2"])
        course.finish("s2", prefix="x2a")
        course.arrive(
            "f1",
            "fork",
            lineage=Lineage.FORKS,
            parent_conversation=ConversationId("c"),
            prefixes=["x1", "x1a", "y"],
        )
        assert ("s1", "f1", "forks") in course.edges()

    def test_compaction_ends_the_old_conversation(self, course: Any) -> None:
        course.step("s1", lineage=Lineage.NEW)
        course.arrive("s2", "c2", lineage=Lineage.COMPACTS, parent_conversation=ConversationId("c"))
        course.finish("s2", "t:Read")
        course.arrive("s3", "c2", lineage=Lineage.COMPACTS)
        assert {e for e in course.edges() if e[2] == "compacts"} == {
            ("s1", "s2", "compacts"),
            ("s2", "s3", "compacts"),
        }

    def test_a_compacted_sub_agent_is_still_waited_for(self, course: Any) -> None:
        course.step("s1", "t:Task", lineage=Lineage.NEW)
        course.step(
            "k1",
            conversation="k",
            lineage=Lineage.SPAWNED,
            parent_conversation=ConversationId("c"),
        )
        course.arrive("k2", "k'", lineage=Lineage.COMPACTS, parent_conversation=ConversationId("k"))
        course.finish("k2", "x:Read")
        assert course.builder.view(ProgramId("p")).is_waiting_for_children()
        course.step("k3", conversation="k'", answers=["x"])
        course.arrive("s2", answers=["t"])
        assert ("k3", "s2", "joins") in course.edges()

    def test_sub_programs(self, course: Any) -> None:
        course.step("s1", "t:Task", lineage=Lineage.NEW)
        course.step(
            "q1",
            "x:Read",
            conversation="cq",
            program="q",
            lineage=Lineage.NEW,
            parent=ProgramId("p"),
        )
        assert course.builder.view(ProgramId("p")).is_waiting_for_children()
        course.close("q")
        course.step("s2", answers=["t"])
        assert ("s1", "q", "spawns") in course.edges()
        assert ("q", "s2", "joins") in course.edges()
        assert course.graph("q").parent == "p"

    def test_an_answer_that_came_before_the_end_was_seen(self, course: Any) -> None:
        course.arrive("s1")
        course.arrive("s2", answers=["a"])
        course.finish("s1", "a:Read")
        assert ("a", "s2", "data") in course.edges()

    def test_each_call_is_answered_once(self, course: Any) -> None:
        course.step("s1", "a:Read")
        course.step("s2", answers=["a"])
        course.step("s3", answers=["a"])
        assert {e for e in course.edges() if e[2] == "data"} == {("a", "s2", "data")}


class TestNodes:
    def test_times_tokens_and_engine(self, course: Any) -> None:
        course.step("s1", "a:Read")
        node = course.graph().steps[StepId("s1")]
        assert (node.arrived_at, node.dispatched_at, node.started_at, node.ended_at) == (
            0,
            1 * SECOND,
            2 * SECOND,
            3 * SECOND,
        )
        assert (node.engine, node.state, node.attempts) == ("e", StepState.FINISHED, 1)
        assert (node.prompt_tokens, node.cached_tokens, node.output_tokens) == (100, 60, 5)

    def test_a_retried_step_goes_elsewhere(self, course: Any) -> None:
        course.arrive("s1")
        course.dispatch("s1", "e1")
        course.feed(StepFailed(step=StepId("s1"), reason="lost", is_retryable=True))
        node = course.graph().steps[StepId("s1")]
        assert (node.state, node.engine, node.dispatched_at) == (StepState.WAITING, None, None)
        course.dispatch("s1", "e2")
        course.finish("s1")
        assert (node.state, node.engine, node.attempts) == (StepState.FINISHED, "e2", 2)

    @pytest.mark.parametrize(
        ("end", "state"),
        [
            (lambda c: c.reject("s1"), StepState.REJECTED),
            (
                lambda c: c.feed(StepFailed(step=StepId("s1"), reason="no")),
                StepState.FAILED,
            ),
            (
                lambda c: c.feed(StepCancelled(step=StepId("s1"), reason="no")),
                StepState.CANCELLED,
            ),
        ],
    )
    def test_steps_that_come_to_nothing(self, course: Any, end: Any, state: StepState) -> None:
        course.arrive("s1")
        end(course)
        end(course)  # late and double ends change nothing
        graph = course.graph()
        assert graph.steps[StepId("s1")].state is state
        assert (graph.active_steps, graph.steps_done) == (0, 0)

    def test_reported_tools(self, course: Any) -> None:
        course.step("s1", "a:Bash make")
        about = {"program": ProgramId("p"), "call_id": CallId("a"), "tool": ToolName("Bash make")}
        course.pass_time(1)
        course.feed(ToolStarted(**about))
        course.pass_time(5)
        course.feed(ToolFinished(**about, is_error=True))
        tool = course.graph().tools[CallId("a")]
        assert (tool.started_at, tool.finished_at) == (4 * SECOND, 9 * SECOND)
        assert tool.state is ToolState.FAILED
        course.arrive("s2", answers=["a"])
        assert tool.state is ToolState.ANSWERED
        assert tool.is_error

    def test_a_pause_is_forecast_by_the_tool_that_was_told(self, course: Any) -> None:
        """Agents that call tools in prose: no answer shows the call, its runner does."""
        for number in range(40):
            slow = number % 2 == 0
            course.step(f"s{number}")
            course.feed(
                ToolStarted(
                    program=ProgramId("p"),
                    call_id=CallId(f"t{number}"),
                    tool=ToolName("make" if slow else "ls"),
                )
            )
            thread = course.graph().threads[ConversationId("c")]
            assert thread.paused_for == ("make" if slow else "ls")
            course.pass_time(30 if slow else 1)
        gaps = course.builder._learnt.gaps
        make, ls = (gaps.middle(agent="agent", tool=ToolName(t)) for t in ("make", "ls"))
        assert make > ls > 0

    def test_a_tool_that_nobody_asked_for_hangs_on_the_latest_step(self, course: Any) -> None:
        course.step("s1")
        course.feed(
            ToolFinished(
                program=ProgramId("p"),
                call_id=CallId("sdk-1"),
                tool=ToolName("grep"),
                conversation=ConversationId("c"),
                took=Nanos(SECOND),
            )
        )
        assert ("s1", "sdk-1", "calls") in course.edges()

    def test_a_time_without_a_call_id_goes_to_the_only_such_call(self, course: Any) -> None:
        course.step("s1", "a:Read", "b:Bash ls")
        about = {
            "program": ProgramId("p"),
            "call_id": CallId(""),
            "conversation": ConversationId("c"),
        }
        course.pass_time(9)
        course.feed(ToolFinished(**about, tool=ToolName("Read"), took=Nanos(2 * SECOND)))
        tool = course.graph().tools[CallId("a")]
        assert (tool.started_at, tool.finished_at) == (10 * SECOND, 12 * SECOND)

    def test_networkx_gets_a_copy(self, course: Any) -> None:
        course.step("s1", "a:Read")
        course.step("s2", answers=["a"])
        made = course.graph().to_networkx()
        assert isinstance(made, networkx.DiGraph)
        assert made.nodes["step:s1"]["state"] == "finished"
        assert made.nodes["tool:a"]["tool"] == "Read"
        assert made.edges["tool:a", "step:s2"]["kind"] == "data"
        made.clear()
        assert len(course.graph().to_networkx()) == 3


class TestBounds:
    def test_old_steps_are_folded_into_their_sum(self, make_course: Any) -> None:
        course = make_course(limited(steps_per_program_max=4))
        for i in range(10):
            course.step(f"s{i}", f"t{i}:Read", answers=[f"t{i - 1}"] if i else [])
        graph = course.graph()
        assert list(graph.steps) == ["s6", "s7", "s8", "s9"]
        folded = graph.folded[ConversationId("c")]
        assert (folded.steps, folded.tools, folded.prompt_tokens, folded.cached_tokens) == (
            6,
            6,
            600,
            360,
        )
        assert ("c", "s6", "control") in course.edges()
        assert graph.steps_done == 10

    def test_a_sum_of_what_no_engine_said_is_not_known(self, make_course: Any) -> None:
        course = make_course(limited(steps_per_program_max=2))
        for i, cached in enumerate((None, None, None, 30, None)):
            course.arrive(f"s{i}")
            course.dispatch(f"s{i}")
            usage = Usage(prompt_tokens=100, cached_tokens=cached, output_tokens=5)
            course.feed(StepFinished(step=StepId(f"s{i}"), usage=usage))
            if i == 2:
                assert course.graph().folded[ConversationId("c")].cached_tokens is None
        for i in (5, 6):
            course.step(f"s{i}")
        folded = course.graph().folded[ConversationId("c")]
        assert (folded.steps, folded.cached_tokens) == (5, 30)

    def test_what_is_too_old_is_folded(self, make_course: Any) -> None:
        course = make_course(limited(age_ns_max=Nanos(60 * SECOND)))
        course.step("s1")
        course.step("s2")
        course.pass_time(600)
        course.step("s3")
        assert list(course.graph().steps) == ["s3"]

    def test_all_graphs_together(self, make_course: Any) -> None:
        course = make_course(limited(steps_max=5))
        for i in range(8):
            course.step(f"s{i}", conversation=f"c{i}", program=f"p{i}")
        kept = [len(course.graph(f"p{i}").steps) for i in range(8)]
        assert kept == [0, 0, 0, 1, 1, 1, 1, 1]

    def test_the_idlest_program_is_closed_for_a_new_one(self, make_course: Any) -> None:
        course = make_course(limited(programs_max=2, closed_max=1))
        for name in ("a", "b", "c", "d"):
            course.step(f"s{name}", conversation=f"c{name}", program=name)
        assert list(course.builder.programs) == ["c", "d"]
        assert course.graph("b").closed_at is not None
        assert course.builder.graph(ProgramId("a")) is None

    def test_a_closed_program_that_goes_on_keeps_its_graph(self, course: Any) -> None:
        course.step("s1")
        course.close()
        assert course.builder.view(ProgramId("p")) is None
        course.step("s2")
        assert ("s1", "s2", "control") in course.edges()
        assert course.graph().closed_at is None

    def test_steps_of_a_forgotten_program_may_still_end(self, make_course: Any) -> None:
        course = make_course(limited(closed_max=1))
        course.arrive("s1", program="a", conversation="ca")
        course.close("a")
        course.step("s2", program="b", conversation="cb")
        course.close("b")
        course.step("s3", program="a", conversation="ca")  # another graph of the same program
        course.close("a")
        course.finish("s1")
        assert list(course.graph("a").steps) == ["s3"]

    def test_many_tool_calls_are_counted(self, make_course: Any) -> None:
        course = make_course(limited(tools_per_step_max=2))
        course.step("s1", "a", "b", "c", "d")
        node = course.graph().steps[StepId("s1")]
        assert ([tool.call_id for tool in node.tools], node.tools_left_out) == (["a", "b"], 2)

    def test_many_conversations(self, make_course: Any) -> None:
        course = make_course(limited(conversations_per_program_max=3, steps_per_program_max=2))
        for i in range(12):
            course.step(f"s{i}", conversation=f"c{i}", lineage=Lineage.NEW)
        graph = course.graph()
        assert len(graph.threads) == 3
        assert sum(folded.steps for folded in graph.folded.values()) == 10

    def test_many_sub_programs(self, make_course: Any) -> None:
        course = make_course(limited(children_per_program_max=2))
        course.step("s1")
        for i in range(4):
            course.arrive(f"q{i}", f"cq{i}", f"q{i}", parent=ProgramId("p"))
        assert list(course.graph().children) == ["q2", "q3"]


def operations(course: Any, number: int) -> int:
    """Function calls, C functions included, that one step with a tool call takes."""
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    builder, check = course.builder, course.builder.check
    builder.check = lambda: None
    sys.setprofile(counted)
    try:
        course.step(f"s{number}", f"t{number}:Read", answers=[f"t{number - 1}"])
    finally:
        sys.setprofile(None)
        builder.check = check
    return count


def test_a_step_costs_as_much_after_a_long_history_as_at_first(make_course: Any) -> None:
    course = make_course(limited(steps_per_program_max=40))
    early = [operations(course, i) for i in range(1, 40)]
    for i in range(40, 400):
        operations(course, i)
    late = [operations(course, i) for i in range(400, 440)]
    # The middle: now and then learnt hazards are made anew, at a fixed mean cost.
    assert sorted(late)[20] <= sorted(early)[20] + 30  # folding one step for each that comes
    assert sum(late) <= 1.5 * sum(early)


class TestPausesWithoutEnd:
    """A program that stays away teaches so after a minute, and not only when it is forgotten."""

    def learnt(self, course: Any, spans: list[float]) -> list[float]:
        gaps = course.builder._learnt.gaps
        forecast = gaps.forecast(agent="agent", tool=ToolName("Bash"), elapsed=Nanos(0), level=2)
        return list(forecast.chances([Nanos(round(s * SECOND)) for s in spans]))

    def pause(self, course: Any, number: int) -> None:
        course.step(
            f"s{number}", f"k{number}:Bash", conversation=f"c{number}", program=f"p{number}"
        )

    def test_it_is_counted_after_a_minute(self, course: Any) -> None:
        for number in range(20):
            self.pause(course, number)
        before = self.learnt(course, [1])[0]
        course.pass_time(61)
        for _ in range(10):  # two of the longest at each event
            course.start("unknown")
        assert self.learnt(course, [50])[0] < before / 2
        assert not course.builder._away

    def test_and_taken_back_when_it_returns(self, course: Any) -> None:
        for number in range(20):
            self.pause(course, number)
        course.pass_time(100)
        for _ in range(10):
            course.start("unknown")
        for number in range(20):
            course.arrive(f"t{number}", f"c{number}", f"p{number}")
        within_80, within_200 = self.learnt(course, [80, 200])
        assert within_80 < 0.2
        assert within_200 > 0.6

    def test_a_program_that_closes_is_counted_once(self, course: Any) -> None:
        self.pause(course, 1)
        course.close("p1")
        assert not course.builder._away
        course.pass_time(100)
        course.start("unknown")
        assert course.builder._learnt.gaps._all.total == 1
