"""ThunderAgent's order of resumption: programs served before, then new ones; smallest first.

arXiv 2602.13692 (section 5b of our notes). Favouring small programs is meant to lower the cost of
computing them again. Fails for large programs, which wait for all small ones: one of theirs waited
for 1,800 s; here the wait bound is the limit.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import SortKey, StepView, World


class ThunderAgent:
    """Served programs first, fewest prompt tokens first."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        is_new = not world.programs[step.program].steps_done
        return (float(is_new), float(step.prompt_tokens))

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        return 0
