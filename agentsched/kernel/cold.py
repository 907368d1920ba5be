"""Steps of one engine whose prefill may still be under way, and the tokens that it still computes.

As many as are sent may be there at once, and every dispatch asks for the sum.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from operator import itemgetter
from typing import Final

from agentsched.model import Instant, StepId

_UNTIL: Final = itemgetter(0)


class ColdSteps:
    """Sums over steps from their dispatch to their first token, or until they are taken as over."""

    def __init__(self) -> None:
        #: Until when, which step, what it misses, and what of that had been given up; sorted.
        self._steps: list[tuple[Instant, StepId, int, int]] = []
        self._missing = 0
        self._given_up = 0

    def add(
        self, step: StepId, *, until: Instant, missing: int, given_up: int, now: Instant
    ) -> None:
        """A step is sent. Those that are over by `now` are forgotten."""
        over = bisect_right(self._steps, now, key=_UNTIL)
        self._forget(self._steps[:over])
        del self._steps[:over]
        insort(self._steps, (until, step, missing, given_up))
        self._missing += missing
        self._given_up += given_up

    def drop(self, step: StepId, *, until: Instant) -> None:
        """Its first token came, or it ended; one that is not here changes nothing."""
        at = bisect_left(self._steps, (until, step))
        found = self._steps[at : at + 1]
        if found and found[0][1] == step:
            self._forget(found)
            del self._steps[at]

    def tokens(self, *, ratio: float, now: Instant) -> int:
        """What they compute, where a token that had been given up counts `ratio`."""
        missing, given_up = self._missing, self._given_up
        for until, _, misses, gave_up in self._steps:
            if until > now:
                break
            missing -= misses
            given_up -= gave_up
        return round(missing - (1.0 - ratio) * given_up)

    def earliest(self, *, now: Instant) -> Instant | None:
        """When the next of them is taken as over."""
        at = bisect_right(self._steps, now, key=_UNTIL)
        return self._steps[at][0] if at < len(self._steps) else None

    def _forget(self, steps: list[tuple[Instant, StepId, int, int]]) -> None:
        for _, _, missing, given_up in steps:
            self._missing -= missing
            self._given_up -= given_up

    def check(self) -> None:
        """Assert that the sums are those of the steps."""
        assert self._steps == sorted(self._steps)
        assert self._missing == sum(missing for _, _, missing, _ in self._steps)
        assert self._given_up == sum(given_up for _, _, _, given_up in self._steps)
