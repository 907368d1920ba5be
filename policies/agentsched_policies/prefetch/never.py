"""Warm nothing."""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import PauseView, World


class Never:
    """No warm-ups."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def warm_at(self, pause: PauseView, world: World, *, now: Instant) -> Instant | None:
        return None
