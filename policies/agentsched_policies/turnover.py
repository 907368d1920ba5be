"""How long an engine's LRU keeps what nobody uses: until it has computed as much as it holds."""

from __future__ import annotations

from typing import Final

from agentsched.model import MINUTE, SECOND, Instant, StepFinished, between
from agentsched.policy import EngineView, World

#: The computed tokens of the last so many seconds count.
MEMORY_NS: Final = float(5 * MINUTE)
_LEAST_NS: Final = float(SECOND)


class Turnover:
    """Learns it from steps that end, over all engines together."""

    def __init__(self) -> None:
        #: Tokens computed per nanosecond over all engines, and when that was last brought up.
        self._computed = 0.0
        self._at = Instant(0)

    def observe(self, event: StepFinished, *, now: Instant) -> None:
        """A step ended: what it had not found in the cache was computed."""
        usage = event.usage
        fresh = max(0, usage.prompt_tokens - (usage.cached_tokens or 0)) + usage.output_tokens
        self._computed = self._computed * self._fading(now) + fresh
        self._at = now

    def span_ns(self, engine: EngineView, world: World, *, now: Instant) -> float:
        """Nanoseconds within which the engine computes as many tokens as its pool holds."""
        capacity = engine.capabilities.kv_tokens
        up = max(1, sum(other.is_up for other in world.engines.values()))
        rate = self._computed * self._fading(now) / MEMORY_NS / up
        if capacity is None or rate <= 0.0:
            return MEMORY_NS
        return max(_LEAST_NS, capacity / rate)

    def _fading(self, now: Instant) -> float:
        # Hyperbolic: cheap, monotone, and half after one memory.
        return 1.0 / (1.0 + between(self._at, now) / MEMORY_NS)
