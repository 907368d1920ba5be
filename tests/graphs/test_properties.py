"""Whatever happens: bounds hold, graphs have no cycles, and equal events give equal graphs."""

from __future__ import annotations

from typing import Any

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.compose import SchedulerConfig, build_graphs, build_scheduler
from agentsched.kernel import JournalEntry
from agentsched.model import (
    CallId,
    ConversationId,
    Instant,
    Limits,
    Lineage,
    Nanos,
    ProgramId,
    StepCancelled,
    StepFailed,
    StepId,
    ToolFinished,
    ToolName,
    ToolStarted,
)
from agentsched_bench.replay.swarm import Swarm, SwarmShape
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.graph import ExecutionGraph, GraphLimits
from agentsched_graphs.snapshot import Snapshot, snapshot

LIMITS = GraphLimits(
    programs_max=3,
    closed_max=2,
    steps_max=12,
    steps_per_program_max=6,
    age_ns_max=Nanos(40_000_000_000),
    tools_per_step_max=3,
    conversations_per_program_max=3,
    children_per_program_max=2,
)

small = st.integers(0, 4)
action = st.tuples(
    st.sampled_from(
        ["arrive"] * 5
        + ["finish"] * 4
        + ["dispatch", "start", "fail", "retry", "cancel", "reject", "close", "tool", "wait"]
    ),
    small,
    small,
    small,
    st.sampled_from(list(Lineage)),
)


def play(course: Any, actions: list[Any]) -> None:
    """Ids come from small sets, so that late, double and crossed events are ordinary."""
    for number, (what, a, b, c, lineage) in enumerate(actions):
        step = f"s{max(0, number - a - 5 * b)}"
        match what:
            case "arrive":
                course.arrive(
                    f"s{number}" if c else step,
                    f"c{b}",
                    f"p{a}",
                    lineage=lineage,
                    answers=[f"t{i}" for i in range(max(0, number - 6), number - c)],
                    parent_conversation=ConversationId(f"c{c}"),
                    parent=ProgramId(f"p{c}") if b == 3 else None,
                    prefixes=[f"x{b}", f"x{number}"],
                )
            case "finish":
                calls = [f"t{number + i}:Tool{i}" for i in range(c)]
                course.finish(step, *calls, prefix=f"y{number}")
            case "dispatch":
                course.dispatch(step)
            case "start":
                course.start(step)
            case "fail" | "retry":
                is_retry = what == "retry"
                course.feed(StepFailed(step=StepId(step), reason="x", is_retryable=is_retry))
            case "cancel":
                course.feed(StepCancelled(step=StepId(step), reason="x"))
            case "reject":
                course.reject(step)
            case "close":
                course.close(f"p{a}")
            case "tool":
                kind = ToolStarted if c % 2 else ToolFinished
                course.feed(
                    kind(
                        program=ProgramId(f"p{a}"),
                        call_id=CallId(f"t{max(0, number - b)}" if c else ""),
                        tool=ToolName("Tool0"),
                        conversation=ConversationId(f"c{b}"),
                    )
                )
            case _:
                course.pass_time(10 * a)


def graphs(builder: GraphBuilder) -> list[ExecutionGraph]:
    found = [builder.graph(ProgramId(f"p{i}")) for i in range(5)]
    return [graph for graph in found if graph is not None]


def pictures(builder: GraphBuilder, now: Instant) -> list[Snapshot]:
    return [snapshot(graph, now=now) for graph in graphs(builder)]


@settings(max_examples=150, deadline=None)
@given(actions=st.lists(action, min_size=10, max_size=70))
@pytest.mark.slow
def test_whatever_happens(make_course: Any, actions: list[Any]) -> None:
    course = make_course(GraphBuilder(limits=LIMITS))
    play(course, actions)  # bounds are checked after each event
    for graph in graphs(course.builder):
        made = graph.to_networkx()
        assert networkx.is_directed_acyclic_graph(made)
        nodes = {source for source, _, _ in graph.edges()} | {t for _, t, _ in graph.edges()}
        assert nodes <= set(made)
        answers = [s for s, _, kind in made.edges(data="kind") if kind == "data"]
        assert len(answers) == len(set(answers)), "a call is answered at most once"
        view = course.builder.view(graph.program)
        if view is not None:
            ask_everything(view, graph, course.now)
    again = GraphBuilder(limits=LIMITS)
    for fed, now in course.fed:
        again.decided(fed, now=now) if isinstance(fed, tuple) else again.observe(fed, now=now)
    assert pictures(again, course.now) == pictures(course.builder, course.now)


def ask_everything(view: Any, graph: ExecutionGraph, now: Instant) -> None:
    """Every query answers within its range, and twice the same."""
    for _ in range(2):
        left = view.steps_left()
        assert left is None or left >= 0
        critical = view.critical_path_left()
        assert critical is None or 0 <= critical <= (left or 0)
        assert view.fan_out() >= 0
        assert view.is_waiting_for_children() in (True, False)
        for child in graph.children:
            assert (view.subprograms_beside(child) or 0) >= 0
        for conversation in graph.threads:
            assert (view.subagents_beside(conversation) or 0) >= 0
            tools = view.next_tools(conversation)
            assert sum(chance for _, chance in tools) <= 1.0 + 1e-9
            returns = view.returns(conversation, now=now)
            if returns is not None:
                assert 0.0 <= returns.probability_within(Nanos(10**9)) <= 1.0
                assert (returns.quantile(0.3) or 0) <= (returns.quantile(0.6) or 10**18)
            view.expected_return(conversation, now=now)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_replayed_journal_gives_equal_graphs(seed: int) -> None:
    """The live builder hears events within the scheduler's turn; a replay hears the journal."""
    config = SchedulerConfig(profile="agentsched", limits=Limits(programs_max=40))
    live = build_graphs(config)
    scheduler = build_scheduler(config, graph=live)
    entries: list[JournalEntry] = []
    Swarm(scheduler, seed=seed, shape=SwarmShape(), on_turn=entries.append).run()
    again = build_graphs(config)
    second = build_scheduler(config, graph=again)
    for entry in entries:
        assert second.handle(entry.event, now=entry.now) == entry.commands
    assert scheduler.policy_errors == {}
    now = entries[-1].now
    kept = [*live.programs, *(e.event.program for e in entries if hasattr(e.event, "program"))]
    compared = 0
    for program in dict.fromkeys(kept):
        graph, other = live.graph(program), again.graph(program)
        assert (graph is None) == (other is None)
        if graph is not None and other is not None:
            compared += len(graph.steps)
            assert snapshot(graph, now=now) == snapshot(other, now=now)
            assert networkx.is_directed_acyclic_graph(graph.to_networkx())
    assert compared > 20
    live.check()
    graphs_kept = [graph for program in dict.fromkeys(kept) if (graph := live.graph(program))]
    assert all(step.state.is_final for graph in graphs_kept for step in graph.steps.values())
