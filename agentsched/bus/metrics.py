"""The bus as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.bus.service import Bus


class BusCollector(Collector):
    """What is true of the bus at the moment of the scrape."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        bus = self._bus
        text = "1 while the broker is there."
        yield GaugeMetricFamily(
            "agentsched_bus_up", text, value=float(bus.connection.is_up.is_set())
        )
        text = "Other replicas that are heard."
        yield GaugeMetricFamily("agentsched_bus_peers", text, value=len(bus.peers))
        for name, text, counts in (
            ("heard", "Messages heard, by what became of them.", bus.counts),
            (
                "connection",
                "What became of the connection.",
                bus.connection.counts,
            ),
        ):
            family = CounterMetricFamily(f"agentsched_bus_{name}", text, labels=["outcome"])
            for outcome, count in counts.items():
                family.add_metric([outcome], count)
            yield family
