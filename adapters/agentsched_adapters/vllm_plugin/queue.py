"""Program order in vLLM's waiting queue: its `RequestQueue` verbs over a rank of ours.

Order of the queue: preempted requests first (they lost their blocks to others and were running
already), then requests whose wait or bypass bound is reached, oldest first, then by rank, ties by
arrival and id. The order is made in `refresh`, once an engine step, and between two of them it only
loses entries: `peek` and `pop` cost nothing.

Ordering has a budget of time per step. While a quarter of it lasts, new requests are ranked, then
others again, those ranked longest ago first; a request without a rank waits behind those that have
one. Should steps still take longer than the budget in the median, requests go in the order of their
arrival for a second, and then it is tried again.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from agentsched.model import SECOND, Instant, Nanos

#: Refreshes whose median cost counts: a machine that does something else once is no reason.
_COSTS: Final = 15
_COOL_DOWN: Final = Nanos(SECOND)
#: Ranks depend on time; older ones are made anew also where nothing happened.
_STALE: Final = Nanos(SECOND // 20)

#: Ranks between two looks at the clock.
_LOOK_EVERY: Final = 16

Key = tuple[Any, ...]
Rank = Callable[[str, Instant], tuple[float, ...]]
_KEY: Final = attrgetter("key")


@dataclass(slots=True, eq=False)
class _Entry:
    request: Any
    #: How many came before it.
    seq: int
    since: Instant
    rank: tuple[float, ...] | None = None
    bypassed: int = 0
    #: Negative for a request that came back, the latest first; 0 for all others.
    front: int = 0
    is_due: bool = False
    key: Key = ()


class ProgramQueue:
    """A waiting queue in the order of `rank`. Satisfies vLLM's `RequestQueue`.

    `rank` gives the sort key of a request id (smaller is sooner); should it raise, requests go as
    they came from then on, and `failed` is told. `now` is the host's clock, by which waits are
    measured; `clock` measures what ordering costs, in ns.
    """

    def __init__(
        self,
        *,
        rank: Rank,
        failed: Callable[[str], None],
        wait_max: Nanos,
        bypasses_max: int,
        budget: Nanos,
        now: Callable[[], Instant],
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._rank: Rank | None = rank
        self._failed = failed
        self._wait_max = wait_max
        self._bypasses_max = bypasses_max
        self._budget = budget
        self._clock = clock
        #: All and only waiting requests, by request id.
        self._entries: dict[str, _Entry] = {}
        #: The same in the order in which they go.
        self._order: deque[_Entry] = deque()
        #: What left in this step: vLLM puts back what it looks at and cannot run.
        self._taken: dict[str, _Entry] = {}
        #: Numbers of requests that went since bypasses were last counted.
        self._went: list[int] = []
        #: Entries without a rank, oldest first, and those with one, by its age. May hold some that
        #: are gone.
        self._new: deque[_Entry] = deque()
        self._ranked: deque[_Entry] = deque()
        self._is_dirty = False
        self._seq = 0
        self._front = 0
        self._now = now
        self._refreshed_at = Instant(0)
        self._fcfs_until: Instant | None = None
        self._costs: deque[int] = deque(maxlen=_COSTS)
        #: What a refresh costs, in ns: the median of the latest ones, and the most so far.
        self.cost_ns = 0
        self.cost_ns_max = 0
        self.fallbacks_total = 0
        self.forced_total = 0

    # vLLM's verbs.

    def add_request(self, request: Any) -> None:
        """At the end, until the next refresh gives it its place."""
        assert request.request_id not in self._entries
        self._seq += 1
        entry = _Entry(request, self._seq, self._now())
        self._entries[request.request_id] = entry
        self._order.append(entry)
        self._new.append(entry)
        self._is_dirty = True

    def prepend_request(self, request: Any) -> None:
        """At the front: it was running, or was looked at and could not go."""
        key = request.request_id
        assert key not in self._entries
        entry = self._taken.pop(key, None)
        if entry is None:
            self._seq += 1
            self._front -= 1
            entry = _Entry(request, self._seq, self._now(), front=self._front)
        else:
            self._went.remove(entry.seq)
            self._ranked.append(entry)
        self._entries[key] = entry
        self._order.appendleft(entry)
        self._is_dirty = True

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """At the front, each before the one that came before it, as in vLLM's own queue."""
        for request in requests:
            self.prepend_request(request)

    def peek_request(self) -> Any:
        if not self._order:
            raise IndexError("peek from an empty queue")
        return self._order[0].request

    def pop_request(self) -> Any:
        if not self._order:
            raise IndexError("pop from an empty queue")
        entry = self._order.popleft()
        key = entry.request.request_id
        self._taken[key] = self._entries.pop(key)
        self._went.append(entry.seq)
        return entry.request

    def remove_request(self, request: Any) -> None:
        self._order.remove(self._entries.pop(request.request_id))

    def remove_requests(self, requests: Iterable[Any]) -> None:
        gone = {r.request_id for r in requests} & self._entries.keys()
        if gone:
            for key in gone:
                del self._entries[key]
            self._order = deque(e for e in self._order if self._waits(e))

    def __bool__(self) -> bool:
        return bool(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:
        return iter([entry.request for entry in self._order])

    # Ours.

    @property
    def is_ordered(self) -> bool:
        """Whether the rank counts at this moment."""
        return self._rank is not None and self._fcfs_until is None

    def world_changed(self) -> None:
        """Something happened that ranks may depend on."""
        self._is_dirty = True

    def give_up(self) -> None:
        """From now on requests go as they came."""
        self._rank = None
        self._is_dirty = True

    def refresh(self, *, now: Instant) -> None:
        """Bring the order up to date; at the beginning of each engine step."""
        self._taken.clear()
        if len(self._entries) < 2:
            self._went.clear()
            return
        if not self._is_dirty and now - self._refreshed_at < _STALE:
            return
        began = self._clock()
        self._refreshed_at, self._is_dirty = now, False
        if self._fcfs_until is not None and now >= self._fcfs_until:
            self._fcfs_until = None
            self._costs.clear()
        self._count_bypasses()
        if self.is_ordered:
            self._make_ranks(began + self._budget // 4, now=now)
        self._sort(now=now)
        self._account(self._clock() - began, now=now)

    def _waits(self, entry: _Entry) -> bool:
        return self._entries.get(entry.request.request_id) is entry

    def _count_bypasses(self) -> None:
        """Whatever went since the last time passed those that had come before it."""
        if not self._went:
            return
        self._went.sort()
        for entry in self._entries.values():
            entry.bypassed += len(self._went) - bisect_right(self._went, entry.seq)
        self._went.clear()

    def _make_ranks(self, until: int, *, now: Instant) -> None:
        rank = self._rank
        assert rank is not None
        try:
            # The new ones first; each of the others once at most.
            for done in range(len(self._new) + len(self._ranked)):
                if not done % _LOOK_EVERY and self._clock() >= until:
                    break
                entry = (self._new or self._ranked).popleft()
                if self._waits(entry):
                    entry.rank = rank(entry.request.request_id, now)
                    self._ranked.append(entry)
        except Exception:
            self.give_up()
            self._failed("order.rank")

    def _sort(self, *, now: Instant) -> None:
        late = Instant(now - self._wait_max)
        is_ordered, bypasses_max = self.is_ordered, self._bypasses_max
        for entry in self._entries.values():
            if entry.front:
                entry.key = (0, entry.front)
            elif entry.since <= late or entry.bypassed >= bypasses_max:
                self.forced_total += not entry.is_due
                entry.is_due = True
                entry.key = (1, entry.seq)
            elif is_ordered and entry.rank is not None:
                entry.key = (2, entry.rank, entry.seq)
            else:
                entry.key = (3, entry.seq)
        self._order = deque(sorted(self._entries.values(), key=_KEY))

    def _account(self, took: int, *, now: Instant) -> None:
        self.cost_ns_max = max(self.cost_ns_max, took)
        self._costs.append(took)
        self.cost_ns = sorted(self._costs)[len(self._costs) // 2]
        if self.is_ordered and len(self._costs) == _COSTS and self.cost_ns > self._budget:
            self.fallbacks_total += 1
            self._fcfs_until = Instant(now + _COOL_DOWN)

    def check(self) -> None:
        """Assert that the books agree with each other."""
        assert len(self._order) == len(self._entries)
        assert all(self._waits(entry) for entry in self._order)
