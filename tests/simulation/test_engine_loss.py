"""An engine is lost and comes back under load: its programs go elsewhere, everyone else stays.

The proxy's own scheduler in front of modelled engines that hold pins; every turn is in the journal,
and what is claimed is read from it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry
from agentsched.model import (
    Dispatch,
    EngineId,
    EngineLost,
    EngineReported,
    Instant,
    Limits,
    Pin,
    ProgramId,
    Reject,
    StepArrived,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    seconds,
)
from agentsched.policy import Choice
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Outage, Scenario, starts_of
from agentsched_bench.sim.clients import ProgramRun
from agentsched_bench.sim.engines import EngineTraits
from agentsched_bench.sim.host import SimHost
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs

LOST = EngineId("e001")
ENGINES = 3
OUTAGE = Outage(engine=1, at=Instant(seconds(8)), back_at=Instant(seconds(16)))
PINNED = SchedulerConfig(
    profile="agentsched",
    choices={"pin": Choice(name="fixed")},
    limits=Limits(wait_ns_max=seconds(15)),
)
STOCK = SchedulerConfig(profile="agentsched", limits=Limits(wait_ns_max=seconds(15)))
CONFIGS = {"pinned": PINNED, "stock": STOCK}
RUNS = [("pinned", 1), ("pinned", 3), ("stock", 1), ("stock", 2), ("stock", 6)]

pytestmark = pytest.mark.slow


@dataclass(slots=True)
class Step:
    """What the journal tells of one step."""

    program: ProgramId
    #: Where it was sent, in order, and the turn of each.
    sent: list[tuple[int, EngineId]] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    failed: list[tuple[int, bool]] = field(default_factory=list)
    ended: int | None = None
    rejected: bool = False


@dataclass(slots=True)
class Story:
    """One run."""

    runs: list[ProgramRun]
    entries: list[JournalEntry]
    steps: dict[StepId, Step]
    #: Turns at which the engine was lost, and was there again.
    lost: int
    back: int
    #: Tokens that the scheduler counted as pinned on the lost engine after each turn.
    pins_there: list[int]

    def had_begun(self, step: Step) -> bool:
        """Whether its client had seen a part of the answer when the engine was lost."""
        return any(turn < self.lost for turn in step.started)

    def at_the_loss(self) -> dict[StepId, Step]:
        """Steps that were out on the engine when it was lost."""
        found = {}
        for key, step in self.steps.items():
            sent = [place for turn, place in step.sent if turn < self.lost]
            is_over = step.ended is not None and step.ended < self.lost
            was_failed = any(turn < self.lost for turn, _ in step.failed)
            if sent and sent[-1] == LOST and not is_over and not was_failed:
                found[key] = step
        return found


@functools.cache
def play(name: str, *, seed: int) -> Story:
    rows = list(generate(programs=60, seed=seed, interarrival_s=0.5, steps_max=8))
    shape = ShapeOptions(scale_tokens=4, steps_max=8, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    engine = EngineConfig.from_preset(preset("cpu-2core"))
    engine = replace(engine, blocks=240, max_model_len=239 * engine.block_size)
    scenario = Scenario(
        plans=plans, engines=[engine] * ENGINES, arrivals=parse_arrivals("poisson:3")
    )
    scheduler = build_scheduler(CONFIGS[name])
    entries: list[JournalEntry] = []
    pins_there: list[int] = []

    def note(entry: JournalEntry) -> None:
        entries.append(entry)
        pins_there.append(scheduler.engines[LOST].pinned_tokens if LOST in scheduler.engines else 0)
        if entry.seq % 5 == 0:
            scheduler.check()

    host = SimHost(
        scheduler,
        engines=scenario.engines,
        on_turn=note,
        traits=[EngineTraits(pins=True)] * ENGINES,
    )
    runs = host.run(starts_of(scenario, seed=seed), outages=[OUTAGE])
    scheduler.check()
    return told(runs, entries, pins_there)


def told(runs: list[ProgramRun], entries: list[JournalEntry], pins_there: list[int]) -> Story:
    steps: dict[StepId, Step] = {}
    lost = back = -1
    for turn, entry in enumerate(entries):
        match event := entry.event:
            case StepArrived():
                steps[event.step] = Step(program=event.program)
            case StepStarted():
                steps[event.step].started.append(turn)
            case StepFailed():
                steps[event.step].failed.append((turn, event.is_retryable))
            case StepFinished():
                steps[event.step].ended = turn
            case EngineLost():
                lost = turn
            case EngineReported() if event.engine == LOST and lost >= 0 > back:
                back = turn
            case _:
                pass
        for command in entry.commands:
            match command:
                case Dispatch():
                    steps[command.step].sent.append((turn, command.engine))
                case Reject():
                    steps[command.step].rejected = True
                case _:
                    pass
    assert 0 <= lost < back
    return Story(
        runs=runs, entries=entries, steps=steps, lost=lost, back=back, pins_there=pins_there
    )


@pytest.fixture(params=RUNS, ids=lambda run: "-".join(map(str, run)))
def story(request: pytest.FixtureRequest) -> Story:
    name, seed = request.param
    return play(name, seed=seed)


def test_every_program_comes_to_its_end(story: Story) -> None:
    for run in story.runs:
        assert run.ended_at is not None
        assert not run.is_failed
        assert run.calls == run.plan.calls


def test_what_had_not_begun_to_stream_is_answered_elsewhere(story: Story) -> None:
    waiting = {k: s for k, s in story.at_the_loss().items() if not story.had_begun(s)}
    for key, step in waiting.items():
        turn, is_retryable = step.failed[0]
        assert is_retryable, key
        assert step.ended is not None, key
        assert not step.rejected, key
        again = [place for sent, place in step.sent if sent >= turn]
        assert again, key
        assert again[0] != LOST, key


def test_only_steps_that_were_there_fail(story: Story) -> None:
    there = story.at_the_loss()
    assert {key for key, step in story.steps.items() if step.failed} == set(there)
    for step in there.values():
        # What the client had seen a part of cannot be had again behind its back.
        assert step.failed[0][1] == (not story.had_begun(step))


def test_nothing_is_sent_to_an_engine_that_is_lost(story: Story) -> None:
    places = [
        place
        for step in story.steps.values()
        for turn, place in step.sent
        if story.lost <= turn < story.back
    ]
    assert places
    assert LOST not in places


def test_its_pins_are_written_off_and_none_is_placed_there(story: Story) -> None:
    assert not any(story.pins_there[story.lost : story.back])
    placed = [
        command
        for entry in story.entries[story.lost : story.back]
        for command in entry.commands
        if isinstance(command, Pin) and command.engine == LOST
    ]
    assert not placed


def test_there_was_something_to_lose() -> None:
    stories = [play(name, seed=seed) for name, seed in RUNS]
    assert all(story.at_the_loss() for story in stories)
    begun = [s.had_begun(step) for s in stories for step in s.at_the_loss().values()]
    assert set(begun) == {True, False}
    assert max(stories[0].pins_there[: stories[0].lost]) > 0


def test_programs_elsewhere_stay_where_they_are(story: Story) -> None:
    """A program with a step on another engine at the loss keeps to it until the engine is back."""
    before: dict[ProgramId, EngineId] = {}
    for step in story.steps.values():
        for turn, place in step.sent:
            if turn < story.lost:
                before[step.program] = place
    moved = set()
    for step in story.steps.values():
        home = before.get(step.program)
        for turn, place in step.sent:
            if story.lost <= turn < story.back and home not in (None, LOST, place):
                moved.add(step.program)
    stayed = {p for p, home in before.items() if home != LOST} - moved
    assert stayed
    assert not moved


def test_the_engine_is_used_again_once_it_is_back(story: Story) -> None:
    later = [
        place for step in story.steps.values() for turn, place in step.sent if turn >= story.back
    ]
    assert LOST in later
