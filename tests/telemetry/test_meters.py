"""Metrics as a projection of the journal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shorthand import arrived, at, finished, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import (
    SECOND,
    Capabilities,
    EngineId,
    EngineLoad,
    EngineLost,
    EngineReported,
    Event,
    Limits,
    Nanos,
    StepCancelled,
    StepClass,
    StepFailed,
    StepId,
    StepStarted,
)
from agentsched.telemetry.meters import MeterSink


class Bench:
    """A scheduler whose journal goes into meters."""

    def __init__(self, limits: Limits | None = None) -> None:
        config = SchedulerConfig(profile="fcfs", limits=limits or Limits())
        self.scheduler = build_scheduler(config)
        self.meters = MeterSink(self.scheduler)
        self.at = 0.0

    def feed(self, event: Event, *, after_s: float = 0.0) -> None:
        self.at += after_s
        self.scheduler.handle(event, now=at(self.at))
        assert self.scheduler.latest is not None
        self.meters.write(self.scheduler.latest)

    def value(self, name: str, **labels: str) -> float | None:
        return self.meters.registry.get_sample_value(f"agentsched_{name}", labels)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.feed(report())
    return made


def test_a_background_step_that_makes_way_is_no_failure_of_its_engine(bench: Bench) -> None:
    one = replace(report(), capabilities=Capabilities(running_max=1))
    bench.feed(one)
    bench.feed(arrived("batch", "b", step_class=StepClass.BATCH))
    bench.feed(arrived("s"), after_s=90)
    bench.feed(StepFailed(step=StepId("batch"), reason="other work came", is_retryable=True))
    bench.feed(finished("s", prompt=10), after_s=1)
    assert (bench.value("yields_total"), bench.value("retries_total")) == (1, 0)
    assert bench.value("attempt_failures_total", engine="e0") is None
    # It waited for the second that the other took, and not while it computed.
    assert bench.value("wait_seconds_count") == 3
    assert bench.value("wait_seconds_sum") == 1
    bench.feed(StepFailed(step=StepId("batch"), reason="reset", is_retryable=True), after_s=5)
    assert bench.value("attempt_failures_total", engine="e0") == 1
    assert bench.value("wait_seconds_sum") == 1


def test_the_gauges_of_engines_are_the_fleets() -> None:
    """One that never answered is down, for alerts; of one that was removed nothing is left."""
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    members = [EngineId("e0"), EngineId("e1")]
    meters = MeterSink(scheduler, members=lambda: members)
    shown = meters.registry.get_sample_value

    def told() -> str:
        return meters.exposition().decode()

    for engine in members:
        for name in ("up", "silent"):
            assert shown(f"agentsched_engine_{name}", {"engine": engine}) == 0
    assert told().count('{engine="e0"}') == 2
    scheduler.handle(report("e0"), now=at(0))
    assert shown("agentsched_engine_up", {"engine": "e0"}) == 1
    scheduler.handle(EngineLost(engine=EngineId("e0"), reason="removed"), now=at(0))
    members.remove(EngineId("e0"))
    assert "e0" not in told()
    assert shown("agentsched_engine_up", {"engine": "e1"}) == 0


def report(engine: str = "e0", **load: Any) -> EngineReported:
    return replace(reported(engine), load=EngineLoad(**load))


def test_the_times_of_a_step(bench: Bench) -> None:
    bench.feed(arrived("s"))
    bench.feed(StepStarted(step=StepId("s")), after_s=2)
    bench.feed(finished("s", prompt=100, cached=60, output=7), after_s=3)
    assert bench.value("wait_seconds_sum") == 0
    assert bench.value("time_to_first_token_seconds_sum") == 2
    assert bench.value("step_seconds_sum") == 5
    assert bench.value("tokens_total", engine="e0", kind="prompt") == 100
    assert bench.value("tokens_total", engine="e0", kind="cached") == 60
    assert bench.value("tokens_total", engine="e0", kind="output") == 7


def test_what_an_engine_does_not_tell_of_its_cache_is_no_series(bench: Bench) -> None:
    """0 was drawn as a cache in which nothing is ever found."""
    bench.feed(arrived("s"))
    bench.feed(finished("s", prompt=100, cached=None, output=7))
    assert bench.value("tokens_total", engine="e0", kind="prompt") == 100
    assert bench.value("tokens_total", engine="e0", kind="cached") is None
    bench.feed(arrived("t"))
    bench.feed(finished("t", prompt=100, cached=0, output=7))
    assert bench.value("tokens_total", engine="e0", kind="cached") == 0


@pytest.mark.parametrize(
    ("waited_s", "shorter", "bound"), [(250, "120.0", "300.0"), (3_000, "1800.0", "3600.0")]
)
def test_a_wait_near_its_bound_is_told_from_shorter_ones(
    waited_s: float, shorter: str, bound: str
) -> None:
    """A quantile cannot lie above the last bucket."""
    bench = Bench(Limits(wait_ns_max=Nanos(3_600 * SECOND), running_steps_per_engine_max=1))
    bench.feed(report())
    bench.feed(arrived("first", "a"))
    bench.feed(arrived("s"))
    bench.feed(finished("first", prompt=10), after_s=waited_s)
    assert bench.value("wait_seconds_bucket", le=shorter) == 1
    assert bench.value("wait_seconds_bucket", le=bound) == 2


def test_late_and_double_events_count_once(bench: Bench) -> None:
    bench.feed(arrived("s"))
    for _ in range(2):
        bench.feed(StepStarted(step=StepId("s")))
    for _ in range(3):
        bench.feed(finished("s", prompt=10))
    bench.feed(StepCancelled(step=StepId("s"), reason="late"))
    bench.feed(finished("never-seen", prompt=10))
    assert bench.value("steps_ended_total", outcome="finished") == 1
    assert bench.value("steps_ended_total", outcome="cancelled") is None
    assert bench.value("tokens_total", engine="e0", kind="prompt") == 10
    assert bench.value("time_to_first_token_seconds_count") == 1
    assert bench.value("ignored_events_total") == 5
    assert not bench.meters._steps


def test_a_retried_step_is_one_step(bench: Bench) -> None:
    bench.feed(arrived("s"))
    bench.feed(StepFailed(step=StepId("s"), reason="x", is_retryable=True))
    bench.feed(finished("s"))
    assert bench.value("steps_total", step_class="step") == 1
    assert bench.value("steps_ended_total", outcome="finished") == 1
    assert bench.value("steps_ended_total", outcome="failed") is None
    assert bench.value("retries_total") == 1


def test_a_step_that_no_engine_takes_ends_as_rejected(bench: Bench) -> None:
    bench.feed(arrived("s"))
    for _ in range(3):
        bench.feed(StepFailed(step=StepId("s"), reason="x", is_retryable=True))
    assert bench.value("steps_ended_total", outcome="rejected") == 1
    assert bench.value("rejects_total", reason="engine_failed") == 1
    assert not bench.meters._steps


def test_unknown_gauges_have_no_value(bench: Bench) -> None:
    assert bench.value("engine_kv_usage", engine="e0") is None
    bench.feed(report("e1", kv_usage=0.0))
    assert bench.value("engine_kv_usage", engine="e1") == 0
    assert bench.value("engine_up", engine="e0") == 1


def test_each_has_a_registry_of_its_own() -> None:
    assert Bench().meters.exposition() != b""
    assert Bench().meters.registry is not Bench().meters.registry


def test_watchers(bench: Bench) -> None:
    bench.meters.count_watchers(2)
    bench.meters.count_watchers(-1)
    assert bench.value("decision_watchers") == 1
