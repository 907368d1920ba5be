"""After how long a silence nobody is expected back: learnt from how long others stayed away.

Programs seldom say that they are over. Whoever is silent for longer than nearly all who ever came
back is taken to be, until it speaks again. How long that is differs by load: where tools take
milliseconds a minute is for ever, where they build for half a minute it is not.
"""

from __future__ import annotations

from itertools import accumulate
from math import log2
from typing import Final

from agentsched.model import MINUTE, SECOND, Nanos

#: Bins of a quarter octave, the first one up to a second.
_PER_OCTAVE: Final = 4
_BINS: Final = 26
#: Twice the time within which so many of those who come back have done so.
_SHARE: Final = 0.98
_TIMES: Final = 2.0
_LEAST: Final = Nanos(5 * SECOND)
#: Before so many are known, and at most: a minute.
_SAMPLES_MIN: Final = 32
_MOST: Final = MINUTE
#: Counts are halved then: loads change.
_FULL: Final = 1_024.0


class Silences:
    """Feed it every gap that ended; `limit` is the silence, in nanoseconds, that counts as an end.

    Between five seconds and a minute; a minute until 32 gaps are known.
    """

    __slots__ = ("_counts", "_seen", "_total", "limit")

    def __init__(self) -> None:
        self._counts = [0.0] * _BINS
        self._total = 0.0
        self._seen = 0
        self.limit: Nanos = _MOST

    def ended(self, gap: Nanos) -> None:
        """Somebody spoke again after so long."""
        index = 0 if gap <= SECOND else 1 + int(_PER_OCTAVE * log2(gap / SECOND))
        self._counts[min(index, _BINS - 1)] += 1.0
        self._total += 1.0
        self._seen += 1
        if self._total >= _FULL:
            self._counts = [count / 2.0 for count in self._counts]
            self._total = sum(self._counts)
        # Rarely, and at fixed counts: equal gaps give equal limits.
        if self._seen % _SAMPLES_MIN == 0:
            self.limit = self._learnt()

    def _learnt(self) -> Nanos:
        # The last sum is the total, but for rounding, and more than its share.
        sums = enumerate(accumulate(self._counts))
        index = next(index for index, below in sums if below >= _SHARE * self._total)
        ends = SECOND * 2.0 ** (index / _PER_OCTAVE)
        return Nanos(round(min(_MOST, max(_LEAST, _TIMES * ends))))
