"""One instant for each key, and which of them comes first."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

from agentsched.model import Instant

K = TypeVar("K")

#: Below this size stale heap entries are not worth sweeping.
_SWEEP_MIN = 64


class Alarms(Generic[K]):
    """At most one alarm a key. Alarms of one instant ring in the order in which they were set.

    Memory is bounded by the alarms that are set, however often they are moved or cancelled.
    """

    def __init__(self) -> None:
        #: All and only alarms that are set, with the number of the heap entry that is theirs.
        self._set: dict[K, tuple[Instant, int]] = {}
        #: (instant, number, key); an entry whose number is not the key's is stale.
        self._heap: list[tuple[Instant, int, K]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._set)

    def __contains__(self, key: K) -> bool:
        return key in self._set

    def set(self, key: K, at: Instant) -> None:
        """Set the key's alarm, in place of the one that it has."""
        self._number += 1
        self._set[key] = (at, self._number)
        heapq.heappush(self._heap, (at, self._number, key))
        self._sweep()

    def cancel(self, key: K) -> None:
        """Take the key's alarm away, where it has one."""
        if self._set.pop(key, None) is not None:
            self._sweep()

    def earliest(self) -> Instant | None:
        """When the next alarm rings."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def ring(self, *, now: Instant) -> list[K]:
        """Take out and return the keys whose instant has come, earliest first."""
        rung = []
        while self._heap and self._heap[0][0] <= now:
            at, number, key = heapq.heappop(self._heap)
            if self._set.get(key) == (at, number):
                del self._set[key]
                rung.append(key)
        return rung

    def _drop_stale(self) -> None:
        while self._heap and self._set.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)

    def _sweep(self) -> None:
        if len(self._heap) > _SWEEP_MIN and len(self._heap) > 4 * len(self._set):
            self._heap = [(at, number, key) for key, (at, number) in self._set.items()]
            heapq.heapify(self._heap)
