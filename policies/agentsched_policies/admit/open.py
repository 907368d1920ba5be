"""Let everything in at once: the queue is the engine's."""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import Admission, Admitted, EngineView, StepView, World


class Open:
    """No admission control."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def admit(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> Admission:
        return Admitted()

    def has_room(self, engine: EngineView, world: World, *, now: Instant) -> bool:
        return True
