"""Who was turned away, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.proxy.access.gate import Gate

#: Always there, so that an alert may ask for their growth.
_REASONS = ("unknown", "scope", "csrf", "login", "store")


class GateCollector(Collector):
    """What is true of the gate at the moment of the scrape."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        refused = CounterMetricFamily(
            "agentsched_auth_refused",
            "Requests that were turned away: no key that counts, a scope or a page's token that is"
            " missing, a failed login; and failed looks into the store for keys.",
            labels=["reason"],
        )
        for reason in _REASONS:
            refused.add_metric([reason], self._gate.refused[reason])
        yield refused
        yield GaugeMetricFamily(
            "agentsched_auth_keys", "API keys that are known.", value=len(self._gate.ring)
        )
