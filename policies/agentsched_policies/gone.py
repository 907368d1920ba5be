"""Engines that are gone: where they come and go by themselves each has a new name, for ever.

What was learnt of an engine counts again when it comes back, so a policy keeps it for a while, as
the kernel keeps such engines.
"""

from __future__ import annotations

from agentsched.model import EngineId, EngineLost, EngineReported, Event


class GoneEngines:
    """The engines that were lost and have not come back, at most `engines_max` of them."""

    def __init__(self, *, engines_max: int = 256) -> None:
        self._engines_max = engines_max
        #: The one lost longest ago first.
        self._engines: dict[EngineId, None] = {}

    def observe(self, event: Event) -> EngineId | None:
        """Take in an event; of too many the engine that is to be forgotten now."""
        if not isinstance(event, EngineReported | EngineLost):
            return None
        self._engines.pop(event.engine, None)
        if isinstance(event, EngineReported):
            return None
        self._engines[event.engine] = None
        if len(self._engines) <= self._engines_max:
            return None
        oldest = next(iter(self._engines))
        del self._engines[oldest]
        return oldest
