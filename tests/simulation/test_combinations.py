"""Random combinations of all policies, limits and faults: what holds for each holds for all.

A seed is the whole of a run. A failure names it; this runs it again, and any other:

    AGENTSCHED_COMBINATIONS=1234 pytest tests/simulation/test_combinations.py -k thousands
    AGENTSCHED_COMBINATIONS=5000-9999 pytest tests/simulation/test_combinations.py -k thousands
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from random import Random

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler, journal_header
from agentsched.kernel import JournalEntry, decode, encode
from agentsched.model import SECOND, Limits, Nanos, Prefetch
from agentsched.policy import Choice, registry
from agentsched.policy.registry import POINTS, available
from agentsched_bench.replay import replay
from agentsched_bench.replay.swarm import Swarm, SwarmShape
from tests.simulation.test_swarm import no_step_lost, nothing_left

BATCH = 50
GIVEN = os.environ.get("AGENTSCHED_COMBINATIONS", "200-2199").split("-")
FIRST, LAST = int(GIVEN[0]), int(GIVEN[-1])
#: Every so many are checked at each turn and replayed from their journals; the others are checked
#: at every so many turns: which costs a third.
WATCHED = 10
CHECKED = 20


@pytest.fixture(scope="module", autouse=True)
def looked_up_once() -> Iterator[None]:
    """What is installed does not change meanwhile, and to ask for it is half of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", cache(entry_points))
        yield


@cache
def names_of(point: str) -> tuple[str, ...]:
    """Those that are installed. With others beside ours a seed is another combination."""
    return available(point)


def combination(seed: int) -> tuple[SchedulerConfig, SwarmShape]:
    """Six policies, a dozen limits and a load with faults, all drawn from the seed."""
    random = Random(seed)
    choices = {point: Choice(name=random.choice(names_of(point))) for point in POINTS}
    limits = Limits(
        programs_max=random.choice((5, 12, 1_000)),
        program_idle_ns_max=Nanos(random.choice((20, 600)) * SECOND),
        conversations_per_program_max=random.choice((1, 3, 100)),
        ready_steps_max=random.choice((3, 20, 100)),
        running_steps_per_engine_max=random.choice((1, 3, 8)),
        engine_wait_ns_max=Nanos(random.choice((1, 8)) * SECOND),
        wait_ns_max=Nanos(random.choice((1, 2, 5, 15)) * SECOND),
        bypasses_max=random.choice((0, 1, 5, 1_000)),
        pins_per_engine_max=random.choice((1, 3, 100)),
        pinned_tokens_per_engine_max=random.choice((2_000, 20_000)),
        tools_per_program_max=random.choice((1, 64)),
        tenants_max=random.choice((1, 3, 10)),
        retries_max=random.choice((0, 1, 2)),
    )
    shape = SwarmShape(
        programs=random.randint(5, 18),
        engines=random.randint(1, 4),
        fault_rate=random.choice((0.0, 0.03, 0.15, 0.3)),
        # Other policies while steps wait, what other replicas did, workflows.
        meddling=random.choice((0, 10)),
    )
    return SchedulerConfig(profile="passthrough", limits=limits, choices=choices), shape


def check(seed: int) -> None:
    """Play one combination; assert what must hold of any."""
    config, shape = combination(seed)
    scheduler = build_scheduler(config)
    journal: list[JournalEntry] = []
    is_watched = seed % WATCHED == 0

    def on_turn(entry: JournalEntry) -> None:
        journal.append(entry)
        if is_watched or len(journal) % CHECKED == 0:
            scheduler.check()

    outcome = Swarm(scheduler, seed=seed, shape=shape, on_turn=on_turn).run()
    no_step_lost(outcome, journal)
    # The host's clock may be a second behind the scheduler's, which never steps back.
    assert max(outcome.waits, default=0) <= scheduler.limits.wait_ns_max + 2 * SECOND
    # What is let go is a pin, each once, or a warm-up that gave way. A pin whose conversation's
    # next step waits is told anew, with a later end.
    warmed = {c.pin for entry in journal for c in entry.commands if isinstance(c, Prefetch)}
    assert set(outcome.unpinned) - warmed == set(outcome.pinned)
    assert set(outcome.unpinned.values()) <= {1}
    nothing_left(scheduler)
    if is_watched:
        again = replay(journal_header(config), (decode(encode(entry)) for entry in journal))
        assert again is None


def play(seeds: range) -> None:
    for seed in seeds:
        try:
            check(seed)
        except Exception as error:
            config, shape = combination(seed)
            names = {point: choice.name for point, choice in config.choices.items()}
            error.add_note(f"AGENTSCHED_COMBINATIONS={seed}: {names}, {shape}, {config.limits}")
            raise


@pytest.mark.parametrize("first", range(0, 200, BATCH))
def test_some(first: int) -> None:
    play(range(first, first + BATCH))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, LAST + 1, BATCH))
def test_thousands(first: int) -> None:
    play(range(first, min(first + BATCH, LAST + 1)))


def test_the_same_seed_is_the_same_run() -> None:
    """What makes a number enough to find a failure again."""

    def journal(seed: int) -> list[bytes]:
        config, shape = combination(seed)
        entries: list[bytes] = []
        scheduler = build_scheduler(config)

        def write(entry: JournalEntry) -> None:
            entries.append(encode(entry))

        Swarm(scheduler, seed=seed, shape=shape, on_turn=write).run()
        return entries

    assert journal(17) == journal(17)
    assert journal(17) != journal(18)


def test_combinations_are_of_many_kinds() -> None:
    """Every policy of every point is drawn."""
    drawn = [combination(seed)[0].choices for seed in range(200)]
    for point in POINTS:
        assert {choices[point].name for choices in drawn} == set(available(point))
    assert len({tuple(sorted(c.name for c in choices.values())) for choices in drawn}) > 190
