"""Newcomers that an admission policy shuts out are not asked for one by one, and nothing changes.

The same load is played with the policy and with one that differs only in not saying so: each
waiting step is then ranked and asked for at every turn, as plainly as can be. Journals are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest

from agentsched.compose import SchedulerConfig, build_graphs, build_policies
from agentsched.kernel import JournalEntry, Scheduler, encode
from agentsched.model import (
    Command,
    EngineId,
    EngineReported,
    Event,
    Instant,
    Limits,
    Nanos,
    StepArrived,
    seconds,
)
from agentsched.policy import Admission, Choice, Held
from agentsched_bench.replay.swarm import Swarm, SwarmShape

LIMITS = Limits(
    wait_ns_max=seconds(4), bypasses_max=40, running_steps_per_engine_max=6, programs_max=64
)


class Plain:
    """Asks the real policy, and keeps to itself that it shuts newcomers out."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def observe(self, event: Event, *, now: Instant) -> None:
        self.real.observe(event, now=now)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self.real.decided(commands, now=now)

    def admit(self, step: Any, engine: Any, world: Any, *, now: Instant) -> Admission:
        answer: Admission = self.real.admit(step, engine, world, now=now)
        return answer


class Counting(Plain):
    """Shuts out as the real policy does, and counts how often."""

    times = 0

    def shuts_out(self, engines: Any, world: Any, *, now: Instant) -> Held | None:
        answer: Held | None = self.real.shuts_out(engines, world, now=now)
        self.times += answer is not None
        return answer


class TwoModels:
    """Gives every second program, and every third engine, a model of its own; others have both."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._engines: dict[EngineId, tuple[str, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def handle(self, event: Event, *, now: Instant) -> tuple[Command, ...]:
        if isinstance(event, EngineReported):
            kinds = (("small",), ("large", "small"), ("large",))
            models = self._engines.setdefault(event.engine, kinds[len(self._engines) % 3])
            event = replace(event, capabilities=replace(event.capabilities, models=models))
        elif isinstance(event, StepArrived):
            event = replace(event, model=("large", "small")[crc32(event.program.encode()) % 2])
        return self._scheduler.handle(event, now=now)


def play(
    kind: type[Plain], *, seed: int, shape: SwarmShape, is_split: bool = False
) -> tuple[list[bytes], Plain]:
    share = Choice(name="working-set", params={"swap_share": 0.002})
    config = SchedulerConfig(profile="agentsched", limits=LIMITS, choices={"admit": share})
    policies = build_policies(config)
    admit = kind(policies.admit)
    scheduler = Scheduler(
        policies=replace(policies, admit=admit), limits=LIMITS, graph=build_graphs(config)
    )
    journal: list[bytes] = []

    def on_turn(entry: JournalEntry) -> None:
        journal.append(encode(entry))
        if not entry.seq % 64:
            scheduler.check()
            admit.real._live.check(now=entry.now)

    played: Any = TwoModels(scheduler) if is_split else scheduler
    Swarm(played, seed=seed, shape=shape, on_turn=on_turn).run()
    assert not scheduler.policy_errors
    return journal, admit


@pytest.mark.slow
@pytest.mark.parametrize("tenants", [1, 3])
@pytest.mark.parametrize("fault_rate", [0.0, 0.1])
@pytest.mark.parametrize("is_split", [False, True])
def test_who_is_not_asked_for_would_not_have_been_sent(
    tenants: int, fault_rate: float, *, is_split: bool
) -> None:
    times = 0
    for seed in range(3):
        shape = SwarmShape(
            programs=32,
            engines=1 + seed % 3,
            tenants=tenants,
            fault_rate=fault_rate,
            arrival_ms_max=2_000,
            kv_tokens=6_000,
        )
        journal, counting = play(Counting, seed=seed, shape=shape, is_split=is_split)
        assert isinstance(counting, Counting)
        times += counting.times
        plain, _ = play(Plain, seed=seed, shape=shape, is_split=is_split)
        assert journal == plain, f"seed {seed}"
    assert times > 20


def test_the_sums_over_live_programs_are_those_of_the_programs() -> None:
    journal, admit = play(Plain, seed=1, shape=SwarmShape(programs=20, arrival_ms_max=90_000))
    assert len(journal) > 100
    admit.real._live.check(now=Instant(Nanos(seconds(1_000))))
