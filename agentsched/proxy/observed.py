"""What watches this proxy while it runs: spans, logs, and the metrics that need more than steps."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.proxy.gateway import Gateway
from agentsched.telemetry.gen_ai import GenAiMeters
from agentsched.telemetry.logs import LogSink
from agentsched.telemetry.otlp import SpanQueue, exporting
from agentsched.telemetry.process import process_metrics
from agentsched.telemetry.span import Span
from agentsched.telemetry.spans import SpanSink
from agentsched.telemetry.tenants import TENANTS_MAX, TenantCollector

#: Families of clients that have a label of their own are few by nature; this is a last resort.
_FAMILIES_MAX: Final = 32


class GatewayCollector(Collector):
    """What is true of the HTTP surface at the moment of the scrape."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        gateway = self._gateway
        family = CounterMetricFamily(
            "agentsched_requests", "Generating requests, by kind of client.", labels=["client"]
        )
        for client, count in gateway.clients.most_common(_FAMILIES_MAX):
            family.add_metric([client], count)
        yield family
        for name, text, value in (
            ("draining", "1 while this proxy is about to end.", float(gateway.is_draining)),
            ("relayed_requests", "Requests beside the scheduler.", gateway.plain_requests),
            ("known_programs", "Programs that can be recognised.", len(gateway.index)),
            ("live_requests", "Scheduled requests with a client.", len(gateway.notes)),
        ):
            yield GaugeMetricFamily(f"agentsched_{name}", text, value=value)


@asynccontextmanager
async def observed(gateway: Gateway) -> AsyncIterator[None]:
    """Watched while inside; what is under way at the end is told before it is left.

    Raises:
        ConfigError: OTLP is wanted and its packages are not installed.
    """
    config = gateway.config.telemetry
    registry = gateway.meters.registry
    registry.register(GatewayCollector(gateway))
    tenants = TenantCollector(
        gateway.host.scheduler,
        configured=lambda: iter(gateway.config.tenants),
        tenants_max=TENANTS_MAX,
    )
    registry.register(tenants)
    emits: list[Callable[[Span], None]] = [GenAiMeters(registry, provider=config.provider).observe]
    is_exported = bool(config.base_url)
    queue = SpanQueue(spans_max=config.spans_max)
    if is_exported:
        registry.register(queue)
        emits.append(queue.put)

    def emit(span: Span) -> None:
        for take in emits:
            take(span)

    spans = SpanSink(
        gateway.host.scheduler,
        gateway.notes,
        emit,
        provider=config.provider,
        sample=config.sample,
        programs_max=gateway.host.scheduler.limits.programs_max,
        is_exported=is_exported,
    )
    logs = LogSink(gateway.notes, all_steps=config.log_steps)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(process_metrics(registry))
        if is_exported:
            await stack.enter_async_context(_exporting(gateway, queue, spans))
        for sink in (spans, logs):
            gateway.host.watch(sink)
            stack.callback(gateway.host.unwatch, sink)
        yield


@asynccontextmanager
async def _exporting(gateway: Gateway, queue: SpanQueue, spans: SpanSink) -> AsyncIterator[None]:
    config = gateway.config.telemetry
    interval = config.metrics_interval
    async with exporting(
        queue,
        base_url=config.base_url,
        headers={k: v.get_secret_value() for k, v in config.otlp_headers.items()},
        service=config.service_name,
        instance=socket.gethostname(),
        now=gateway.host.now,
        timeout=config.otlp_timeout,
        flush_interval=config.flush_interval,
        shutdown_timeout=config.shutdown_timeout,
        registry=gateway.meters.registry,
        metrics_interval=interval if interval != "off" else None,
        on_end=lambda: spans.close(gateway.host.now()),
    ):
        yield
