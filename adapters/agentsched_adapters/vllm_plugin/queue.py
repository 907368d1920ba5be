"""Program order in vLLM's waiting queue: its `RequestQueue` verbs over a rank of ours.

Order of the queue: preempted requests first (they lost their blocks to others and were running
already), then requests whose wait or bypass bound is reached, oldest first, then by rank, ties by
arrival and id. Ranks are made in `refresh`, once an engine step; between two of them nothing that
waits changes its place.

Ordering has a budget of time per step, and nothing in it looks at everybody: whoever gets another
rank is moved to its place. While a quarter of the budget lasts, new requests are ranked, then
others again, those ranked longest ago first; a request without a rank waits behind those that have
one. Should steps still take longer than the budget in the median, requests go in the order of their
arrival for a second, and then it is tried again.

Both bounds are reached in the order of arrival, since whoever overtakes a request overtakes all
that came before it as well; so only the oldest need to be looked at.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from agentsched.model import SECOND, Instant, Nanos

#: Refreshes whose median cost counts: a machine that does something else once is no reason.
_COSTS: Final = 15
_COOL_DOWN: Final = Nanos(SECOND)
#: So many that left may be remembered beside as many as wait twice.
_GONE_MAX: Final = 64
#: Ranks depend on time; older ones are made anew also where nothing happened.
_STALE: Final = Nanos(SECOND // 20)

Key = tuple[Any, ...]
Rank = Callable[[str, Instant], tuple[float, ...]]
_KEY: Final = attrgetter("key")
_SEQ: Final = attrgetter("seq")


@dataclass(slots=True, eq=False)
class _Entry:
    request: Any
    #: How many came before it.
    seq: int
    since: Instant
    #: Its place; never that of two.
    key: Key
    rank: tuple[float, ...] | None = None
    #: Negative for a request that came back, the latest first; 0 for all others.
    front: int = 0
    #: A bound of its wait was reached.
    is_due: bool = False


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
        #: The same in the order in which they go, which is that of their keys.
        self._order: list[_Entry] = []
        #: Those of them whose bounds are still to be reached, the oldest first.
        self._young: list[_Entry] = []
        #: What left in this step: vLLM puts back what it looks at and cannot run. Like the next,
        #: empty after `give_up`.
        self._taken: dict[str, _Entry] = {}
        #: Numbers of the requests that went, sorted, above the oldest of the young ones.
        self._went: list[int] = []
        #: Entries without a rank, oldest first, and those with one, by its age. May hold some that
        #: are gone.
        self._new: deque[_Entry] = deque()
        self._ranked: deque[_Entry] = deque()
        self._is_dirty = False
        #: Whether the keys are made of ranks.
        self._by_rank = True
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
        entry = _Entry(request, self._seq, self._now(), (3, self._seq))
        self._enter(entry)
        if self._rank is not None:
            self._new.append(entry)

    def prepend_request(self, request: Any) -> None:
        """At the front: it was running, or was looked at and could not go."""
        key = request.request_id
        assert key not in self._entries
        entry = self._taken.pop(key, None)
        if entry is None:
            self._seq += 1
            self._front -= 1
            entry = _Entry(request, self._seq, self._now(), key=(0, self._front), front=self._front)
        else:
            del self._went[bisect_left(self._went, entry.seq)]
        self._enter(entry)

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
        entry = self._order[0]
        self._leave(entry)
        if self._rank is not None:
            self._taken[entry.request.request_id] = entry
            insort(self._went, entry.seq)
        return entry.request

    def remove_request(self, request: Any) -> None:
        self._leave(self._entries[request.request_id])

    def remove_requests(self, requests: Iterable[Any]) -> None:
        for key in {r.request_id for r in requests} & self._entries.keys():
            self._leave(self._entries[key])

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
        """From now on requests go as they came; those that have a place keep it until a refresh."""
        self._rank = None
        self._new.clear()
        self._ranked.clear()
        # Perhaps nobody refreshes it any more.
        self._taken.clear()
        self._went.clear()
        self._is_dirty = True

    def refresh(self, *, now: Instant) -> None:
        """Bring the order up to date; at the beginning of each engine step."""
        self._taken.clear()
        self._forget_gone()
        if len(self._entries) < 2:
            self._forget_who_went()
            return
        if not self._is_dirty and now - self._refreshed_at < _STALE:
            return
        began = self._clock()
        self._refreshed_at, self._is_dirty = now, False
        if self._fcfs_until is not None and now >= self._fcfs_until:
            self._fcfs_until = None
            self._costs.clear()
        self._find_due(now=now)
        self._forget_who_went()
        if self.is_ordered:
            self._make_ranks(began + self._budget // 4, now=now)
        if self._by_rank != self.is_ordered:
            self._by_rank = self.is_ordered
            self._place_all()
        self._account(self._clock() - began, now=now)

    def _enter(self, entry: _Entry) -> None:
        self._entries[entry.request.request_id] = entry
        insort(self._order, entry, key=_KEY)
        if not entry.front and not entry.is_due:
            insort(self._young, entry, key=_SEQ)
        self._is_dirty = True

    def _leave(self, entry: _Entry) -> None:
        del self._entries[entry.request.request_id]
        del self._order[self._place(entry)]
        if not entry.front and not entry.is_due:
            del self._young[bisect_left(self._young, entry.seq, key=_SEQ)]

    def _place(self, entry: _Entry) -> int:
        found = bisect_left(self._order, entry.key, key=_KEY)
        if found < len(self._order) and self._order[found] is entry:
            return found
        return self._order.index(entry)  # a rank that is no number has no place in an order

    def _move(self, entry: _Entry, key: Key) -> None:
        if key != entry.key:
            del self._order[self._place(entry)]
            entry.key = key
            insort(self._order, entry, key=_KEY)

    def _place_all(self) -> None:
        """Ranks count from now on, or no more."""
        for entry in self._entries.values():
            if not entry.front and not entry.is_due:
                entry.key = self._key(entry)
        self._order.sort(key=_KEY)

    def _key(self, entry: _Entry) -> Key:
        if self.is_ordered and entry.rank is not None:
            return (2, entry.rank, entry.seq)
        return (3, entry.seq)

    def _waits(self, entry: _Entry) -> bool:
        return self._entries.get(entry.request.request_id) is entry

    def _find_due(self, *, now: Instant) -> None:
        """Who waited for too long, or was overtaken too often, is next from now on."""
        late = Instant(now - self._wait_max)
        while self._young:
            entry = self._young[0]
            bypassed = len(self._went) - bisect_right(self._went, entry.seq)
            if entry.since > late and bypassed < self._bypasses_max:
                return
            del self._young[0]
            entry.is_due = True
            self.forced_total += 1
            self._move(entry, (1, entry.seq))

    def _forget_who_went(self) -> None:
        """Only those that overtook somebody whose bound is still to be reached are counted."""
        if self._young:
            del self._went[: bisect_right(self._went, self._young[0].seq)]
        else:
            self._went.clear()

    def _forget_gone(self) -> None:
        """Requests that left are let go, also where ranks are made for hardly anybody."""
        if len(self._new) + len(self._ranked) > 2 * len(self._entries) + _GONE_MAX:
            self._new = deque(filter(self._waits, self._new))
            self._ranked = deque(filter(self._waits, self._ranked))

    def _make_ranks(self, until: int, *, now: Instant) -> None:
        rank = self._rank
        assert rank is not None
        try:
            # The new ones first; each of the others once at most.
            for _ in range(len(self._new) + len(self._ranked)):
                if self._clock() >= until:
                    break
                entry = (self._new or self._ranked).popleft()
                if not self._waits(entry):
                    continue
                self._ranked.append(entry)
                entry.rank = rank(entry.request.request_id, now)
                if self._by_rank and not entry.is_due and not entry.front:
                    self._move(entry, self._key(entry))
        except Exception:
            self.give_up()
            self._failed("order.rank")

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
        keys = [entry.key for entry in self._order]
        assert keys == sorted(keys)
        assert len(set(keys)) == len(keys)
        young = [e for e in self._entries.values() if not e.front and not e.is_due]
        assert self._young == sorted(young, key=_SEQ)
        assert self._went == sorted(self._went)
