"""Retain nothing: the engine's LRU decides."""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import PauseView, Retention, World


class Never:
    """No pins."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None:
        return None
