"""How much of a program is still to come: mean residual life, from programs that are over.

A program's end is rarely announced. An answer without tool calls is its last word as far as anyone
can tell, so that counts as an end, and is taken back should the program go on after all. A
program's close and a long silence count as well; one that goes for room before any of these does
not.

Agents differ (a SWE-bench agent takes 40 steps, a chat 2), so samples are kept by agent type, with
all types together as the back-off, and a prior that a few samples outweigh.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict, deque
from typing import Final

#: Mean number of steps to come that is assumed before anything is known; weighs as much as
#: `_PRIOR_WEIGHT` finished programs.
_PRIOR_STEPS: Final = 10.0
_PRIOR_WEIGHT: Final = 4.0
_SAMPLES_MAX: Final = 512


class _Lengths:
    """Step counts of the latest finished programs, sorted, with suffix sums on demand."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        #: Answers of `beyond` since the last change.
        self._beyond: dict[int, tuple[int, int]] = {}

    def add(self, steps: int) -> None:
        self._beyond.clear()
        self._recent.append(steps)
        insort(self._sorted, steps)
        if len(self._recent) > _SAMPLES_MAX:
            self._drop(self._recent.popleft())

    def take_back(self, steps: int) -> None:
        """The program that was counted with so many steps goes on."""
        if steps in self._recent:
            self._recent.remove(steps)
            self._drop(steps)

    def beyond(self, steps: int) -> tuple[int, int]:
        """How many programs had more steps than this, and how many more in sum."""
        found = self._beyond.get(steps)
        if found is None:
            tail = self._sorted[bisect_right(self._sorted, steps) :]
            found = self._beyond[steps] = (len(tail), sum(tail) - steps * len(tail))
        return found

    def _drop(self, steps: int) -> None:
        self._beyond.clear()
        del self._sorted[bisect_right(self._sorted, steps) - 1]


class RemainingSteps:
    """Expected number of steps to come, by agent type and steps done.

    Of more than `agents_max` types the one none of whose programs ended for longest is forgotten.
    """

    def __init__(self, *, agents_max: int = 256) -> None:
        self._agents_max = agents_max
        self._all = _Lengths()
        self._by_agent: OrderedDict[str, _Lengths] = OrderedDict()

    def ended(self, *, agent: str, steps: int) -> None:
        """A program of this type ended after so many steps."""
        self._all.add(steps)
        own = self._by_agent.get(agent)
        if own is None:
            own = self._by_agent[agent] = _Lengths()
            if len(self._by_agent) > self._agents_max:
                self._by_agent.popitem(last=False)
        else:
            self._by_agent.move_to_end(agent)
        own.add(steps)

    def woke(self, *, agent: str, steps: int) -> None:
        """A program that was taken to have ended goes on."""
        self._all.take_back(steps)
        if agent in self._by_agent:
            self._by_agent[agent].take_back(steps)

    def expected(self, *, agent: str, steps_done: int) -> float:
        """Mean number of further steps of a program that has done so many."""
        count, total = self._all.beyond(steps_done)
        overall = (total + _PRIOR_WEIGHT * _PRIOR_STEPS) / (count + _PRIOR_WEIGHT)
        own = self._by_agent.get(agent)
        if own is None:
            return overall
        count, total = own.beyond(steps_done)
        return (total + _PRIOR_WEIGHT * overall) / (count + _PRIOR_WEIGHT)
