"""First come, first served, by request: what every engine does by itself.

Fails where programs matter: a long program's next step queues behind newcomers at every turn, and
its cache is gone when its turn comes.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import SortKey, StepView, World


class Fcfs:
    """Order by arrival of the step; leave the engine's own order alone."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        return (float(step.arrived_at),)

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        return 0
