"""OTLP over HTTP: spans and metrics go out from a thread of their own, bounded, with a deadline.

The event loop only appends to a queue. The thread is a daemon that nobody waits for longer than the
shutdown timeout: a receiver that hangs must not keep a proxy from ending.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.model import SECOND, ConfigError, Instant, Nanos, in_seconds
from agentsched.telemetry.export_words import WORDS
from agentsched.telemetry.span import Span
from agentsched.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

_BATCH: Final = 512
#: A time of day that is further off was set anew.
_JUMP_NS: Final = SECOND
#: For the loop to read the metrics.
_COLLECT_S: Final = 2.0


class SpanQueue(Collector):
    """Spans that wait for the exporter. `put` is for the event loop, all else for the thread."""

    def __init__(self, *, spans_max: int) -> None:
        self._spans: deque[Span] = deque()
        self._spans_max = spans_max
        #: Set when somebody wants the queue emptied at once.
        self.wanted = threading.Event()
        self.sent = 0
        self.failed = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._spans)

    def put(self, span: Span) -> None:
        """Take a span that has ended; what is not in the sample is not wanted.

        Too many are dropped and counted.
        """
        if not span.context.is_sampled:
            return
        if len(self._spans) >= self._spans_max:
            self.dropped += 1
            return
        self._spans.append(span)

    def take(self) -> list[Span]:
        """The next batch."""
        spans = self._spans
        return [spans.popleft() for _ in range(min(_BATCH, len(spans)))]

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "agentsched_spans", "Spans by what became of them.", labels=["outcome"]
        )
        for outcome in ("sent", "failed", "dropped"):
            family.add_metric([outcome], getattr(self, outcome))
        yield family
        text = "Spans that wait to be exported."
        yield GaugeMetricFamily("agentsched_spans_backlog", text, value=len(self))


class OtlpThread:
    """Exports spans, and metrics where `push` is given, until it is stopped."""

    def __init__(
        self,
        queue: SpanQueue,
        exporter: SpanExporter,
        resource: Resource,
        *,
        now: Callable[[], Instant],
        flush_interval: Nanos,
        push: Callable[[list[Metric]], None] | None = None,
        collect: Callable[[], Iterable[Metric]] = tuple,
        push_interval: Nanos | None = None,
    ) -> None:
        """`now` is the journal's present instant, on any thread. `collect` runs on the loop."""
        self._queue = queue
        self._exporter = exporter
        self._resource = resource
        self._now = now
        #: Turns the journal's instants into Unix time.
        self._epoch_ns = time.time_ns() - now()
        self._flush_s = in_seconds(flush_interval)
        self._push = push
        self._collect = collect
        self._loop = asyncio.get_running_loop()
        self._push_s = in_seconds(push_interval) if push_interval is not None else None
        self._is_stopping = False
        #: Set on the loop when the thread has sent the last.
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        #: Whether the latest export failed, so that only a change is worth a line in the log.
        self._is_failing = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    async def stop(self, timeout: Nanos) -> bool:
        """Send what waits, and end. False: not all went out in time; the rest is lost."""
        self._is_stopping = True
        self._queue.wanted.set()
        try:
            async with asyncio.timeout(in_seconds(timeout)):
                await self._done.wait()
            return True
        except TimeoutError:
            pass
        # A try that waits to be made again is given up; one under way ends by its own timeout.
        await asyncio.to_thread(self._exporter.shutdown)
        self._queue.dropped += len(self._queue)
        waited = f"; {len(self._queue)} spans still waited" if len(self._queue) else ""
        log.warning(
            "the last export did not end in %g s%s: %s",
            in_seconds(timeout),
            waited,
            WORDS.reason or "no answer came",
        )
        return False

    def _run(self) -> None:
        last_push = time.monotonic()
        while True:
            self._queue.wanted.wait(self._flush_s)
            is_last = self._is_stopping
            while batch := self._queue.take():
                self._export(batch)
            now = time.monotonic()
            due = self._push_s is not None and (is_last or now - last_push >= self._push_s)
            if due and self._push is not None:
                last_push = now
                self._push_safely(self._push)
            if is_last:
                break
        self._exporter.shutdown()
        with suppress(RuntimeError):  # the loop has not waited
            self._loop.call_soon_threadsafe(self._done.set)

    def _push_safely(self, push: Callable[[list[Metric]], None]) -> None:
        async def collect() -> list[Metric]:
            return list(self._collect())  # what it reads changes with each turn of the loop

        try:
            push(asyncio.run_coroutine_threadsafe(collect(), self._loop).result(_COLLECT_S))
        except Exception:
            log.exception("a defect while exporting metrics")

    def _export(self, batch: list[Span]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        WORDS.forget()
        try:
            self._follow_time_of_day()
            spans = [self._readable(span) for span in batch]
            is_sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:
            log.exception("a defect while exporting spans")
            is_sent = False
        if is_sent:
            self._queue.sent += len(batch)
        else:
            self._queue.failed += len(batch)
        if is_sent is self._is_failing:
            self._is_failing = not is_sent
            if is_sent:
                log.info("spans are exported again")
            else:
                log.warning(
                    "spans cannot be exported; further failures are only counted: %s",
                    WORDS.reason or "the exporter does not say why",
                )

    def _follow_time_of_day(self) -> None:
        """The clock was set, or the machine slept, which our own clock does not notice."""
        epoch_ns = time.time_ns() - self._now()
        # Never by less: spans that touch would overlap, or no longer touch.
        if abs(epoch_ns - self._epoch_ns) > _JUMP_NS:
            self._epoch_ns = epoch_ns

    def _readable(self, span: Span) -> ReadableSpan:
        return readable(span, self._resource, epoch_ns=self._epoch_ns)


def readable(span: Span, resource: Resource, *, epoch_ns: int) -> ReadableSpan:
    """The span as OpenTelemetry's exporters take it."""
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

    from agentsched.telemetry.context import TraceContext

    def named(context: TraceContext, *, is_remote: bool = False) -> SpanContext:
        return SpanContext(
            trace_id=context.trace_id,
            span_id=context.span_id,
            is_remote=is_remote,
            trace_flags=TraceFlags(int(context.is_sampled)),
        )

    assert span.end is not None
    return ReadableSpan(
        name=span.name,
        context=named(span.context),
        parent=named(span.parent, is_remote=True) if span.parent is not None else None,
        resource=resource,
        attributes=span.attributes,
        events=[Event(e.name, e.attributes, timestamp=e.at + epoch_ns) for e in span.events],
        links=[Link(named(link)) for link in span.links],
        kind=SpanKind.CLIENT if span.is_client else SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR if span.error else StatusCode.UNSET),
        start_time=span.begin + epoch_ns,
        end_time=span.end + epoch_ns,
        instrumentation_scope=InstrumentationScope("agentsched", __version__),
    )


@asynccontextmanager
async def exporting(
    queue: SpanQueue,
    *,
    base_url: str,
    headers: dict[str, str],
    service: str,
    instance: str,
    now: Callable[[], Instant],
    timeout: Nanos,
    flush_interval: Nanos,
    shutdown_timeout: Nanos,
    registry: CollectorRegistry | None = None,
    metrics_interval: Nanos | None = None,
    on_end: Callable[[], None] = lambda: None,
) -> AsyncIterator[OtlpThread]:
    """Exports while inside; on the way out `on_end` is called and what waits is sent.

    `now` is the journal's present instant, asked for on another thread.

    Raises:
        ConfigError: the packages of the extra `otel` are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
    except ImportError as error:
        raise ConfigError("telemetry: pip install 'agentsched[otel]' for OTLP") from error
    WORDS.listen()
    resource = Resource.create(
        {
            "service.name": service,
            "service.version": __version__,
            "service.instance.id": instance,
        }
    )
    exporter = OTLPSpanExporter(
        endpoint=f"{base_url}/v1/traces",
        headers=headers,
        timeout=in_seconds(timeout),
        compression=Compression.Gzip,
    )
    push = None
    if registry is not None and metrics_interval is not None:
        from agentsched.telemetry.push import MetricPush

        push = MetricPush(resource, base_url=base_url, headers=headers, timeout=timeout).push
    thread = OtlpThread(
        queue,
        exporter,
        resource,
        now=now,
        flush_interval=flush_interval,
        push=push,
        collect=registry.collect if registry is not None else tuple,
        push_interval=metrics_interval,
    )
    thread.start()
    try:
        yield thread
    finally:
        on_end()
        await thread.stop(shutdown_timeout)
