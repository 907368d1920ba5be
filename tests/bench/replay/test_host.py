"""Golden journals replay to identical commands, and a decision that changed is found."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, get_args

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry, JournalError, JournalHeader
from agentsched.model import Dispatch, EngineDrained, Event, Limits, PolicyError
from agentsched.policy import Choice
from agentsched_bench.replay import ReplayHost, open_journal, replay, replay_file

FOLDER = Path(__file__).parents[2] / "data" / "journals"
JOURNALS = sorted(path for path in FOLDER.iterdir() if ".ndjson" in path.name)


def load(name: str) -> tuple[JournalHeader, list[JournalEntry]]:
    with open_journal(FOLDER / name) as journal:
        return journal.header, list(journal)


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.name)
def test_golden_journals_replay_to_identical_commands(path: Path) -> None:
    divergence = replay_file(path)
    assert divergence is None, f"{divergence}\nMeant to? See tests/data/journals/make.py."


def test_golden_journals_know_every_event() -> None:
    events = Counter(type(entry.event) for path in JOURNALS for entry in load(path.name)[1])
    assert set(events) == set(get_args(Event))


def test_golden_journals_know_drains_that_last_and_others() -> None:
    events = [entry.event for path in JOURNALS for entry in load(path.name)[1]]
    drains = [e for e in events if isinstance(e, EngineDrained) and e.is_draining]
    assert {event.is_lasting for event in drains} == {True, False}


def test_a_changed_decision_is_found_and_told() -> None:
    header, entries = load("tight.ndjson")
    number = next(
        n
        for n, entry in enumerate(entries)
        if n > 20 and any(isinstance(c, Dispatch) for c in entry.commands)
    )
    entry = entries[number]
    changed = tuple(
        replace(c, engine="elsewhere") if isinstance(c, Dispatch) else c for c in entry.commands
    )
    entries[number] = replace(entry, commands=changed)
    divergence = replay(header, entries)
    assert divergence is not None
    assert (divergence.seq, divergence.now) == (entry.seq, entry.now)
    assert divergence.event == entry.event
    assert (divergence.recorded, divergence.replayed) == (changed, entry.commands)
    text = str(divergence)
    assert text.startswith(f"entry {entry.seq} at {entry.now} ns: ")
    assert text.index("elsewhere") < text.index("replayed:") < text.rindex("engine=")


@pytest.mark.parametrize(
    "other",
    [
        {"choices": {"place": Choice(name="round-robin")}},
        {"choices": {"order": Choice(name="fcfs")}},
        {"limits": Limits()},
    ],
    ids=["place", "order", "limits"],
)
def test_another_scheduler_decides_otherwise(other: dict[str, object]) -> None:
    header, entries = load("tight.ndjson")
    if "choices" in other:
        other = {"choices": {**header.choices, **other["choices"]}}  # type: ignore[dict-item]
    divergence = replay(replace(header, **other), entries)  # type: ignore[arg-type]
    assert divergence is not None
    assert divergence.recorded != divergence.replayed
    assert entries[divergence.seq].event == divergence.event


def test_a_journal_with_a_hole_is_refused() -> None:
    header, entries = load("passthrough.ndjson")
    with pytest.raises(JournalError, match=re.escape("entry 4 where 3 was to come")):
        replay(header, [*entries[:3], *entries[4:]])
    with pytest.raises(JournalError, match=re.escape("entry 1 where 0 was to come")):
        replay(header, entries[1:])


def test_a_policy_that_is_not_here_is_named() -> None:
    header, entries = load("passthrough.ndjson")
    choices = {**header.choices, "pin": Choice(name="of-a-stranger")}
    with pytest.raises(PolicyError, match="of-a-stranger"):
        replay(replace(header, choices=choices), entries)


def test_a_profile_that_is_not_here_is_not_needed() -> None:
    header, entries = load("passthrough.ndjson")
    assert replay(replace(header, profile="forgotten"), entries) is None


def test_the_host_goes_on_after_a_divergence_where_wanted() -> None:
    header, entries = load("passthrough.ndjson")
    host = ReplayHost(build_scheduler(SchedulerConfig(choices=header.choices)))
    entries[3] = replace(entries[3], commands=(Dispatch(step="s", engine="e"),))  # type: ignore[arg-type]
    assert [e.seq for e in entries if host.feed(e) is not None] == [3]


class Graph:
    seen: ClassVar[list[Event]] = []

    def observe(self, event: Event, *, now: int) -> None:
        Graph.seen.append(event)

    def view(self, program: str) -> None:
        return None


def test_a_graph_is_built_where_there_was_one() -> None:
    assert replay_file(FOLDER / "passthrough.ndjson", graph=Graph) is None
    # Closings that the scheduler makes up are not in the journal: they follow from it.
    recorded = [e.event for e in load("passthrough.ndjson")[1]]
    assert [e for e in Graph.seen if e in recorded] == recorded
