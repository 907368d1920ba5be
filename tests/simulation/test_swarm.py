"""Seeded swarms on virtual time: no step lost, every wait bounded, nothing left at the end.

A failure names its seed: `pytest tests/simulation -k "[fcfs-17]"` runs it again.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler, journal_header
from agentsched.kernel import JournalEntry, Scheduler, decode, encode
from agentsched.model import (
    SECOND,
    Dispatch,
    Limits,
    Nanos,
    Reject,
    StepArrived,
    StepCancelled,
)
from agentsched.policy import Choice, available_profiles
from agentsched_bench.replay import replay
from agentsched_bench.replay.swarm import Swarm, SwarmOutcome, SwarmShape

SEEDS = 60
CHOICES = {
    "pin": Choice(name="fixed", params={"ttl_s": 3.0}),
    "admit": Choice(name="depth", params={"depth": 2}),
}


def config_of_seed(profile: str, seed: int) -> SchedulerConfig:
    """Small limits, other ones for each seed, so that each of them is met by some."""
    random = Random(seed)
    limits = Limits(
        programs_max=random.choice((5, 12, 1_000)),
        program_idle_ns_max=Nanos(random.choice((20, 600)) * SECOND),
        conversations_per_program_max=random.choice((1, 3)),
        ready_steps_max=random.choice((3, 100)),
        running_steps_per_engine_max=random.choice((1, 3, 8)),
        engine_wait_ns_max=Nanos(random.choice((1, 8)) * SECOND),
        wait_ns_max=Nanos(random.choice((2, 15)) * SECOND),
        bypasses_max=random.choice((0, 1, 5, 1_000)),
        pins_per_engine_max=random.choice((1, 3)),
        pinned_tokens_per_engine_max=random.choice((2_000, 20_000)),
        tools_per_program_max=random.choice((1, 64)),
        tenants_max=random.choice((1, 10)),
        retries_max=random.choice((0, 2)),
    )
    return SchedulerConfig(
        profile=profile, limits=limits, choices={p: CHOICES[p] for p in CHOICES if seed % 3}
    )


def run(profile: str, seed: int) -> tuple[Scheduler, SwarmOutcome, list[JournalEntry]]:
    scheduler = build_scheduler(config_of_seed(profile, seed))
    journal: list[JournalEntry] = []

    def on_turn(entry: JournalEntry) -> None:
        journal.append(entry)
        scheduler.check()

    shape = SwarmShape(
        programs=8 + seed % 10, engines=1 + seed % 3, fault_rate=(0.0, 0.03, 0.15)[seed % 3]
    )
    swarm = Swarm(scheduler, seed=seed, shape=shape, on_turn=on_turn)
    return scheduler, swarm.run(), journal


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("profile", available_profiles())
def test_swarm(profile: str, seed: int) -> None:
    scheduler, outcome, journal = run(profile, seed)
    no_step_lost(outcome, journal)
    limits = scheduler.limits
    # The host's clock may be a second behind the scheduler's, which never steps back.
    assert max(outcome.waits) <= limits.wait_ns_max + 2 * SECOND
    assert set(outcome.unpinned) == set(outcome.pinned)
    assert set(outcome.pinned.values()) | set(outcome.unpinned.values()) <= {1}
    nothing_left(scheduler)
    header = journal_header(config_of_seed(profile, seed))
    assert replay(header, (decode(encode(entry)) for entry in journal)) is None


def no_step_lost(outcome: SwarmOutcome, journal: list[JournalEntry]) -> None:
    """Every step got a decision or was taken out by its client; nobody else's was made up."""
    decided: set[str] = set()
    cancelled: set[str] = set()
    for entry in journal:
        decided |= {c.step for c in entry.commands if isinstance(c, Dispatch | Reject)}
        if isinstance(entry.event, StepCancelled):
            cancelled.add(entry.event.step)
    arrived = {e.event.step for e in journal if isinstance(e.event, StepArrived)}
    assert decided <= arrived
    assert arrived <= decided | cancelled
    assert arrived == set(outcome.arrived) == set(outcome.answered)


def nothing_left(scheduler: Scheduler) -> None:
    statistics = scheduler.statistics()
    assert (statistics.waiting_steps, statistics.running_steps, statistics.pins) == (0, 0, 0)
    assert statistics.policy_errors_total == 0
    assert scheduler.steps == {}
    assert scheduler.next_deadline() is None
    for engine in scheduler.engines.values():
        counts: tuple[Any, ...] = (
            engine.running_tokens,
            engine.starting_tokens,
            engine.pinned_tokens,
        )
        assert counts == (0, 0, 0)
