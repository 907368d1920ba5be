"""An engine that joins at light load gets its part of the new programs: it is not left idle.

The engines are several times as fast as the guess that stands until a price is learnt, so one that
has answered nothing looks dear beside one that has.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import JournalEntry
from agentsched.model import Dispatch, EngineId, Instant, Limits, seconds
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.sim.arms import Outage, Scenario, starts_of
from agentsched_bench.sim.host import SimHost
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import ShapeOptions, SharedPrompts, plan_programs
from agentsched_bench.workload.trace import group_programs

pytestmark = pytest.mark.slow
OLD, NEW = EngineId("e000"), EngineId("e001")


def begun(*, seed: int, joins_s: float, rate: float) -> Counter[EngineId]:
    """Where programs were begun after the second engine had come."""
    rows = list(generate(programs=60, seed=seed, interarrival_s=0.5, steps_max=3))
    shape = ShapeOptions(scale_tokens=1, steps_max=3, context_tokens_max=60_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn([]))
    engine = EngineConfig.from_preset(preset("h100-8b"))
    engine = replace(engine, cost=engine.cost.slower(0.25))
    scenario = Scenario(
        plans=plans, engines=[engine] * 2, arrivals=parse_arrivals(f"poisson:{rate}")
    )
    scheduler = build_scheduler(
        SchedulerConfig(profile="agentsched", limits=Limits(wait_ns_max=seconds(60)))
    )
    joins = Instant(seconds(joins_s))
    found: Counter[EngineId] = Counter()

    def note(entry: JournalEntry) -> None:
        if entry.now >= joins:
            sent = (c for c in entry.commands if isinstance(c, Dispatch))
            found.update(c.engine for c in sent if c.place == "new")

    host = SimHost(scheduler, engines=scenario.engines, on_turn=note)
    away = Outage(engine=1, at=Instant(1), back_at=joins)
    runs = host.run(starts_of(scenario, seed=seed), outages=[away] if joins_s else [])
    assert all(run.ended_at is not None and not run.is_failed for run in runs)
    return found


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("joins_s", [0, 5])
@pytest.mark.parametrize("rate", [1, 4])
def test_the_new_one_is_given_a_part_of_what_begins(seed: int, joins_s: float, rate: float) -> None:
    found = begun(seed=seed, joins_s=joins_s, rate=rate)
    # At light load the first of two that are idle is taken, so the other has less than half.
    assert found[NEW] > found.total() / 6, found
