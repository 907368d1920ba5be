"""The queue in front of the running batch, first come first served or by priority."""

from __future__ import annotations

import heapq
from collections import OrderedDict

from agentsched_bench.engine.requests import Live, Scheduling


class WaitingQueue:
    """Generations that hold no block. Removal of any of them is cheap."""

    __slots__ = ("_heap", "_order", "_scheduling", "tokens")

    def __init__(self, scheduling: Scheduling) -> None:
        self._scheduling = scheduling
        #: Everybody who waits; under FCFS also the order.
        self._order: OrderedDict[str, Live] = OrderedDict()
        #: Under priority: the order, with leftovers of those who have left.
        self._heap: list[tuple[tuple[int, int, int], str]] = []
        #: Prompt tokens of all who wait.
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: str) -> bool:
        return key in self._order

    def add(self, live: Live) -> None:
        """Queue a new arrival."""
        self._insert(live)

    def put_back(self, live: Live) -> None:
        """Queue a preempted generation: first under FCFS, by its rank under priority."""
        self._insert(live)
        if self._scheduling is Scheduling.FCFS:
            self._order.move_to_end(live.generation.id, last=False)

    def head(self) -> Live | None:
        """Who is next; None when nobody waits."""
        if not self._order:
            return None
        if self._scheduling is Scheduling.FCFS:
            return next(iter(self._order.values()))
        while True:
            rank, key = self._heap[0]
            live = self._order.get(key)
            if live is not None and live.rank == rank:
                return live
            heapq.heappop(self._heap)

    def remove(self, key: str) -> Live:
        """Take one out, wherever it stands."""
        live = self._order.pop(key)
        self.tokens -= live.generation.prompt_tokens
        if len(self._heap) > 2 * len(self._order) + 64:
            self._heap = [(left.rank, left.generation.id) for left in self._order.values()]
            heapq.heapify(self._heap)
        return live

    def members(self) -> tuple[Live, ...]:
        """Everybody who waits, in no particular order."""
        return tuple(self._order.values())

    def _insert(self, live: Live) -> None:
        key = live.generation.id
        assert key not in self._order
        self._order[key] = live
        self.tokens += live.generation.prompt_tokens
        if self._scheduling is Scheduling.PRIORITY:
            heapq.heappush(self._heap, (live.rank, key))
