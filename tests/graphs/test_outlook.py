"""What a program's future looks like, by hand: as declared first, then as forecast."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentsched.model import (
    SECOND,
    CallId,
    ConversationId,
    Instant,
    ProgramId,
    StepId,
    ToolName,
)
from agentsched_graphs.nodes import Thread, ToolNode
from agentsched_graphs.outlook import Learnt, Outlook
from agentsched_graphs.workflow import read_workflow

WORKFLOW = read_workflow("""
name: fix-bug
start: edit
steps:
  edit: {tools: [edit], next: [test]}
  test: {tools: [pytest], next: {edit: 0.5, done: 0.5}, expected_s: 30}
  done: {}
""")
MAIN = ConversationId("main")


class Remaining:
    """A forecast of seven steps."""

    def steps_left(self) -> float:
        return 7.0


def outlook(*threads: Thread, children: Any = (), **graph: Any) -> Outlook:
    learnt = Learnt()
    learnt.workflows["fix-bug"] = WORKFLOW
    shown = {"agent": "fix-bug", "steps_done": 3, "active_steps": 0, "depth": 2} | graph
    made: Any = SimpleNamespace(
        threads={thread.conversation: thread for thread in threads},
        children=dict(enumerate(children)),
        **shown,
    )
    return Outlook(made, learnt)


def thread(place: str | None = "test", **fields: Any) -> Thread:
    return Thread(conversation=fields.pop("conversation", MAIN), place=place, **fields)


def sub_program(*, is_open: bool) -> Any:
    closed_at = None if is_open else Instant(1)
    return SimpleNamespace(program=ProgramId("q"), is_awaited=True, closed_at=closed_at)


def test_what_was_declared_comes_before_what_was_learnt() -> None:
    future = outlook(thread())
    future.remaining = Remaining()
    # After the test it is over, or there are two more to come, and so on: 3 on average.
    assert future.steps_left() == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("strays", [{"is_astray": True}, {"parent": ConversationId("main")}])
def test_who_keeps_to_no_workflow_is_forecast(strays: dict[str, Any]) -> None:
    future = outlook(thread(conversation=ConversationId("c"), **strays))
    assert future.steps_left() is None
    assert future.critical_path_left() is None
    future.remaining = Remaining()
    assert future.steps_left() == 7.0


def test_as_much_runs_beside_others_as_so_far() -> None:
    future = outlook(thread(is_astray=True), steps_done=3, active_steps=1, depth=2)
    future.remaining = Remaining()
    assert future.critical_path_left() == 3.5
    new = outlook(thread(is_astray=True), steps_done=0, active_steps=0, depth=0)
    new.remaining = Remaining()
    assert new.critical_path_left() == 7.0


def test_next_tools_are_the_workflows_where_it_is_kept_to() -> None:
    assert outlook(thread()).next_tools(MAIN) == WORKFLOW.next_tools("test") != ()
    assert outlook(thread(is_astray=True)).next_tools(MAIN) == ()
    assert outlook().next_tools(MAIN) == ()


def test_a_return_is_expected_as_declared() -> None:
    paused = {"paused_at": Instant(100 * SECOND), "paused_for": ToolName("pytest")}
    now = Instant(110 * SECOND)
    assert outlook(thread(**paused)).expected_return(MAIN, now=now) == 130 * SECOND
    assert outlook(thread()).expected_return(MAIN, now=now) is None
    assert outlook().expected_return(MAIN, now=now) is None


@pytest.mark.parametrize(
    "fields",
    [{"place": "edit"}, {"place": None}, {"is_astray": True}, {"parent": ConversationId("p")}],
)
def test_without_a_declared_time_the_forecasts_middle_counts(fields: dict[str, Any]) -> None:
    paused = {"paused_at": Instant(100 * SECOND), "paused_for": ToolName("pytest")} | fields
    now = Instant(110 * SECOND)
    future = outlook(thread(**paused))
    forecast = future.returns(MAIN, now=now)
    assert forecast is not None
    middle = forecast.quantile(0.5)
    assert middle is not None
    assert future.expected_return(MAIN, now=now) == now + middle


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        # The last of them counts, whether it ended or is expected to.
        ([{"finished_at": 105}, {"expected_at": 150}], 150),
        ([{"finished_at": 105, "expected_at": 200}], 105),
        # One that nobody told of: as declared.
        ([{"expected_at": 150}, {}], 130),
    ],
)
def test_what_runners_report_comes_first(told: list[dict[str, int]], expected: int) -> None:
    tools = [
        ToolNode(
            call_id=CallId(f"k{number}"),
            tool=ToolName("pytest"),
            asked_by=StepId("s"),
            asked_at=Instant(100 * SECOND),
            **{name: Instant(at * SECOND) for name, at in fields.items()},
        )
        for number, fields in enumerate(told)
    ]
    paused = {"paused_at": Instant(100 * SECOND), "paused_for": ToolName("pytest")}
    latest: Any = SimpleNamespace(tools=tools)
    future = outlook(thread(**paused, latest=latest))
    assert future.expected_return(MAIN, now=Instant(110 * SECOND)) == expected * SECOND


def test_only_what_is_paused_returns() -> None:
    paused = thread("edit", paused_at=Instant(0), paused_for=ToolName("edit"))
    assert outlook(paused).returns(MAIN, now=Instant(SECOND)) is not None
    assert outlook(thread()).returns(MAIN, now=Instant(0)) is None
    assert outlook().returns(MAIN, now=Instant(0)) is None


@pytest.mark.parametrize(
    ("active", "open_children", "active_steps", "is_open", "is_waiting"),
    [
        (0, 1, 0, False, True),
        (1, 1, 1, False, False),
        (0, 0, 0, True, True),
        (1, 0, 1, True, False),
        (0, 0, 0, False, False),
    ],
)
def test_a_program_waits_for_children_while_nothing_of_it_runs(
    *, active: int, open_children: int, active_steps: int, is_open: bool, is_waiting: bool
) -> None:
    future = outlook(
        thread(active=active, open_children=open_children),
        children=[sub_program(is_open=is_open), sub_program(is_open=False)],
        active_steps=active_steps,
    )
    assert future.is_waiting_for_children() == is_waiting
    assert future.fan_out() == active + is_open


@pytest.mark.parametrize(
    ("place", "fields", "chance"),
    [
        ("test", {}, 0.0),
        ("done", {}, 1.0),
        (None, {}, 0.3),
        ("done", {"is_astray": True}, 0.3),
        ("done", {"paused_at": None}, 0.0),
    ],
)
def test_a_declared_last_step_is_the_last(
    place: str | None, fields: dict[str, Any], chance: float
) -> None:
    made = thread(place, **({"paused_at": Instant(1), "final": 0.3} | fields))
    assert outlook(made).last_pause_chance(MAIN) == chance
