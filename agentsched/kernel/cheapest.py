"""An engine's pins from the cheapest to the dearest, without sorting all of them at every pin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

from agentsched.model import Instant, Pin, PinId

_Entry = tuple[float, Instant, PinId]


class CheapestPins:
    """A heap over the live pins of one engine; those that ended or changed are skipped later."""

    def __init__(self, live: Mapping[PinId, Pin]) -> None:
        self._live = live
        self._heap: list[_Entry] = []

    def put(self, pin: Pin) -> None:
        """A live pin is new, or expires at another time now."""
        if len(self._heap) > 2 * len(self._live) + 16:
            self._heap = [_entry(one) for one in self._live.values()]
            heapify(self._heap)
        else:
            heappush(self._heap, _entry(pin))

    def __iter__(self) -> Iterator[Pin]:
        """Least value first, then the one that expires first. Not to be changed meanwhile."""
        heap = list(self._heap)  # a copy costs less than to put back what was looked at
        latest: _Entry | None = None
        while heap:
            entry = heappop(heap)
            pin = self._live.get(entry[2])
            if pin is not None and _entry(pin) == entry and entry != latest:
                latest = entry
                yield pin


def _entry(pin: Pin) -> _Entry:
    return pin.value, pin.expires_at, pin.pin
