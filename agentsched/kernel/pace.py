"""How fast the queue moves: what a client that is turned away is told to wait."""

from __future__ import annotations

from typing import Final

from agentsched.model import SECOND, Instant, Nanos, between

_RATE: Final = 0.1
_FIRST_NS: Final = 200_000_000.0
#: Clients fail their run when they are told to wait longer than a minute.
_SHORTEST: Final = SECOND
_LONGEST: Final = Nanos(60 * SECOND)


class Pace:
    """Mean time between two steps that are sent while others wait."""

    def __init__(self) -> None:
        self.ns_per_step = _FIRST_NS
        self._latest: Instant | None = None
        #: Mean time from a step's dispatch to its end; None before the first.
        self.turn_ns: float | None = None

    def ended(self, took: Nanos) -> None:
        """A step ended so long after it was sent."""
        mean = self.turn_ns if self.turn_ns is not None else took
        self.turn_ns = mean + _RATE * (took - mean)

    def sent(self, *, is_backlogged: bool, now: Instant) -> None:
        """A step is sent; `is_backlogged` when others wait on."""
        if self._latest is not None:
            self.ns_per_step += _RATE * (between(self._latest, now) - self.ns_per_step)
        # What comes after an empty queue says how fast clients ask, not how fast we are.
        self._latest = now if is_backlogged else None

    def until_sent(self, steps: float) -> Nanos:
        """When so many more steps will have been sent: a second to a minute."""
        return Nanos(max(_SHORTEST, min(round(steps * self.ns_per_step), _LONGEST)))
