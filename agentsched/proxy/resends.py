"""Requests that may be sent again: which step each was, and how to end it if it is still alive."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentsched.model import StepId

#: More are not remembered; the retry of one that was forgotten is a step like any other.
_SENT_MAX: Final = 10_000


@dataclass(slots=True)
class Sent:
    """A request without a complete answer. `give_way` ends its step; None: it has ended."""

    step: StepId
    give_way: Callable[[], None] | None


class Resends:
    """Requests by the identity index's handle of their turn, the oldest first."""

    def __init__(self) -> None:
        self._sent: OrderedDict[int, Sent] = OrderedDict()
        #: Retries that were recognised, by what became of the first try.
        self.retried = dict.fromkeys(("gave_way", "went_on", "ended"), 0)

    def __len__(self) -> int:
        return len(self._sent)

    def begin(self, turn: int, step: StepId, give_way: Callable[[], None]) -> None:
        """A request was submitted as a step.

        Requests that leave no trace in the index, as probes do, have the turn 0 in common, as have
        all that repeat none: they are nobody's first try.
        """
        if not turn:
            return
        self._sent[turn] = Sent(step, give_way)
        if len(self._sent) > _SENT_MAX:
            self._sent.popitem(last=False)

    def remember(self, turn: int, step: StepId) -> None:
        """An earlier process had submitted it, and ended without an answer."""
        self._sent[turn] = Sent(step, None)

    def step_of(self, turn: int) -> StepId | None:
        """The step of a request that has no answer, if it is known. Any thread may ask."""
        sent = self._sent.get(turn)
        return sent.step if sent is not None else None

    def answered(self, turn: int) -> None:
        """It has its answer: whoever asks again begins anew."""
        self._sent.pop(turn, None)

    def failed(self, turn: int) -> None:
        """It ended without an answer."""
        sent = self._sent.get(turn)
        if sent is not None:
            sent.give_way = None

    def take(self, turn: int) -> Sent | None:
        """What a retry of this turn replaces, if it is known; once only."""
        return self._sent.pop(turn, None)
