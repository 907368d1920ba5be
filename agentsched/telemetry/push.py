"""The metrics of `/metrics`, sent over OTLP: one truth for those who scrape and those who are sent.

Names of the semantic conventions get their dots back (`gen_ai_server_request_duration_seconds` is
`gen_ai.server.request.duration` in seconds); all others keep those that they have at a scrape, but
counters without `_total`.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from agentsched.model import Nanos, in_seconds
from agentsched.telemetry.export_words import WORDS
from agentsched.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric as OtelMetric
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource
    from prometheus_client.metrics_core import Metric
    from prometheus_client.samples import Sample

log = logging.getLogger(__name__)

#: What conventions call metrics and their labels, by their names at a scrape.
CONVENTION_NAMES: Final[Mapping[str, tuple[str, str]]] = {
    "gen_ai_client_token_usage": ("gen_ai.client.token.usage", "{token}"),
    "gen_ai_client_operation_duration_seconds": ("gen_ai.client.operation.duration", "s"),
    "gen_ai_client_operation_time_to_first_chunk_seconds": (
        "gen_ai.client.operation.time_to_first_chunk",
        "s",
    ),
    "gen_ai_server_request_duration_seconds": ("gen_ai.server.request.duration", "s"),
    "gen_ai_server_time_to_first_token_seconds": ("gen_ai.server.time_to_first_token", "s"),
    "gen_ai_server_time_per_output_token_seconds": ("gen_ai.server.time_per_output_token", "s"),
    "gen_ai_invoke_agent_duration_seconds": ("gen_ai.invoke_agent.duration", "s"),
    "gen_ai_invoke_agent_inference_calls": ("gen_ai.invoke_agent.inference_calls", "{call}"),
    "gen_ai_invoke_agent_tool_calls": ("gen_ai.invoke_agent.tool_calls", "{call}"),
    "gen_ai_execute_tool_duration_seconds": ("gen_ai.execute_tool.duration", "s"),
}
_LABELS: Final[Mapping[str, str]] = {
    "gen_ai_operation_name": "gen_ai.operation.name",
    "gen_ai_provider_name": "gen_ai.provider.name",
    "gen_ai_request_model": "gen_ai.request.model",
    "gen_ai_token_type": "gen_ai.token.type",
    "gen_ai_tool_name": "gen_ai.tool.name",
    "error_type": "error.type",
}


class MetricPush:
    """Sends what a scrape would have shown. Used by one thread."""

    def __init__(
        self,
        resource: Resource,
        *,
        base_url: str,
        headers: dict[str, str],
        timeout: Nanos,
    ) -> None:
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        self._resource = resource
        self._began_ns = time.time_ns()
        self._is_failing = False
        self._exporter = OTLPMetricExporter(
            endpoint=f"{base_url}/v1/metrics",
            headers=headers,
            timeout=in_seconds(timeout),
            compression=Compression.Gzip,
        )

    def push(self, families: list[Metric]) -> None:
        """Send the metrics; a failure is logged when it is the first."""
        from opentelemetry.sdk.metrics.export import MetricExportResult

        WORDS.forget()
        data = to_otlp(families, self._resource, began_ns=self._began_ns, now_ns=time.time_ns())
        is_sent = self._exporter.export(data) is MetricExportResult.SUCCESS
        if is_sent is self._is_failing:
            self._is_failing = not is_sent
            if is_sent:
                log.info("metrics are exported again")
            else:
                log.warning(
                    "metrics cannot be exported: %s",
                    WORDS.reason or "the exporter does not say why",
                )


def to_otlp(
    families: Iterable[Metric], resource: Resource, *, began_ns: int, now_ns: int
) -> MetricsData:
    """The families of a scrape as OTLP's data model has them: cumulative since `began_ns`."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    metrics = [
        made
        for family in list(families)
        if (made := _metric(family, began_ns=began_ns, now_ns=now_ns)) is not None
    ]
    scope = ScopeMetrics(
        scope=InstrumentationScope("agentsched", __version__), metrics=metrics, schema_url=""
    )
    found = ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url="")
    return MetricsData(resource_metrics=[found])


def _metric(family: Metric, *, began_ns: int, now_ns: int) -> OtelMetric | None:
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        Metric,
        NumberDataPoint,
        Sum,
    )

    data: Gauge | Sum | Histogram
    cumulative = AggregationTemporality.CUMULATIVE
    if family.type == "histogram":
        points = _histogram_points(family.samples, began_ns=began_ns, now_ns=now_ns)
        data = Histogram(data_points=points, aggregation_temporality=cumulative)
    elif family.type in ("counter", "gauge", "unknown", "info"):
        numbers = [
            NumberDataPoint(
                attributes=_attributes(sample.labels),
                start_time_unix_nano=began_ns,
                time_unix_nano=now_ns,
                value=sample.value,
            )
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]
        if family.type == "counter":
            data = Sum(data_points=numbers, aggregation_temporality=cumulative, is_monotonic=True)
        else:
            data = Gauge(data_points=numbers)
    else:
        return None
    name, unit = CONVENTION_NAMES.get(family.name, (family.name, ""))
    return Metric(name=name, description=family.documentation, unit=unit, data=data)


def _attributes(labels: Mapping[str, str]) -> dict[str, str]:
    return {_LABELS.get(name, name): value for name, value in labels.items()}


def _histogram_points(samples: Iterable[Sample], *, began_ns: int, now_ns: int) -> list[Any]:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = defaultdict(list)
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in samples:
        labels = {k: v for k, v in sample.labels.items() if k != "le"}
        key = tuple(sorted(labels.items()))
        if sample.name.endswith("_bucket"):
            buckets[key].append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
    points: list[object] = []
    for key, found in buckets.items():
        found.sort()
        cumulative = [0.0, *(count for _, count in found)]
        counts = [int(b - a) for a, b in pairwise(cumulative)]
        points.append(
            HistogramDataPoint(
                attributes=_attributes(dict(key)),
                start_time_unix_nano=began_ns,
                time_unix_nano=now_ns,
                count=int(found[-1][1]),
                sum=sums.get(key, 0.0),
                bucket_counts=counts,
                explicit_bounds=[bound for bound, _ in found[:-1]],
                # A scrape does not know them; left out, they are unknown there, too.
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
            )
        )
    return points
