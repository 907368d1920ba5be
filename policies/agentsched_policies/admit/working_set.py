"""Admit programs while their working set fits the KV cache; let go of long pauses when it does not.

The rules, and what each is worth (from a model of vLLM checked against the real one):

- A conversation whose KV is resident continues at once.
- Another one needs its tokens that nobody else has computed, plus `reserve_steps` of its own mean
  growth, for programs grow while they run: without the reserve those already admitted evict each
  other (+44 % p95 slowdown).
- Where that does not fit, paused conversations make room, longest pause in units of their own
  reload time first, but only when their pause exceeds `patience` times that reload time. This is
  ski rental: rent (memory) for as long as buying (computing again) costs. It predicts nothing and
  is within a few percent of knowing every pause. The threshold falls to zero as the step that
  waits nears its wait bound.
- One cold start at a time: prefills in flight are bounded by tokens; two cost 15 % of p95 slowdown.
- Nobody is held while things fit, and an oversize program runs alone rather than waits for ever.

Works on unmodified engines: what it lets go of is what the engine's own LRU evicts next.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from agentsched.model import ConversationId, Event, Instant, Nanos, after, between
from agentsched.policy import (
    Admission,
    Admitted,
    ConversationView,
    EngineView,
    Held,
    StepView,
    World,
)


class WorkingSet:
    """Admission by memory. See the module for the rules.

    `patience`: multiples of its reload time that a paused conversation is kept for when somebody
    waits. `reserve_steps`: mean growth steps reserved for each conversation. `fill`: share of the
    engine's KV capacity that is used. `cold_tokens`: uncached prompt tokens in flight to which a
    further cold start may add; a single one may always start. `growth_share`: growth of a
    conversation per step, as a share of its context, until its own is known.
    """

    def __init__(
        self,
        *,
        patience: float = 2.0,
        reserve_steps: float = 3.0,
        fill: float = 0.95,
        cold_tokens: int = 2_048,
        growth_share: float = 0.04,
    ) -> None:
        if patience < 0 or reserve_steps < 0 or not 0 < fill <= 1 or cold_tokens < 0:
            raise ValueError("patience, reserve_steps and cold_tokens are >= 0, fill in (0, 1]")
        self._patience = patience
        self._reserve_steps = reserve_steps
        self._fill = fill
        self._cold_tokens = cold_tokens
        self._growth_share = growth_share

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn: prices and growth are in the scheduler's own books."""

    def admit(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> Admission:
        capacity = engine.capabilities.kv_tokens
        conversation = world.conversation(step)
        is_home = conversation.is_resident and conversation.engine == engine.engine
        if capacity is None or is_home or not engine.running_steps:
            return self._admitted_alone(step, engine, world, now=now, capacity=capacity)
        missing = world.missing_tokens(step, engine.engine)
        free = self._free(engine, world, capacity)
        need = missing + self._reserve(conversation)
        cold = engine.cold_tokens(now=now)
        is_cold_limited = bool(cold) and cold + missing > self._cold_tokens
        if need <= free:
            # With room to spare the engine's own queue does as well as ours.
            if is_cold_limited and self._is_contended(world, engine, capacity):
                return Held(reason="cold start", until=engine.cold_until(now=now))
            return Admitted()
        if is_cold_limited:
            return Held(reason="cold start", until=engine.cold_until(now=now))
        return self._make_room(step, engine, world, need - free, now=now)

    def _admitted_alone(
        self,
        step: StepView,
        engine: EngineView,
        world: World,
        *,
        now: Instant,
        capacity: int | None,
    ) -> Admission:
        """A continuation, an engine of unknown size, or one on which nothing runs."""
        conversation = world.conversation(step)
        if capacity is None or conversation.is_resident:
            return Admitted()
        need = world.missing_tokens(step, engine.engine) + self._reserve(conversation)
        short = need - self._free(engine, world, capacity)
        if short <= 0:
            return Admitted()
        # Nothing runs: whoever is paused longest goes first, as many as it takes or all there are.
        return Admitted(releases=tuple(self._victims(engine, world, short, now=now, threshold=0)))

    def _make_room(
        self, step: StepView, engine: EngineView, world: World, short: float, *, now: Instant
    ) -> Admission:
        waited = between(step.arrived_at, now) / world.wait_ns_max
        threshold = self._patience * max(0.0, 1.0 - waited)
        victims = list(self._victims(engine, world, short, now=now, threshold=threshold))
        freed = sum(world.own_tokens(key) for key in victims)
        if freed >= short:
            return Admitted(releases=tuple(victims))
        return Held(reason="memory", until=self._next_crossing(engine, world, threshold, now=now))

    def _victims(
        self, engine: EngineView, world: World, short: float, *, now: Instant, threshold: float
    ) -> Iterator[ConversationId]:
        """Paused conversations to let go, longest pause per reload time first, until it fits."""
        paused = sorted(
            (-self._staleness(c, engine, world, now=now), c.conversation)
            for c in world.resident(engine.engine)
            if c.paused_at is not None and not c.active_steps
        )
        for negative, key in paused:
            if short <= 0 or -negative < threshold:
                return
            short -= world.own_tokens(key)
            yield key

    def _staleness(
        self, conversation: ConversationView, engine: EngineView, world: World, *, now: Instant
    ) -> float:
        """Its pause in units of the time that it would take to compute its own tokens again."""
        assert conversation.paused_at is not None
        if conversation.is_over:
            return inf
        reload_ns = max(1.0, world.own_tokens(conversation.conversation) * engine.reload_ns)
        return between(conversation.paused_at, now) / reload_ns

    def _next_crossing(
        self, engine: EngineView, world: World, threshold: float, *, now: Instant
    ) -> Instant | None:
        """When the next paused conversation reaches the threshold, were that to stay as it is."""
        crossings = []
        for conversation in world.resident(engine.engine):
            if conversation.paused_at is None:
                continue
            own = world.own_tokens(conversation.conversation)
            at = after(conversation.paused_at, Nanos(round(threshold * own * engine.reload_ns)))
            if at > now:
                crossings.append(at)
        return min(crossings, default=None)

    def _free(self, engine: EngineView, world: World, capacity: int) -> float:
        """Tokens of the cache that no resident conversation has or is about to grow into."""
        reserved = sum(self._reserve(c) for c in world.resident(engine.engine))
        return self._fill * capacity - world.resident_tokens(engine.engine) - reserved

    def _reserve(self, conversation: ConversationView) -> float:
        if conversation.steps_done > 1:
            return self._reserve_steps * conversation.growth_tokens
        return self._reserve_steps * self._growth_share * conversation.context_tokens

    def _is_contended(self, world: World, engine: EngineView, capacity: int) -> bool:
        return world.resident_tokens(engine.engine) > 0.5 * capacity
