"""Each engine in its turn, whatever it has cached: the baseline of every comparison."""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import EngineView, StepView, World


class RoundRobin:
    """The engine that was sent the fewest steps."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        return -float(engine.dispatched_total)
