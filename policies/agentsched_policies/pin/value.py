"""Ours: keep what saves most per token and second of memory, softly, and only under pressure.

    value(t) = max over D of  P(return within D | away since t) / E[min(return, D)]
               x reload seconds per token x (1 + steps that would wait behind the reload)

The first factor is the Gittins index of keeping a token (`agentsched_policies.returning`), from the
execution graph's return times: keys from the special to the general, censored gaps, and a constant
where a key has shown no skill. Values rank pins: an engine that needs blocks takes the least first,
and never lets a request wait for a pin.

The TTL is the instant at which the value will have fallen under the price of memory. That price is
what the engine's own LRU offers for nothing: a token survives there until as many tokens as the
pool holds have been computed after it. A token that returns more slowly than once in that time is
left to the LRU. The turnover time is learnt from what the engines compute; ski rental is a floor,
that is, nothing is dropped before its pause has cost `patience` times what its reload costs.

Nothing is retained while the engine's working set fits: the kernel does not even ask.

When it fails: what was never seen returns as the constant says; a tool whose time depends on its
arguments is averaged over them.
"""

from __future__ import annotations

from typing import Final

from agentsched.model import (
    MINUTE,
    SECOND,
    Event,
    Instant,
    Nanos,
    StepFinished,
    after,
    between,
)
from agentsched.policy import EngineView, PauseView, Retention, World
from agentsched_policies.returning import SPANS, rate_of_return

#: The computed tokens of the last so many seconds count for the turnover.
_MEMORY_NS: Final = float(5 * MINUTE)
_TURNOVER_MIN: Final = float(SECOND)


class Value:
    """Retention by value. `patience`: multiples of the reload time that are always granted;
    `price`: of memory, in multiples of what the LRU offers; `ttl_s_max` bounds a forecast's word.
    """

    def __init__(
        self, *, patience: float = 2.0, price: float = 0.5, ttl_s_max: float = 600.0
    ) -> None:
        if patience < 0 or price <= 0 or ttl_s_max <= 0:
            raise ValueError("patience is 0 or more, price and ttl_s_max are positive")
        self._patience = patience
        self._price = price
        self._ttl_max = Nanos(round(ttl_s_max * SECOND))
        #: Tokens computed per nanosecond over all engines, and when that was last brought up.
        self._computed = 0.0
        self._at = Instant(0)

    def observe(self, event: Event, *, now: Instant) -> None:
        if not isinstance(event, StepFinished):
            return
        usage = event.usage
        fresh = max(0, usage.prompt_tokens - (usage.cached_tokens or 0)) + usage.output_tokens
        self._computed = self._computed * self._fading(now) + fresh
        self._at = now

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None:
        program = world.programs.get(pause.program)
        conversation = program.conversations.get(pause.conversation) if program else None
        if conversation is None or conversation.is_over or not pause.tools:
            return None
        engine = world.engines[pause.engine]
        graph = world.graph(pause.program)
        returns = graph.returns(pause.conversation, now=now) if graph is not None else None
        reload = engine.reload(pause.prefix.tokens)
        granted = round(self._patience * reload)
        floor = max(0, granted - between(pause.since, now))
        if returns is None:
            return Retention(ttl=Nanos(floor)) if floor else None
        rate = rate_of_return(returns)
        worth = rate * reload / max(1, pause.prefix.tokens) * (1.0 + world.waiting_steps)
        ttl = max(floor, self._worthwhile(pause, engine, world, rate, now=now))
        if ttl <= 0:
            return None
        return Retention(ttl=Nanos(min(ttl, self._ttl_max)), value=worth)

    def _worthwhile(
        self, pause: PauseView, engine: EngineView, world: World, rate: float, *, now: Instant
    ) -> int:
        """How long from now the rate of return stays above the price of memory."""
        price = self._price / self._turnover(engine, world, now=now)
        graph = world.graph(pause.program)
        if rate < price or graph is None:
            return 0
        worthwhile = 0
        for span in SPANS:
            if span > self._ttl_max:
                break
            later = graph.returns(pause.conversation, now=after(now, span))
            if later is None or rate_of_return(later) < price:
                break
            worthwhile = span
        return max(worthwhile, SPANS[0])

    def _turnover(self, engine: EngineView, world: World, *, now: Instant) -> float:
        """Nanoseconds within which the engine computes as many tokens as its pool holds."""
        capacity = engine.capabilities.kv_tokens
        up = max(1, sum(other.is_up for other in world.engines.values()))
        rate = self._computed * self._fading(now) / _MEMORY_NS / up
        if capacity is None or rate <= 0.0:
            return _MEMORY_NS
        return max(_TURNOVER_MIN, capacity / rate)

    def _fading(self, now: Instant) -> float:
        # Hyperbolic: cheap, monotone, and half after one memory.
        return 1.0 / (1.0 + between(self._at, now) / _MEMORY_NS)
