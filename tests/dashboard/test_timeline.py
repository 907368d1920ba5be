"""Lanes of a program's life, from its graph and its story."""

from __future__ import annotations

from typing import Any

from shorthand import pin as pin_of

from agentsched.dashboard.timeline import Lane, Span, timeline
from agentsched.kernel import JournalEntry
from agentsched.model import (
    Dispatch,
    EngineId,
    Instant,
    Pin,
    PinId,
    StepId,
    TimerFired,
    Unpin,
    UnpinReason,
)
from agentsched_graphs.snapshot import Node, Snapshot

S = 1_000_000_000
OPENED = Instant(500 * S)


def node(name: str, kind: Any = "step", **fields: Any) -> Node:
    fixed = {"node": f"{kind}:{name}", "kind": kind, "conversation": "p#0", "label": name}
    return Node(**fixed | {"state": "finished", "begins": 0} | fields)


def shot(*nodes: Node, now: int = 100 * S, closed: int | None = None) -> Snapshot:
    return Snapshot(
        program="p",
        tenant="red",
        agent="claude-code",
        parent=None,
        now=now,
        closed=closed,
        close_reason="",
        steps_done=1,
        active_steps=0,
        depth=1,
        nodes=nodes,
        edges=(),
    )


def entry(seconds: int, *commands: Any) -> JournalEntry:
    at = Instant(OPENED + seconds * S)
    return JournalEntry(seq=seconds, now=at, event=TimerFired(), commands=commands)


def pin(name: str, until: int) -> Pin:
    return pin_of(name, conversation="p#0", tokens=900, until=OPENED + until * S)


def told(lane: Lane, *kinds: str) -> list[tuple[str, float, float | None]]:
    return [(s.kind, s.begins, s.ends) for s in lane.spans if s.kind in kinds]


def of(shown: Snapshot, *story: JournalEntry, held: str = "") -> tuple[Lane, ...]:
    return timeline(shown, story, opened_at=OPENED, held={PinId(held)}).lanes


STEP = node("1", dispatched=2 * S, started=5 * S, ends=9 * S)


def test_a_step_waits_then_computes() -> None:
    [lane] = of(shot(STEP, closed=9 * S))
    assert told(lane, "wait", "prefill", "decode", "pause") == [
        ("wait", 0, 2),
        ("prefill", 2, 5),
        ("decode", 5, 9),
    ]


def test_a_step_under_way_has_no_end() -> None:
    for reached, kinds in (
        ({}, ["wait"]),
        ({"dispatched": 1 * S}, ["wait", "prefill"]),
        ({"dispatched": 1 * S, "started": 3 * S}, ["wait", "prefill", "decode"]),
    ):
        [lane] = of(shot(node("1", state="running", **reached)))
        assert [s.kind for s in lane.spans] == kinds
        assert [s.ends is None for s in lane.spans] == [False] * (len(kinds) - 1) + [True]


def test_an_answer_in_one_piece() -> None:
    [lane] = of(shot(node("1", dispatched=2 * S, ends=9 * S), closed=9 * S))
    assert told(lane, "wait", "prefill", "decode", "compute") == [("wait", 0, 2), ("compute", 2, 9)]


def test_pauses_lie_between_steps_and_after_the_last() -> None:
    second = node("2", begins=20 * S, dispatched=20 * S, started=21 * S, ends=30 * S)
    [lane] = of(shot(STEP, second))
    assert told(lane, "pause") == [("pause", 9, 20), ("pause", 30, None)]
    [lane] = of(shot(STEP, second, closed=31 * S))
    assert told(lane, "pause") == [("pause", 9, 20)]


def test_steps_side_by_side_are_no_pause() -> None:
    long = node("1", dispatched=0, started=0, ends=40 * S)
    short = node("2", begins=5 * S, dispatched=5 * S, started=6 * S, ends=10 * S)
    third = node("3", begins=38 * S, dispatched=38 * S, started=39 * S, ends=50 * S)
    [lane] = of(shot(long, short, third, closed=50 * S))
    assert told(lane, "pause") == []


def test_tools_that_overlap_stand_in_rows() -> None:
    tools = [
        node("bash", "tool", begins=9 * S, ends=20 * S),
        node("edit", "tool", begins=10 * S, ends=12 * S, is_error=True),
        node("read", "tool", begins=13 * S),
        node("late", "tool", begins=21 * S, ends=22 * S),
    ]
    [lane] = of(shot(STEP, *tools))
    rows = {s.label: (s.row, s.is_error) for s in lane.spans if s.kind == "tool"}
    assert rows == {"bash": (0, False), "edit": (1, True), "read": (1, False), "late": (0, False)}


def test_pins_last_until_they_end() -> None:
    story = (
        entry(9, pin("a", 15)),
        entry(12, pin("a", 40)),
        entry(14, Unpin(pin=PinId("a"), engine=EngineId("e"), reason=UnpinReason.RESUMED)),
        entry(20, pin("b", 99)),
    )
    [lane] = of(shot(STEP), *story, held="b")
    pins = [s for s in lane.spans if s.kind == "pin"]
    assert [(s.begins, s.ends, s.reason) for s in pins] == [
        (9, 12, "extended"),
        (12, 14, "resumed"),
        (20, None, "held"),
    ]
    assert pins[0].prompt_tokens == 900


def test_pins_whose_end_nobody_told() -> None:
    story = (entry(9, pin("a", 90)), entry(30, pin("b", 50)))
    [lane] = of(shot(STEP), *story)
    assert told(lane, "pin") == [("pin", 9, 30), ("pin", 30, 50)]
    [lane] = of(shot(STEP, now=40 * S), *story)
    assert told(lane, "pin")[1] == ("pin", 30, 40)


def test_the_story_gives_reasons() -> None:
    sent = Dispatch(step=StepId("1"), engine=EngineId("e"), order="fcfs", place="stay", pin="hit")
    [lane] = of(shot(STEP), entry(2, sent))
    spans: list[Span] = [s for s in lane.spans if s.kind == "decode"]
    assert [s.reason for s in spans] == ["fcfs, stay, pin hit"]


def test_lanes_say_what_they_are() -> None:
    sub = node("2", conversation="p#1", lineage="spawned", begins=3 * S, ends=4 * S)
    branch = node("3", conversation="p#2", lineage="forks", begins=4 * S, ends=5 * S)
    child = node("q", "program", conversation="", begins=5 * S)
    roles = [lane.role for lane in of(shot(STEP, sub, branch, child))]
    assert roles == ["main", "sub-agent", "branch", "sub-programs"]


def test_sums() -> None:
    tool = node("bash", "tool", begins=9 * S, ends=20 * S)
    sums = timeline(shot(STEP, tool, now=29 * S), (), opened_at=OPENED).sums
    assert (sums.wait, sums.prefill, sums.decode) == (2, 3, 4)
    assert (sums.tool, sums.pause, sums.pin) == (11, 20, 0)


def test_a_call_that_nobody_answered_is_over_with_its_program() -> None:
    """Few agents say goodbye: the last answer calls `submit`, and no prompt brings its result."""
    submit = node("submit", "tool", begins=9 * S)
    open_still = timeline(shot(STEP, submit), (), opened_at=OPENED)
    assert open_still.sums.tool == 91
    assert told(open_still.lanes[0], "tool") == [("tool", 9, None)]
    closed = timeline(shot(STEP, submit, closed=12 * S), (), opened_at=OPENED)
    assert closed.sums.tool == 3
    assert told(closed.lanes[0], "tool") == [("tool", 9, 12)]
