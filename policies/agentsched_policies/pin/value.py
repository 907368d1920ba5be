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

from agentsched.model import (
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
from agentsched_policies.turnover import Turnover


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
        self._turnover = Turnover()

    def observe(self, event: Event, *, now: Instant) -> None:
        if isinstance(event, StepFinished):
            self._turnover.observe(event, now=now)

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
        price = self._price / self._turnover.span_ns(engine, world, now=now)
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
