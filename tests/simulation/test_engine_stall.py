"""An engine stands still under load and goes on: what is new goes elsewhere meanwhile.

The proxy's own scheduler in front of modelled engines that are looked at every 2 s. The engine that
stands still answers those looks, which is why nothing else would find it before a time-out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry
from agentsched.model import (
    SECOND,
    Dispatch,
    EngineId,
    Instant,
    Limits,
    Nanos,
    StepFailed,
    seconds,
)
from agentsched.policy import Choice
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Scenario, starts_of
from agentsched_bench.sim.clients import ProgramRun
from agentsched_bench.sim.faults import Faults, stall
from agentsched_bench.sim.host import SimHost
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs

STALLED = EngineId("e001")
ENGINES = 3
STALL = stall("1@8+60")
SEEDS = (1, 2, 3)
#: The default, and as if there were no such rule.
SILENCE, NEVER = Limits().silence_ns, Nanos(1 << 62)

pytestmark = pytest.mark.slow


@dataclass(slots=True, kw_only=True)
class Story:
    """One run: when what was sent to the engine, and when which engine was silent."""

    runs: list[ProgramRun]
    #: Steps that were sent to the engine that stands still.
    sent_at: list[Instant]
    failed: int
    #: Its last sign of life, the first turn after which it was silent, and the first when not.
    silent: list[tuple[EngineId, Instant, Instant, Instant]]

    @property
    def sent_meanwhile(self) -> int:
        return sum(STALL.at <= at < STALL.until for at in self.sent_at)

    @property
    def waits_s(self) -> list[float]:
        return sorted(run.first_token_wait_max / SECOND for run in self.runs)


@functools.cache
def play(seed: int, silence: Nanos) -> Story:
    rows = list(generate(programs=60, seed=seed, interarrival_s=0.5, steps_max=8))
    shape = ShapeOptions(scale_tokens=4, steps_max=8, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    engine = EngineConfig.from_preset(preset("cpu-2core"))
    engine = replace(engine, blocks=480, max_model_len=479 * engine.block_size)
    made = Scenario(plans=plans, engines=[engine] * ENGINES, arrivals=parse_arrivals("poisson:0.8"))
    limits = Limits(wait_ns_max=seconds(15), silence_ns=silence)
    # Every third step is the standing engine's turn: placement by load alone would not avoid it.
    choices = {"place": Choice(name="round-robin")}
    config = SchedulerConfig(profile="fcfs", choices=choices, limits=limits)
    scheduler = build_scheduler(config)
    story = Story(runs=[], sent_at=[], failed=0, silent=[])
    began: dict[EngineId, tuple[Instant, Instant]] = {}

    def note(entry: JournalEntry) -> None:
        story.failed += isinstance(entry.event, StepFailed)
        for command in entry.commands:
            if isinstance(command, Dispatch) and command.engine == STALLED:
                story.sent_at.append(entry.now)
        for engine in scheduler.engines.values():
            if engine.silent_since is not None:
                began.setdefault(engine.engine, (engine.silent_since, entry.now))
            elif engine.engine in began:
                story.silent.append((engine.engine, *began.pop(engine.engine), entry.now))
        if entry.seq % 5 == 0:
            scheduler.check()

    host = SimHost(scheduler, engines=made.engines, on_turn=note)
    story.runs = host.run(starts_of(made, seed=seed), faults=Faults(stalls=(STALL,)))
    scheduler.check()
    assert not began
    return story


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def test_it_is_silent_while_it_stands_still_and_no_other_engine_ever_is(seed: int) -> None:
    [(engine, last, began, ended)] = play(seed, SILENCE).silent
    assert engine == STALLED
    # A sign of life is seen up to a look later, and looks are two seconds apart.
    assert last <= STALL.at + seconds(2.5)
    assert began >= last + SILENCE
    assert STALL.until <= ended <= STALL.until + seconds(2.5)


def test_nothing_is_sent_there_while_it_is_silent(seed: int) -> None:
    story = play(seed, SILENCE)
    [(_, _, began, ended)] = story.silent
    assert not [at for at in story.sent_at if began < at < ended]
    assert story.sent_meanwhile < play(seed, NEVER).sent_meanwhile


def test_no_step_is_taken_away_and_every_program_comes_to_its_end(seed: int) -> None:
    story = play(seed, SILENCE)
    assert not story.failed
    assert all(run.ended_at is not None and not run.is_failed for run in story.runs)
    assert all(run.calls == run.plan.calls for run in story.runs)


def test_it_is_used_again_afterwards(seed: int) -> None:
    assert play(seed, SILENCE).sent_at[-1] > STALL.until


def test_fewer_wait_for_it_than_without_the_rule() -> None:
    def stuck(silence: Nanos) -> int:
        return sum(wait > 10 for seed in SEEDS for wait in play(seed, silence).waits_s)

    assert not any(play(seed, NEVER).silent for seed in SEEDS)
    assert stuck(SILENCE) < stuck(NEVER)
