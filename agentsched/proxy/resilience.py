"""Breakers, the retry budget, requests that came twice and all bodies, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.proxy.bodies import Bodies
from agentsched.proxy.fleet import Fleet
from agentsched.proxy.health import RetryBudget
from agentsched.proxy.idempotency import SharedAnswers
from agentsched.proxy.resends import Resends


class ResilienceCollector(Collector):
    """What was done about faults, read at the moment of the scrape.

    Engines are those of the fleet, each from the start, so that an alert may ask for growth.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        retries: RetryBudget,
        resends: Resends,
        shared: SharedAnswers,
        bodies: Bodies,
    ) -> None:
        self._fleet = fleet
        self._retries = retries
        self._resends = resends
        self._shared = shared
        self._bodies = bodies

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        yield from self._breakers()
        yield from self._budget()
        yield from self._twice()
        yield from self._held()

    def _breakers(self) -> Iterator[Metric]:
        is_open = GaugeMetricFamily(
            "agentsched_breaker_open",
            "1 while the engine is ejected for its failures.",
            labels=["engine"],
        )
        in_a_row = GaugeMetricFamily(
            "agentsched_breaker_failures_in_a_row",
            "Requests that it failed since the last that it answered.",
            labels=["engine"],
        )
        failures = CounterMetricFamily(
            "agentsched_breaker_failures",
            "Tries of requests that failed by the engine's fault.",
            labels=["engine"],
        )
        ejections = CounterMetricFamily(
            "agentsched_breaker_ejections",
            "Times that its failures were reason to eject it: it was, or it was `withheld`, being"
            " the last that is up or one too many.",
            labels=["engine", "outcome"],
        )
        for engine in self._fleet.members:
            told = self._fleet.health.told(engine)
            is_open.add_metric([engine], float(told.is_open))
            in_a_row.add_metric([engine], told.failures_in_a_row)
            failures.add_metric([engine], told.failures_total)
            ejections.add_metric([engine, "ejected"], told.opened_total)
            ejections.add_metric([engine, "withheld"], told.withheld_total)
        yield from (is_open, in_a_row, failures, ejections)

    def _budget(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "agentsched_retry_budget_tokens",
            "Retries that would be granted now.",
            value=self._retries.tokens,
        )
        asked = CounterMetricFamily(
            "agentsched_retry_budget_requests",
            "Retries at another engine that the budget was asked for.",
            labels=["outcome"],
        )
        asked.add_metric(["granted"], self._retries.granted_total)
        asked.add_metric(["refused"], self._retries.refused_total)
        yield asked

    def _held(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "agentsched_bodies_bytes",
            "Bytes of the bodies of all requests that are under way.",
            value=self._bodies.held,
        )
        yield CounterMetricFamily(
            "agentsched_bodies_refused",
            "Requests that were refused since all bodies together were too large.",
            value=self._bodies.refused_total,
        )

    def _twice(self) -> Iterator[Metric]:
        shared = self._shared
        requests = CounterMetricFamily(
            "agentsched_idempotency_requests",
            "Requests that say which one they are: `begun` work, `joined` work under way, were"
            " given an answer that was `kept`, or had a key with another body (`conflict`).",
            labels=["outcome"],
        )
        for outcome, count in (
            ("begun", shared.begun_total),
            ("joined", shared.joined_total),
            ("kept", shared.repeated_total),
            ("conflict", shared.conflicts_total),
        ):
            requests.add_metric([outcome], count)
        yield requests
        for name, text, value in (
            ("answers", "Requests that another could join or repeat.", len(shared)),
            ("bytes", "Bytes of answers that are kept to be had again.", shared.kept_bytes),
        ):
            yield GaugeMetricFamily(f"agentsched_idempotency_{name}", text, value=value)
        resends = CounterMetricFamily(
            "agentsched_client_retries",
            "Turns that a client sent again: the first try `gave_way`, or `went_on` since others"
            " may wait for it, or had `ended` without an answer.",
            labels=["outcome"],
        )
        for outcome, count in self._resends.retried.items():
            resends.add_metric([outcome], count)
        yield resends
