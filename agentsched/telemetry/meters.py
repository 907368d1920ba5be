"""Prometheus metrics, projected from the journal. Labels are few and bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.kernel import JournalEntry, Scheduler
from agentsched.kernel.records import EngineRecord
from agentsched.model import (
    Cancel,
    CancelReason,
    Dispatch,
    EngineId,
    HintAnswered,
    Instant,
    Reject,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    between,
    in_seconds,
)
from agentsched.telemetry.counters import Counts, Times
from agentsched.telemetry.decisions import DecisionMeters

#: Up to an hour: nobody sees a wait near a bound that lies beyond the last.
_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300),
    *(600, 1_200, 1_800, 3_600),
)


#: What is said of an engine that never answered.
_OF_ANY: Final[Mapping[str, float]] = {"up": 0.0, "silent": 0.0}


@dataclass(slots=True)
class _Times:
    arrived: Instant
    #: Since it arrived, or a try that came to nothing.
    waiting_since: Instant
    #: It was told to make way: that its try comes to nothing is no failure of its engine.
    is_yielding: bool = False
    engine: str = ""
    started: Instant | None = None


class MeterSink:
    """Counts and times of steps. One registry each, so that tests and replicas do not collide.

    `members` says whose gauges are shown: the fleet's engines, whether or not they ever answered,
    and none that was removed. By default all are that the scheduler knows.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        members: Callable[[], Iterable[EngineId]] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._steps: dict[StepId, _Times] = {}
        registry = self.registry
        self._arrived = Counts(
            "agentsched_steps", "Steps that arrived.", ["step_class"], registry=registry
        )
        self._ended = Counts(
            "agentsched_steps_ended",
            "Steps that ended, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self._rejected = Counts(
            "agentsched_rejects", "Steps turned away.", ["reason"], registry=registry
        )
        self._tokens = Counts(
            "agentsched_tokens",
            "Tokens by kind: prompt, cached (where the engine tells it), output.",
            ["engine", "kind"],
            registry=registry,
        )
        self._decisions = DecisionMeters(registry)
        self._reports = Counts(
            "agentsched_tool_reports",
            "Reports of tools, by what became of them.",
            ["outcome"],
            registry=registry,
        )
        self._wait = Times(
            "agentsched_wait_seconds",
            "From arrival, or from a try that came to nothing, to dispatch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_token = Times(
            "agentsched_time_to_first_token_seconds",
            "From arrival to the first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._duration = Times(
            "agentsched_step_seconds",
            "From arrival to the end of the answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._watchers = Gauge(
            "agentsched_decision_watchers", "Clients of the decision stream.", registry=registry
        )
        registry.register(_Gauges(scheduler, members or (lambda: scheduler.engines)))

    def write(self, entry: JournalEntry) -> None:
        """Take in one turn of the scheduler."""
        self._event(entry)
        for command in entry.commands:
            self._decisions.count(command)
            match command:
                case Dispatch():
                    times = self._steps.get(command.step)
                    if times is not None:
                        times.engine = command.engine
                        waited = in_seconds(between(times.waiting_since, entry.now))
                        self._wait.observe(waited)
                case Cancel(reason=CancelReason.YIELDED):
                    yielding = self._steps.get(command.step)
                    if yielding is not None:
                        yielding.is_yielding = True
                case Reject():
                    self._rejected.add((command.reason.value,))
                    self._end(command.step, "rejected", entry.now)
                case _:
                    pass

    def count_watchers(self, change: int) -> None:
        """A client began (+1) or stopped (-1) to watch decisions."""
        self._watchers.inc(change)

    def count_tool_report(self, outcome: str, count: int = 1) -> None:
        """Somebody reported a tool, or so many, and this became of it."""
        self._reports.add((outcome,), count)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _count_tokens(self, event: StepFinished) -> None:
        times = self._steps.get(event.step)
        if times is None:
            return  # late or a duplicate
        engine = times.engine
        self._tokens.add((engine, "prompt"), event.usage.prompt_tokens)
        # An engine that does not tell what it had cached has no such series: 0 would say that
        # it found nothing.
        if event.usage.cached_tokens is not None:
            self._tokens.add((engine, "cached"), event.usage.cached_tokens)
        self._tokens.add((engine, "output"), event.usage.output_tokens)

    def _event(self, entry: JournalEntry) -> None:
        event, now = entry.event, entry.now
        match event:
            case StepArrived():
                self._arrived.add((event.step_class.value,))
                self._steps[event.step] = _Times(now, now)
            case StepStarted():
                times = self._steps.get(event.step)
                if times is not None and times.started is None:
                    times.started = now
                    self._first_token.observe(in_seconds(between(times.arrived, now)))
            case StepFinished():
                self._count_tokens(event)
                self._end(event.step, "finished", now)
            case StepCancelled():
                self._end(event.step, "cancelled", now)
            case StepFailed() if not event.is_retryable:
                self._end(event.step, "failed", now)
            case StepFailed():
                self._put_back(event.step, now)
            case HintAnswered():
                self._decisions.count_hint(event.outcome)
            case _:
                pass

    def _put_back(self, step: StepId, now: Instant) -> None:
        times = self._steps.get(step)
        if times is None:
            return
        times.waiting_since = now
        if times.is_yielding:
            times.is_yielding = False
        else:
            self._decisions.count_failure(times.engine)

    def _end(self, step: StepId, outcome: str, now: Instant) -> None:
        times = self._steps.pop(step, None)
        if times is not None:
            self._ended.add((outcome,))
            self._duration.observe(in_seconds(between(times.arrived, now)))


class _Gauges(Collector):
    """What is true at the moment of the scrape, read from the scheduler itself."""

    def __init__(self, scheduler: Scheduler, members: Callable[[], Iterable[EngineId]]) -> None:
        self._scheduler = scheduler
        self._members = members

    def collect(self) -> Iterator[Metric]:
        statistics = self._scheduler.statistics()
        now: list[tuple[str, str, float]] = [
            ("programs", "Live programs.", statistics.programs),
            ("waiting_steps", "Steps held.", statistics.waiting_steps),
            ("running_steps", "Steps at engines.", statistics.running_steps),
            ("live_pins", "Retentions in force.", statistics.pins),
        ]
        bound = in_seconds(self._scheduler.limits.wait_ns_max)
        now.append(("wait_bound_seconds", "The operator's wait bound.", bound))
        for name, text, value in now:
            yield GaugeMetricFamily(f"agentsched_{name}", text, value=value)
        yield self._sensible_wait()
        totals: list[tuple[str, str, float]] = [
            ("yields", "Background steps that made way.", statistics.yielded_total),
            ("events", "Events handled.", statistics.events_total),
            ("ignored_events", "Late or duplicate events.", statistics.ignored_total),
            ("retries", "Dispatches after a failed one.", statistics.retried_total),
            ("policy_errors", "Failures of policies.", statistics.policy_errors_total),
        ]
        for name, text, value in totals:
            yield CounterMetricFamily(f"agentsched_{name}", text, value=value)
        yield self._pressure()
        yield from self._engines()
        yield from self._warm_ups()

    def _sensible_wait(self) -> GaugeMetricFamily:
        sensible = self._scheduler.sensible_wait()  # None while too little is known to say
        return GaugeMetricFamily(
            "agentsched_sensible_wait_seconds",
            "The least wait bound that this load allows.",
            value=None if sensible is None else in_seconds(sensible),
        )

    def _warm_ups(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "agentsched_warm_tokens",
            "Tokens of warm-ups, by outcome.",
            labels=["engine", "outcome"],
        )
        accounts = self._scheduler.warm_accounts
        for engine in self._members():
            account = accounts.get(engine)
            if account is None:
                continue
            for outcome in ("issued", "hit", "wasted", "unknown", "cancelled", "failed"):
                family.add_metric([engine, outcome], getattr(account, outcome))
        yield family

    def _pressure(self) -> GaugeMetricFamily:
        """What work we have over what the engines that are up can hold at once: 1 is full.

        Other replicas count theirs: no context is counted by two of them.
        """
        engines = [e for e in self._scheduler.engines.values() if e.is_up]
        held = sum(e.capabilities.kv_tokens or 0 for e in engines)
        wanted = sum(e.wanted_tokens for e in engines)
        statistics = self._scheduler.statistics()
        room = sum(e.capabilities.running_max or 0 for e in engines)
        demand = statistics.waiting_steps + statistics.running_steps
        family = GaugeMetricFamily(
            "agentsched_pressure",
            "Work of this replica's programs over room: `kv` of caches, `steps` of batches. The sum"
            " over replicas is what to scale engines by.",
            labels=["of"],
        )
        if held:
            family.add_metric(["kv"], wanted / held)
        if room:
            family.add_metric(["steps"], demand / room)
        return family

    def _engines(self) -> Iterator[GaugeMetricFamily]:
        # One that never answered is down like any other: an alert must have something to read.
        records = self._scheduler.engines
        engines = {engine: records.get(engine) for engine in self._members()}
        readings: list[tuple[str, str, Callable[[EngineRecord], float | None]]] = [
            ("up", "1 while it takes new work.", lambda e: float(e.is_up)),
            (
                "silent",
                "1 while it answers nothing, with our steps inside.",
                lambda e: float(e.silent_since is not None),
            ),
            ("running_steps", "Our steps there.", lambda e: e.running_steps),
            ("running_tokens", "Their prompts.", lambda e: e.running_tokens),
            ("pinned_tokens", "Retained tokens.", lambda e: e.pinned_tokens),
            ("contended", "1 while the pressure gate is open.", lambda e: float(e.is_contended)),
            ("wanted_tokens", "Working set of live programs.", lambda e: e.wanted_tokens),
            ("waiting_steps", "Requests in its own queue.", lambda e: e.load.waiting),
            ("kv_tokens", "What its cache holds.", lambda e: e.capabilities.kv_tokens),
            ("peer_steps", "Steps of other replicas there.", lambda e: e.peer_steps),
            ("background_steps", "Batch steps among ours.", lambda e: e.background_steps),
            ("warm_paid", "Share of warmed tokens that were used.", lambda e: e.warm_paid),
            ("kv_usage", "Its own gauge, 0 to 1.", lambda e: e.load.kv_usage),
        ]
        for name, text, read in readings:
            family = GaugeMetricFamily(f"agentsched_engine_{name}", text, labels=["engine"])
            for engine, record in engines.items():
                # Without the gauge it has no value, not zero.
                value = _OF_ANY.get(name) if record is None else read(record)
                if value is not None:
                    family.add_metric([engine], value)
            yield family
