"""What was begun is brought to its end: newcomers are told no before whoever was answered.

Seeded swarms on engines that are much too small, a third of the programs background work. A
program has begun when a step of its work was answered; one that was only refused has not, however
often it comes back and whatever it says of itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    Command,
    Event,
    Instant,
    Limits,
    Lineage,
    ProgramClosed,
    ProgramId,
    Reject,
    RejectReason,
    StepArrived,
    StepClass,
    StepFinished,
    StepId,
    seconds,
)
from agentsched.policy import Choice
from agentsched_bench.replay.swarm import Swarm, SwarmShape

LIMITS = Limits(
    wait_ns_max=seconds(4),
    bypasses_max=40,
    ready_steps_max=30,
    running_steps_per_engine_max=6,
    programs_max=64,
)
#: What newcomers alone are told.
TOO_MANY = ("programs", "too many wait already")


class Classes:
    """Makes each third program's steps background work, and lets all say that they go on."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def handle(self, event: Event, *, now: Instant) -> tuple[Command, ...]:
        if isinstance(event, StepArrived) and event.lineage is Lineage.NEW:
            event = replace(event, lineage=Lineage.EXTENDS)
        if isinstance(event, StepArrived) and event.step_class.is_work:
            is_batch = not crc32(event.program.encode()) % 3
            event = replace(event, step_class=StepClass.BATCH if is_batch else event.step_class)
        return self._scheduler.handle(event, now=now)


class Watch:
    """Follows a journal: who was answered, and who was told no, by whether it had begun."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._asked: dict[StepId, StepArrived] = {}
        self._begun: set[ProgramId] = set()
        #: Times that newcomers alone were told no, by class.
        self.refused: Counter[StepClass] = Counter()
        #: Steps of batch agents that had begun.
        self.batch_goes_on = 0

    def on_turn(self, entry: JournalEntry) -> None:
        event = entry.event
        if isinstance(event, StepArrived):
            self._asked.setdefault(event.step, event)
            is_batch = event.step_class is StepClass.BATCH
            self.batch_goes_on += is_batch and event.program in self._begun
        for command in entry.commands:
            if isinstance(command, Reject):
                self._judge(command)
        if isinstance(event, StepFinished) and event.step in self._asked:
            asked = self._asked[event.step]
            if asked.step_class.is_work or asked.step_class is StepClass.BATCH:
                self._begun.add(asked.program)
        elif isinstance(event, ProgramClosed):
            self._begun.discard(event.program)
        self._begun &= self._scheduler.programs.keys()

    def _judge(self, no: Reject) -> None:
        asked = self._asked[no.step]
        parent = asked.parent if asked.program not in self._scheduler.programs else None
        has_begun = asked.program in self._begun or parent in self._begun
        if no.detail in TOO_MANY:
            assert not has_begun, (no, asked.step_class)
            self.refused[asked.step_class] += 1
        if no.reason is RejectReason.QUEUE_FULL and has_begun:
            assert self._scheduler.statistics().waiting_steps >= LIMITS.ready_steps_max


@pytest.mark.slow
@pytest.mark.parametrize("tenants", [1, 3])
@pytest.mark.parametrize("fault_rate", [0.0, 0.1])
def test_whoever_was_answered_is_never_one_too_many(tenants: int, fault_rate: float) -> None:
    refused: Counter[StepClass] = Counter()
    goes_on = 0
    for seed in range(4):
        admit = Choice(name="working-set", params={"swap_share": 0.002})
        config = SchedulerConfig(profile="agentsched", limits=LIMITS, choices={"admit": admit})
        scheduler = build_scheduler(config)
        watch = Watch(scheduler)
        shape = SwarmShape(
            programs=32,
            engines=1 + seed % 3,
            tenants=tenants,
            fault_rate=fault_rate,
            arrival_ms_max=2_000,
            kv_tokens=6_000,
        )
        played: Any = Classes(scheduler)
        Swarm(played, seed=seed, shape=shape, on_turn=watch.on_turn).run()
        scheduler.check()
        assert not scheduler.policy_errors, f"seed {seed}"
        refused += watch.refused
        goes_on += watch.batch_goes_on
    assert refused[StepClass.STEP] > 4, "the load was too light to tell anything"
    assert refused[StepClass.BATCH] > 4
    assert goes_on > 4
