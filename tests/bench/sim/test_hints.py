"""Warm-ups on modelled engines are requests: they take time, compete, and may come to nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry
from agentsched.model import (
    MILLISECOND,
    SECOND,
    HintAnswered,
    HintOutcome,
    Instant,
    Limits,
    Pin,
    PinId,
    Prefetch,
    TenantConfigured,
    TenantId,
    Unpin,
    after,
    seconds,
)
from agentsched.policy import Choice
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Scenario, starts_of
from agentsched_bench.sim.engines import EngineTraits
from agentsched_bench.sim.faults import Faults, Outage, Restart, restart
from agentsched_bench.sim.host import SimHost
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs


def scenario() -> Scenario:
    """Two engines that are too small, and pauses long enough for something to be warmed."""
    rows = list(generate(programs=16, seed=3, interarrival_s=1.0, steps_max=8))
    shape = ShapeOptions(scale_tokens=4, scale_time=0.25, steps_max=8, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    config = EngineConfig.from_preset(preset("cpu-2core"))
    config = replace(config, blocks=240, max_model_len=239 * config.block_size)
    return Scenario(plans=plans, engines=[config] * 2, arrivals=parse_arrivals("poisson:0.6"))


class Course:
    """A simulation with its journal."""

    def __init__(
        self,
        *,
        faults: Faults | None = None,
        warm: bool = True,
        tenants: tuple[TenantConfigured, ...] = (),
    ) -> None:
        self.entries: list[JournalEntry] = []
        made = scenario()
        choices = {"prefetch": Choice(name="saga")}
        limits = Limits(wait_ns_max=seconds(15), bypasses_max=1_000_000)
        config = SchedulerConfig(profile="passthrough", choices=choices, limits=limits)

        def note(entry: JournalEntry) -> None:
            self.entries.append(entry)
            self.host.scheduler.check()

        self.host = SimHost(
            build_scheduler(config),
            engines=made.engines,
            traits=[EngineTraits(warm=warm)] * 2,
            on_turn=note,
            renew=lambda: build_scheduler(config),
        )
        starts = starts_of(made, seed=1)
        self.runs = self.host.run(starts, faults=faults or Faults(), tenants=tenants)

    def asked(self) -> dict[PinId, Instant]:
        return {
            command.pin: entry.now
            for entry in self.entries
            for command in entry.commands
            if isinstance(command, Prefetch)
        }

    def first_warm_up(self) -> tuple[Prefetch, Instant]:
        found = [(c, e.now) for e in self.entries for c in e.commands if isinstance(c, Prefetch)]
        return found[0]

    def answers(self) -> dict[PinId, tuple[Instant, HintOutcome]]:
        return {
            entry.event.pin: (entry.now, entry.event.outcome)
            for entry in self.entries
            if isinstance(entry.event, HintAnswered)
        }

    def stopped(self) -> set[PinId]:
        ended = {c.pin for e in self.entries for c in e.commands if isinstance(c, Unpin)}
        pins = {c.pin for e in self.entries for c in e.commands if isinstance(c, Pin)}
        return ended - pins


@pytest.fixture(scope="module")
def plain() -> Course:
    return Course()


@pytest.mark.slow
def test_a_stock_engine_computes_what_is_warmed(plain: Course) -> None:
    asked, answers, stopped = plain.asked(), plain.answers(), plain.stopped()
    done = {pin for pin, (_, outcome) in answers.items() if outcome is HintOutcome.ACCEPTED}
    assert done <= set(asked)
    assert done, "none was ever computed"
    assert plain.host.tally.warmed_tokens > 0
    for pin in done:
        # There and back, and a step of the engine: never in the instant in which it was asked for.
        assert answers[pin][0] > asked[pin]
    assert set(asked) == set(answers) | stopped, "each is answered or taken back"
    assert all(run.ended_at is not None and not run.is_failed for run in plain.runs)


@pytest.mark.slow
def test_a_warm_up_that_is_taken_back_is_not_answered(plain: Course) -> None:
    assert plain.stopped(), "none had to give way"
    assert not plain.stopped() & set(plain.answers())


@pytest.mark.slow
def test_an_engine_that_cannot_is_not_asked() -> None:
    course = Course(warm=False)
    assert not course.asked()
    assert course.host.tally.warmed_tokens == 0


@pytest.mark.slow
def test_a_warm_up_ends_with_its_engine(plain: Course) -> None:
    warm, at = plain.first_warm_up()
    number = list(plain.host.engines).index(warm.engine)
    dies = Outage(engine=number, at=after(at, MILLISECOND), back_at=after(at, SECOND))
    course = Course(faults=Faults(outages=(dies,)))
    assert course.first_warm_up() == (warm, at)
    # The kernel takes back what its engine can no longer do.
    assert warm.pin in course.stopped()
    assert warm.pin not in course.answers()
    for engine in course.host.engines.values():
        engine.model.check()
    assert all(run.ended_at is not None for run in course.runs)


@pytest.mark.slow
def test_a_warm_up_is_hung_up_on_with_its_proxy(plain: Course) -> None:
    """What the next life asks for under the same name is another one."""
    _, at = plain.first_warm_up()
    ends = Restart(at=after(at, MILLISECOND), back_at=after(at, SECOND))
    course = Course(faults=Faults(restarts=(ends,)))
    for pin, (told_at, _) in course.answers().items():
        assert told_at > course.asked()[pin]
    assert all(run.ended_at is not None for run in course.runs)
    for engine in course.host.engines.values():
        engine.model.check()


@pytest.mark.slow
def test_every_life_of_the_proxy_is_told_its_tenants_first() -> None:
    told = (TenantConfigured(tenant=TenantId("sim"), weight=3.0),)
    course = Course(faults=Faults(restarts=(restart("3+1"),)), tenants=told)
    configured = [e for e in course.entries if isinstance(e.event, TenantConfigured)]
    assert len(configured) == 2
    assert course.entries[0] is configured[0]
    assert configured[1].now > configured[0].now
    assert course.host.scheduler.tenants[TenantId("sim")].weight == 3.0
