"""Counters and histograms that cost next to nothing to write; Prometheus reads them at a scrape.

The client library's own take a lock for each value, and several values for each observation. Ours
are written on the event loop's thread alone, so plain numbers do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: What stands for values of a label beyond the first so many.
OTHER: Final = "other"
_LABEL_CHARS_MAX: Final = 128


class Counts(Collector):
    """A counter with labels: `counts[values] += 1`, the values in the order of the labels."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._counts: dict[tuple[str, ...], int] = {}
        registry.register(self)

    def add(self, values: tuple[str, ...], count: int = 1) -> None:
        """Count for these values of the labels."""
        self._counts[values] = self._counts.get(values, 0) + count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric(values, count)
        yield family


class Times(Collector):
    """A histogram of seconds without labels. `buckets` are upper bounds, smallest first."""

    def __init__(
        self, name: str, text: str, *, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self._bounds: Final = tuple(float(bound) for bound in buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        """Count one span of time."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class LabelledTimes(Collector):
    """As `Times`, with labels: one histogram for each combination of their values."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._bounds: Final = tuple(float(bound) for bound in buckets)
        #: Counts by bucket, and the sum, by the labels' values.
        self._series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        registry.register(self)

    def observe(self, values: tuple[str, ...], value: float) -> None:
        """Count one value under these values of the labels."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = ([0] * (len(self._bounds) + 1), [0.0])
        series[0][bisect_left(self._bounds, value)] += 1
        series[1][0] += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, (counts, total) in self._series.items():
            buckets: list[tuple[str, float]] = []
            so_far = 0
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                so_far += count
                buckets.append((bound, float(so_far)))
            family.add_metric(values, buckets=buckets, sum_value=total[0])
        yield family


class Bounded:
    """Values of a label that clients choose: the first so many are shown, all others as `other`.

    A value keeps its label for good, so that no counter ever moves from one to the other.
    """

    def __init__(self, values_max: int) -> None:
        self._values: set[str] = set()
        self._values_max = values_max

    def __call__(self, value: str) -> str:
        if value in self._values:
            return value
        if len(self._values) >= self._values_max or len(value) > _LABEL_CHARS_MAX:
            return OTHER
        self._values.add(value)
        return value
