"""The engine on which least is running: what a load balancer without memory does.

Fails where programs matter: each step of a conversation may go elsewhere, and its prefix with it.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import EngineView, StepView, World


class LeastLoaded:
    """Fewest of our steps running, of equally many the one with fewer prompt tokens in them."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        # Below one step's worth, whatever the tokens.
        tokens = engine.running_tokens / (1.0 + engine.running_tokens)
        return -(engine.running_steps + 0.5 * tokens)
