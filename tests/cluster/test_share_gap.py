"""Shares over replicas from their journals, on journals made by schedulers on virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from shorthand import arrived, at, finished, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    SECOND,
    AgentschedError,
    Dispatch,
    Event,
    Instant,
    StepCancelled,
    StepId,
    TenantId,
)
from agentsched.policy import Choice
from agentsched.store.fold import RESTARTED
from agentsched_bench.cluster.gaps import Gap
from agentsched_bench.cluster.share_gap import SHARE, Journal, ShareGap, is_shared
from agentsched_bench.cluster.table import table

BLUE, RED = TenantId("blue"), TenantId("red")
PARAMS: dict[str, Any] = {"burst": 0.0, "memory_price": 0.0}
WEIGHTED = Choice(name="weighted", params=PARAMS)


def build(share: Choice = WEIGHTED) -> Scheduler:
    choices = {"share": share, "admit": Choice(name="depth", params={"depth": 1})}
    return build_scheduler(SchedulerConfig(profile="fcfs", choices=choices))


@dataclass
class Replica:
    """A scheduler that keeps its journal; `at` is in seconds."""

    name: str
    scheduler: Scheduler = field(default_factory=build)
    entries: list[tuple[int, JournalEntry]] = field(default_factory=list)
    running: list[StepId] = field(default_factory=list)
    steps: int = 0

    def feed(self, event: Event, time_s: float) -> None:
        now = at(time_s)
        for command in self.scheduler.handle(event, now=now):
            assert isinstance(command, Dispatch)
            self.running.append(command.step)
        entry = self.scheduler.latest
        assert entry is not None
        self.entries.append((now, entry))

    def begin(self, *, at: float) -> None:
        self.feed(reported(), at)

    def ask(self, tenant: TenantId, *, at: float) -> None:
        self.steps += 1
        name = f"{self.name}/{tenant}/{self.steps}"
        event = arrived(name, name, tenant=tenant, tokens=100, output_tokens_expected=10)
        self.feed(event, at)

    def answer(self, *, at: float) -> None:
        """Its oldest running step ends."""
        self.feed(finished(self.running.pop(0), prompt=100, cached=0, output=20), at)

    def die(self, *, at: float) -> None:
        """Killed, and another process has taken over: what its predecessor had is ended."""
        while self.scheduler.steps:
            step = next(reversed(self.scheduler.steps))
            self.feed(StepCancelled(step=step, reason=RESTARTED), at)
        self.running.clear()

    def journal(self, *lives: tuple[float, float]) -> Journal:
        spans = [(round(b * SECOND), round(e * SECOND)) for b, e in lives or ((0, 100),)]
        return Journal(
            replica=self.name,
            scheduler=build(),
            choice=WEIGHTED,
            entries=self.entries,
            lives=spans,
        )


def busy(*replicas: Replica, since: float) -> None:
    """Both tenants have steps waiting at all of them."""
    for number, replica in enumerate(replicas):
        replica.begin(at=since + number / 100)
        for turn in range(6):
            for tenant in (BLUE, RED):
                replica.ask(tenant, at=since + 0.1 + turn / 100 + number / 1000)


def measured(*journals: Journal) -> ShareGap:
    return ShareGap(journals=journals, tenants=[BLUE, RED]).run()


def test_a_gap_is_seen_at_every_turn_while_both_wait_everywhere() -> None:
    one, two = Replica("one"), Replica("two")
    busy(one, two, since=1.0)
    for second in range(2, 6):
        one.answer(at=second)
        two.answer(at=second + 0.5)
    told = measured(one.journal(), two.journal()).told(since=SECOND)
    assert told["is_shown"]
    assert told["is_within"]
    assert told["steps_finished"] == 8
    assert told["turns"] == len(one.entries) + len(two.entries)
    (window,) = told["longest"]
    assert 0 < window["gap"] <= window["bound"]
    assert window["began"] == pytest.approx(0.11, abs=0.02)
    assert window["in_flight"] == 2
    # A step is 100 tokens to compute and 20 to say, at four each; the last two run still.
    assert window["charged"] == 8 * 180 + 2 * 140 - 2 * 140
    assert not told["parts"]["red"]["out_of_turn_steps"]


def test_who_died_decides_no_more_and_who_comes_back_begins_anew() -> None:
    one, two = Replica("one"), Replica("two")
    busy(one, two, since=1.0)
    one.answer(at=2.0)
    two.answer(at=3.0)  # one is dead by now; two goes on, and is watched
    one.die(at=5.0)
    one.begin(at=5.2)
    two.answer(at=5.5)  # nobody waits on one
    for tenant in (BLUE, RED, BLUE, RED):
        one.ask(tenant, at=6.0)
    two.answer(at=7.0)
    lives = (0.0, 2.5), (4.0, 100.0)
    marks = [(2.5, "kill -9"), (5.0, "back")]
    found = measured(one.journal(*lives), two.journal())
    told = found.told(since=0, marks=marks)
    assert told["is_within"]
    assert told["windows"] == 2
    before, after = told["spans"]["before"]["nearest"], told["spans"]["after"]["nearest"]
    assert told["spans"]["during"] == {}
    assert (before["began"], before["ended"]) == (pytest.approx(1.1, abs=0.1), 5.0)
    assert (after["began"], after["ended"]) == (6.0, 7.0)


def test_where_nobody_is_watched_nothing_is_shown() -> None:
    one = Replica("one")
    one.begin(at=1.0)
    for second in (2.0, 3.0):
        one.ask(RED, at=second)
    told = measured(one.journal()).told(since=0)
    assert not told["is_shown"]
    assert told["is_within"]
    assert not is_shared({"gap": told})
    assert is_shared({})


def test_a_journal_that_another_scheduler_wrote_shows_nothing() -> None:
    one = Replica("one")
    busy(one, since=1.0)
    at, entry = one.entries[1]
    assert entry.commands
    one.entries[1] = (at, replace(entry, commands=()))
    told = measured(one.journal()).told(since=0)
    assert told["entries_unlike"] == 1
    assert told["windows"]
    assert not told["is_shown"]


def test_a_gap_beyond_its_bound_fails_the_run() -> None:
    one = Replica("one")
    busy(one, since=1.0)
    found = measured(one.journal())
    worst = found.windows[0].worst
    found.windows[0].worst = replace(worst, width=worst.bound + 1)
    told = found.told(since=0)
    assert told["windows_exceeded"] == 1
    assert not is_shared({"gap": told})


def test_a_gap_is_within_where_it_equals_its_bound() -> None:
    gap = Gap(
        pair=(BLUE, RED),
        since=Instant(0),
        width=1.0,
        bound=1.0,
        loose=0.0,
        in_flight=1,
        hidden=0.0,
        charged=1.0,
    )
    assert gap.is_within
    assert not replace(gap, width=1.1).is_within


@pytest.mark.parametrize(
    "choice",
    [
        Choice(name="none"),
        Choice(name="weighted", params={"burst": 0.0}),
        Choice(name="weighted", params=PARAMS | {"memory_price": 0.02}),
    ],
)
def test_other_shares_cannot_be_measured(choice: Choice) -> None:
    journal = Replica("one").journal()
    journal.choice = choice
    with pytest.raises(AgentschedError, match="shares are measured"):
        ShareGap(journals=[journal], tenants=[BLUE, RED])


def test_what_a_run_is_given_is_what_is_measured() -> None:
    assert Choice(name=SHARE["name"], params=SHARE["params"]) == WEIGHTED


@pytest.mark.parametrize(
    ("gap", "shown"),
    [
        ({"is_shown": True, "is_within": True}, "5 of 10 / -"),
        ({"is_shown": True, "is_within": False}, "EXCEEDED: 5 of 10 / -"),
        ({"is_shown": False, "is_within": True}, "not shown (5 of 10 / -)"),
    ],
)
def test_the_table_says_how_near_the_bound_was(gap: dict[str, Any], shown: str) -> None:
    spans = {"before": {"nearest": {"gap": 5, "bound": 10}}, "during": {}}
    result = {
        "scenario": "replica-kill",
        "programs": 1,
        "programs_completed": 1,
        "calls": 1,
        "failed_whole": 0,
        "failed_streams": 0,
        "streams_cut": 0,
        "cut_by_kind": {},
        "hung": 0,
        "latency_s": {},
        "gap": gap | {"spans": spans},
    }
    assert shown in table([result])
