"""Where hosts get the time. The core never reads a clock; it is told."""

from __future__ import annotations

import time
from typing import Protocol

from agentsched.model import Instant


class Clock(Protocol):
    """A source of monotonic instants."""

    def now(self) -> Instant:
        """The present instant; never earlier than one returned before."""
        ...


class MonotonicClock:
    """The operating system's monotonic clock."""

    def now(self) -> Instant:
        return Instant(time.monotonic_ns())
