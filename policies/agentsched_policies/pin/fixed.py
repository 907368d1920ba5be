"""Retain every paused conversation for a fixed time.

Wasteful for long tools and too short for the longest; hard pins of programs that wait keep the pool
full while the engine idles. It is here as the yardstick for policies that know more.
"""

from __future__ import annotations

from agentsched.model import Event, Instant, seconds
from agentsched.policy import PauseView, Retention, World


class Fixed:
    """A pin of `ttl_s` seconds while tool calls are outstanding."""

    def __init__(self, *, ttl_s: float = 5.0) -> None:
        if ttl_s <= 0:
            raise ValueError(f"ttl_s must be positive, not {ttl_s}")
        self._ttl = seconds(ttl_s)

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None:
        if not pause.tools:
            return None  # it said its last word; nobody is expected back
        return Retention(ttl=self._ttl)
