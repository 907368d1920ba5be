"""The writer's counts as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.store.writer import StoreWriter


class StoreCollector(Collector):
    """What is true of the store at the moment of the scrape."""

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        now = self._writer.statistics()
        records = CounterMetricFamily(
            "agentsched_store_records",
            "Records for the database, by what became of them; spooled ones are written later.",
            labels=["outcome"],
        )
        for outcome, count in (
            ("written", now.written_total),
            ("spooled", now.spooled_total),
            ("dropped", now.dropped_total),
            ("refused", now.refused_total),
        ):
            records.add_metric([outcome], count)
        yield records
        yield CounterMetricFamily(
            "agentsched_store_failures", "Transactions that failed.", value=now.failures_total
        )
        for name, text, value in (
            ("up", "1 while the database takes what it is given.", float(now.is_up)),
            ("backlog", "Records in memory that wait to be written.", now.backlog),
            ("spool_bytes", "Bytes on disk that wait for the database.", now.spool_bytes),
        ):
            yield GaugeMetricFamily(f"agentsched_store_{name}", text, value=value)
