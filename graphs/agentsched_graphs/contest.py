"""Which of several forecasters is worth listening to, judged by what happened.

Each is scored, before it learns, by the logarithm of the probability that it gave to what then
happened. The first is the constant, which says the same whatever it is asked. Another is listened
to only while its lead over the constant is evidence of twenty to one, that is ln 20 = 3 nats in
sum; leads fade, so that one which lost its skill loses its say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: A score counts half after 350 more.
_FADING: Final = 0.998
_EVIDENCE: Final = 3.0
#: Of the lead's standard error, squared.
_CHANCE: Final = 4.0


class Contest:
    """Fading leads of some forecasters over the first of them."""

    __slots__ = ("_leads", "_squares", "_weight")

    def __init__(self, forecasters: int) -> None:
        self._leads = [0.0] * forecasters
        #: Sums of squares of what each gained or lost, fading as leads do.
        self._squares = [0.0] * forecasters
        self._weight = 0.0

    def score(self, logs: Sequence[float]) -> None:
        """Enter what each gave to what happened: natural logarithms of probabilities."""
        leads, squares, constant = self._leads, self._squares, logs[0]
        for i in range(1, len(leads)):
            gain = logs[i] - constant
            leads[i] = leads[i] * _FADING + gain
            squares[i] = squares[i] * _FADING + gain * gain
        self._weight = self._weight * _FADING + 1.0

    def best(self) -> int:
        """The one to listen to; 0, the constant, unless another has shown skill."""
        best, greatest = 0, _EVIDENCE
        for i, lead in enumerate(self._leads):
            if lead > greatest and lead * lead > _CHANCE * self._squares[i]:
                best, greatest = i, lead
        return best

    def skill(self) -> tuple[float, ...]:
        """Mean lead of each over the constant, in nats a forecast; zeros before any."""
        return tuple(lead / self._weight if self._weight else 0.0 for lead in self._leads)
