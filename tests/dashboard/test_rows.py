"""Rows of the dashboard, as a scheduler's records make them."""

from __future__ import annotations

from shorthand import answered, arrived, at, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.dashboard.rows import program_row
from agentsched.model import CallId, ConversationId, Event, Lineage, ProgramId


def test_what_goes_on_under_another_id_is_shown_once_and_ends_with_that() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))

    def see(*events: Event) -> tuple[str, int]:
        for event in events:
            scheduler.handle(event, now=at(scheduler.next_seq))
        row = program_row(scheduler, scheduler.programs[ProgramId("p")], ())
        return row.state, row.context_tokens

    first = arrived("s1", conversation="old", tokens=20)
    assert see(reported(), first, answered("s1", prompt=20, output=10)) == ("paused", 30)
    rewritten = arrived(
        "s2",
        conversation="new",
        tokens=20,
        lineage=Lineage.COMPACTS,
        parent_conversation=ConversationId("old"),
    )
    assert see(rewritten, answered("s2", prompt=20, output=12)) == ("paused", 32)
    last = arrived("s3", conversation="new", tokens=40, answers=(CallId("s2"),))
    assert see(last, answered("s3", is_last=True, prompt=40, output=2)) == ("idle", 0)
