"""Keep a bounded number of steps in each engine, so that the rest of the queue stays ours to order.

With a depth of at least the engine's batch size this costs nothing; below it the engine idles.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import Admission, Admitted, EngineView, Held, StepView, World


class Depth:
    """Hold a step while its engine has `depth` of ours.

    `depth` None means what the engine says that it batches at once, or 256 where it does not say.
    """

    def __init__(self, *, depth: int | None = None) -> None:
        if depth is not None and depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self._depth = depth

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def admit(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> Admission:
        if self.has_room(engine, world, now=now):
            return Admitted()
        return Held(reason=f"{self._of(engine)} steps on {engine.engine}")

    def has_room(self, engine: EngineView, world: World, *, now: Instant) -> bool:
        return engine.running_steps < self._of(engine)

    def _of(self, engine: EngineView) -> int:
        return self._depth or engine.capabilities.running_max or 256
