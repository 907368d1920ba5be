"""The latest samples of a quantity, kept in order of size, with a bound on how many."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

_KEYS_MAX: Final = 1_024


class Samples:
    """A window of the latest samples; asking for shares and quantiles costs a bisection."""

    __slots__ = ("_latest", "_sorted", "total")

    def __init__(self, *, samples_max: int) -> None:
        self._latest: deque[float] = deque(maxlen=samples_max)
        self._sorted: list[float] = []
        self.total = 0.0

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def in_order(self) -> Sequence[float]:
        """The samples, smallest first. Read only."""
        return self._sorted

    @property
    def mean(self) -> float:
        """Of the window; 0 when it is empty."""
        return self.total / len(self._sorted) if self._sorted else 0.0

    def add(self, sample: float) -> None:
        """Take in a sample; the oldest leaves where the window is full."""
        if len(self._latest) == self._latest.maxlen:
            oldest = self._latest[0]
            del self._sorted[bisect_right(self._sorted, oldest) - 1]
            self.total -= oldest
        self._latest.append(sample)
        insort(self._sorted, sample)
        self.total += sample

    def quantile(self, share: float) -> float:
        """The smallest sample that so many are not above."""
        assert self._sorted
        index = min(len(self._sorted) - 1, max(0, round(share * len(self._sorted)) - 1))
        return self._sorted[index]


class SamplesByKey:
    """Windows by key; of too many keys the one unused longest goes."""

    def __init__(self, *, samples_max: int, keys_max: int = _KEYS_MAX) -> None:
        self._samples_max = samples_max
        self._keys_max = keys_max
        self._windows: OrderedDict[str, Samples] = OrderedDict()

    def get(self, key: str) -> Samples | None:
        """The window of a key that has samples."""
        return self._windows.get(key)

    def add(self, key: str, sample: float) -> None:
        """Take in a sample of a key."""
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Samples(samples_max=self._samples_max)
            if len(self._windows) > self._keys_max:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        window.add(sample)
