"""Rows for reports, drawn from a scheduler: what is told of tools."""

from __future__ import annotations

from typing import Any

from shorthand import arrived, at, finished, reported, tool_call

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import ConversationId, Lineage, StepClass
from agentsched.store.projection import _tools


def test_a_sub_agents_tools_are_told_under_its_own_name() -> None:
    scheduler = build_scheduler(SchedulerConfig())
    scheduler.handle(reported("e"), now=at(0))
    child: dict[str, Any] = {
        "conversation": "p/child",
        "agent": "searcher",
        "step_class": StepClass.SUBAGENT,
        "lineage": Lineage.SPAWNED,
        "parent_conversation": ConversationId("p"),
    }
    scheduler.handle(arrived("s0", agent="coder"), now=at(1))
    scheduler.handle(finished("s0", tool_call("c0", "Task")), now=at(2))
    for number in range(40):
        scheduler.handle(arrived(f"k{number}", **child), now=at(10 + 30 * number))
        call = tool_call(f"d{number}", "grep")
        scheduler.handle(finished(f"k{number}", call), now=at(11 + 30 * number))
    told = {(row["agent"], row["tool"]): row for row in _tools(scheduler)}
    assert set(told) == {("coder", "Task"), ("searcher", "grep")}
    assert told["searcher", "grep"]["next"]["grep"] > 0.9
