"""First come, first served, by program: the oldest program goes first (Continuum, section 4.2).

Right where programs that have run for long are about to finish; wrong where a few long programs
keep everybody else waiting, which only the wait bound then limits.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import SortKey, StepView, World


class ProgramFcfs:
    """Order by arrival of the program, then of the step."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        return (float(world.programs[step.program].ordinal),)

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        # An engine compares it with other programs' steps only, so the ordinal itself will do;
        # 0 would mean "no opinion", hence the 1.
        return world.programs[step.program].ordinal + 1
