"""ThunderAgent's placement: new programs where most room is, resumed ones where the tick put them.

arXiv 2602.13692; the rules are in `active_programs`, of which this keeps a copy of its own. A
program stays on its engine until it is paused; when it resumes it goes wherever room is, whether
or not its cache is there. (Theirs never leaves an engine that died; here the kernel does not offer
engines that are down.)
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import Command, Event, Instant
from agentsched.policy import EngineView, StepView, World
from agentsched_policies.active_programs import ActivePrograms


class ThunderAgent:
    """The engine of an active program, else the one with most room."""

    def __init__(self, *, tick_s: float = 5.0, acting_weight: float = 1.0) -> None:
        self._active = ActivePrograms(tick_s=tick_s, acting_weight=acting_weight)

    def observe(self, event: Event, *, now: Instant) -> None:
        self._active.observe(event, now=now)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._active.decided(commands, now=now)

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        program = self._active.get(step.program)
        if program is not None and not program.is_paused and program.engine == engine.engine:
            return 1e18
        return self._active.room(engine.engine)
