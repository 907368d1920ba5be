"""One engine's circuit breaker: says when failures of requests are reason to give it no more.

Closed, it counts. It opens after so many failures in a row, or when too large a share of the latest
requests failed; it stays open twice as long each time, and forgets that after as long a quiet. It
is pure: told of outcomes and instants, it changes nothing but itself.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from agentsched.config_trust import BreakerConfig
from agentsched.model import Instant, Nanos, after, between

#: Outcomes that are remembered; a window that holds more is judged by the latest of them.
_OUTCOMES_MAX: Final = 512
#: Doublings of the ejection that are counted.
_DOUBLINGS_MAX: Final = 16


class Breaker:
    """`record` outcomes while it is closed; whoever opens it says so with `open`."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        #: The latest outcomes: when, and whether it failed.
        self._outcomes: deque[tuple[Instant, bool]] = deque(maxlen=_OUTCOMES_MAX)
        self.failures_in_a_row = 0
        #: Until when no work goes to the engine; None while the breaker is closed.
        self.open_until: Instant | None = None
        self.opened_total = 0
        #: Failures since the start; closing forgets none of them.
        self.failures_total = 0
        #: Times that it should have opened, and whoever opens it could not.
        self.withheld_total = 0
        self._doublings = 0
        self._closed_at: Instant | None = None

    @property
    def is_open(self) -> bool:
        """Whether the engine is ejected."""
        return self.open_until is not None

    def record(self, *, failed: bool, now: Instant) -> None:
        """A request ended. One that says nothing about the engine is not recorded."""
        self._outcomes.append((now, failed))
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        self.failures_total += failed

    def wants_to_open(self, *, now: Instant) -> bool:
        """Whether what was recorded is reason enough. Changes nothing but what is too old."""
        while self._outcomes and between(self._outcomes[0][0], now) > self._config.window:
            self._outcomes.popleft()
        if self.is_open or not self._outcomes:
            return False
        if self.failures_in_a_row >= self._config.failures:
            return True
        total = len(self._outcomes)
        failed = sum(failed for _, failed in self._outcomes)
        return (
            total >= self._config.requests_min
            and failed >= self._config.failure_share * total
            and failed > 0
        )

    def open(self, *, now: Instant) -> Nanos:
        """Open; for how long."""
        config = self._config
        if self._closed_at is not None and between(self._closed_at, now) > config.ejection_max:
            self._doublings = 0
        span = Nanos(min(config.ejection << self._doublings, config.ejection_max))
        self._doublings = min(_DOUBLINGS_MAX, self._doublings + 1)
        self.open_until = after(now, span)
        self.opened_total += 1
        self._forget()
        return span

    def is_due(self, *, now: Instant) -> bool:
        """Whether it is open and its time is over."""
        return self.open_until is not None and now >= self.open_until

    def close(self, *, now: Instant) -> None:
        """Let work through again; what failed before is forgotten, how often it opened is not."""
        self.open_until = None
        self._closed_at = now
        self._forget()

    def _forget(self) -> None:
        self._outcomes.clear()
        self.failures_in_a_row = 0
