"""The scheduler's ceilings are set anew at run time, and the graphs follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shorthand import answered, arrived, at, finished, reported, tool_call

from agentsched.compose import SchedulerConfig, build_graphs, build_scheduler, choices_of
from agentsched.kernel import Scheduler
from agentsched.model import (
    Choice,
    ConversationId,
    Instant,
    Limits,
    Lineage,
    ProgramId,
    Reconfigured,
)
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.graph import ExecutionGraph

SMALL = SchedulerConfig(
    profile="agentsched",
    limits=Limits(programs_max=3, conversations_per_program_max=2, tools_per_program_max=2),
)
LARGE = Limits(programs_max=6, conversations_per_program_max=6, tools_per_program_max=6)


class Proxy:
    """A scheduler and its graphs, a second of virtual time for each event."""

    def __init__(self, limits: Limits = SMALL.limits) -> None:
        config = SchedulerConfig(profile=SMALL.profile, limits=limits)
        self.graphs: GraphBuilder = build_graphs(config)
        self.scheduler: Scheduler = build_scheduler(config, graph=self.graphs)
        self._now = 0
        self.feed(reported())

    def feed(self, *events: object) -> None:
        for event in events:
            self._now += 1
            self.scheduler.handle(event, now=at(self._now))  # type: ignore[arg-type]
            self.graphs.check()

    def reload(self, limits: Limits, **choices: Choice) -> None:
        chosen = {**choices_of(SMALL), **choices}
        self.feed(Reconfigured(profile=SMALL.profile, choices=chosen, limits=limits))

    def step(self, step: str, program: str, *calls: str, **more: object) -> None:
        asked = [tool_call(call) for call in calls or (step,)]
        self.feed(
            arrived(step, program, **more),  # type: ignore[arg-type]
            finished(step, *asked, finish_reason="tool_calls"),
        )

    def graph(self, program: str) -> ExecutionGraph:
        found = self.graphs.graph(ProgramId(program))
        assert found is not None
        return found

    @property
    def live(self) -> list[str]:
        return list(self.graphs.programs)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.scheduler.check()
    assert not made.scheduler.policy_errors


def test_more_programs_have_graphs_when_more_may_be_live(proxy: Proxy) -> None:
    proxy.reload(LARGE)
    for number in range(6):
        proxy.step(f"s{number}", f"p{number}")
    assert proxy.live == list(proxy.scheduler.programs) == [f"p{n}" for n in range(6)]
    world = proxy.scheduler.world
    assert all(world.graph(ProgramId(f"p{n}")) is not None for n in range(6))
    # Seven steps in all, and all of them known to the forecasts still.
    proxy.step("again", "p0")
    forecasts = proxy.graphs._forecasts
    views = [forecasts.view(ProgramId(f"p{n}")) for n in range(6)]
    assert [view.steps_done for view in views if view] == [2, 1, 1, 1, 1, 1]


def test_fewer_programs_are_reached_as_new_ones_come() -> None:
    proxy = Proxy(LARGE)
    for number in range(6):
        proxy.step(f"s{number}", f"p{number}")
    proxy.reload(Limits(programs_max=2))
    assert len(proxy.live) == 6  # nobody goes for that alone
    for number in range(6, 11):
        proxy.step(f"s{number}", f"p{number}")
        assert proxy.live == list(proxy.scheduler.programs)
    assert proxy.live == ["p9", "p10"]
    proxy.scheduler.check()


def test_all_are_busy_under_a_lowered_limit(proxy: Proxy) -> None:
    for number in range(3):
        proxy.feed(arrived(f"s{number}", f"p{number}"))
    proxy.reload(Limits(programs_max=1))
    proxy.feed(arrived("t", "new"))
    assert list(proxy.scheduler.programs) == ["p0", "p1", "p2"]
    proxy.feed(answered("s0"), arrived("u", "newer"))
    # One could be forgotten: that is room enough for one.
    assert list(proxy.scheduler.programs) == ["p1", "p2", "newer"]
    proxy.feed(answered("s1"), answered("s2"), answered("u"))
    proxy.feed(arrived("v", "other"), arrived("w", "last"))
    proxy.feed(answered("v"), arrived("x", "last"))
    assert list(proxy.scheduler.programs) == ["other", "last"]
    proxy.feed(answered("w"), answered("x"), arrived("y", "only"))
    assert proxy.live == list(proxy.scheduler.programs) == ["only"]


def test_programs_that_are_turned_away_take_no_graph_from_those_that_are_known() -> None:
    proxy = Proxy(Limits(programs_max=3, ready_steps_max=1, running_steps_per_engine_max=1))
    proxy.step("s0", "p0")
    proxy.step("s1", "p1")
    proxy.feed(arrived("runs", "p1"), arrived("waits", "p2"))
    for number in range(9):
        proxy.feed(arrived(f"r{number}", f"refused{number}"))
    assert list(proxy.scheduler.programs) == ["p0", "p1", "p2"]
    world = proxy.scheduler.world
    assert all(world.graph(program) is not None for program in proxy.scheduler.programs)
    # What was refused last can be looked at, too.
    assert proxy.graph("refused8").steps.keys() == {"r8"}


def test_nor_do_they_take_what_is_forecast_of_those() -> None:
    proxy = Proxy(Limits(programs_max=3, ready_steps_max=1, running_steps_per_engine_max=1))
    proxy.step("s0", "p0")
    proxy.step("s1", "p1")
    proxy.feed(arrived("runs", "p1"), arrived("waits", "p2"))
    for number in range(9):
        proxy.feed(arrived(f"r{number}", f"refused{number}"))
    proxy.feed(finished("runs", tool_call("b")), arrived("again", "p0"))
    forecasts = proxy.graphs._forecasts
    done = {key: forecasts.view(key) for key in proxy.scheduler.programs}
    assert {key: known.steps_done for key, known in done.items() if known} == {
        "p1": 2,
        "p2": 0,
        "p0": 1,
    }
    assert forecasts.view(ProgramId("refused8")) is None


def test_conversations_and_tool_calls_follow(proxy: Proxy) -> None:
    def spawn(first: int, last: int) -> None:
        for number in range(first, last):
            proxy.step(
                f"k{number}",
                "p",
                *(f"k{number}-{call}" for call in range(6)),
                conversation=f"c{number}",
                lineage=Lineage.SPAWNED,
                parent_conversation=ConversationId("p"),
            )

    def tools(step: str) -> int:
        return len(proxy.graph("p").steps[step].tools)  # type: ignore[index]

    proxy.step("s0", "p")
    spawn(0, 4)
    assert len(proxy.graph("p").threads) == 2
    assert tools("k3") == 2
    proxy.reload(LARGE)
    spawn(4, 10)
    assert len(proxy.graph("p").threads) == 6
    assert tools("k9") == 6
    proxy.reload(SMALL.limits)
    spawn(10, 14)
    assert len(proxy.graph("p").threads) == 2
    assert (tools("k9"), tools("k13")) == (6, 2)


def test_a_change_that_is_refused_leaves_them_alone(proxy: Proxy) -> None:
    proxy.reload(LARGE, order=Choice(name="nonsense"))
    assert proxy.scheduler.limits == SMALL.limits
    for number in range(5):
        proxy.step(f"s{number}", f"p{number}")
    assert proxy.live == list(proxy.scheduler.programs) == ["p2", "p3", "p4"]


def test_what_is_folded_keeps_to_a_lowered_limit() -> None:
    limits = SMALL.limits
    builder = build_graphs(SchedulerConfig(limits=LARGE))
    for number in range(300):
        step, now = f"s{number}", Instant(number)
        builder.observe(arrived(step, "p", conversation=f"c{number % 6}"), now=now)
        builder.observe(answered(step), now=now)
    graph = builder.graph(ProgramId("p"))
    assert graph is not None
    folded = sum(sums.steps for sums in graph.folded.values())
    builder.set_limits(limits)
    builder.check()
    assert len(graph.folded) == limits.conversations_per_program_max + 1
    assert sum(sums.steps for sums in graph.folded.values()) == folded == 300 - 256
