"""A conversation stays on the engine that has its KV; a new one goes where least is running.

Fails when one engine gathers the long programs: nothing moves until that engine goes away.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import EngineId, Event, Instant
from agentsched.policy import EngineView, StepView, World


class SessionAffinity:
    """Own engine first, then one where the program already is, then the least loaded."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        conversation = world.conversation(step)
        if conversation.engine == engine.engine:
            return 3.0
        # Below 1, and less the more runs there.
        room = 1.0 / (1.0 + engine.running_steps)
        return room + (1.0 if self._is_home(step, engine.engine, world) else 0.0)

    def best(
        self, step: StepView, engines: Sequence[EngineView], world: World, *, now: Instant
    ) -> EngineView:
        """What the scores come to, without asking for each."""
        conversations = world.programs[step.program].conversations
        home = conversations[step.conversation].engine
        if home is not None:
            for engine in engines:
                if engine.engine == home:
                    return engine
        near: Sequence[EngineView] = ()
        if len(conversations) > 1:
            homes = {c.engine for c in conversations.values() if c.is_resident}
            near = [engine for engine in engines if engine.engine in homes]
        return min(near or engines, key=lambda engine: (engine.running_steps, engine.engine))

    def _is_home(self, step: StepView, engine: EngineId, world: World) -> bool:
        """Whether a sibling conversation lives there: siblings share their first tokens."""
        siblings = world.programs[step.program].conversations.values()
        return any(c.engine == engine and c.is_resident for c in siblings)
