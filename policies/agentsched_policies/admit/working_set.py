"""Admit programs while their working set fits the KV cache; let go of long pauses when it does not.

The rules, and what each is worth (from a model of vLLM checked against the real one):

- A conversation whose KV is resident continues at once.
- Another one needs its tokens that nobody else has computed, plus `reserve_steps` of its own mean
  growth. A small reserve is best: what outgrows the cache is taken out of the account as the engine
  evicts it, and comes back through this door.
- Where that does not fit, paused conversations make room, longest pause in units of their own
  reload time first, but only when their pause exceeds `patience` times that reload time. This is
  ski rental: rent (memory) for as long as buying (computing again) costs. It predicts nothing and
  is within a few percent of knowing every pause. What is likely not to come back at all (a tool
  that ends the work, a limit of steps) has less to reload, by that likelihood. Six rather than the
  textbook's one or two, since who is let go pays more than the reload: the engine reloads one at a
  time, and others wait behind it. The threshold falls to zero as the step that waits nears its wait
  bound.
- One cold start at a time: programs that wait for their own prefill hold memory and slow others.
- Programs under way that do not fit together take turns, and every turn is a reload. The wait bound
  says how many turns there must be: so programs are only begun while the reloads of all that do not
  fit at their probable size take at most `swap_share` of the bound, or of half the time that a
  program takes where that is less: somebody's end then comes sooner than a turn. A new program
  beyond that is told so when its bound comes; whoever was served before goes on whatever fits, and
  so do its children, before which it cannot end.
- A kind of program that is mostly over with its first answer (chats, summaries) takes no turns, so
  such newcomers wait for nobody's end. What is set aside for growth is theirs to use, and what an
  engine computes beside others in one batch is no cold start.
- An oversize program runs alone rather than waits for ever.
- Where a tier below the cache gives back what it dropped for a fraction of computing it, memory is
  nothing to wait for: all go to the engine, until a few caches' worth of prompts queue there.

Works on unmodified engines: what it lets go of is what the engine's own LRU evicts next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from agentsched.model import (
    Command,
    ConversationId,
    Event,
    Instant,
    Lineage,
    Nanos,
    StepClass,
    after,
    between,
)
from agentsched.policy import (
    Admission,
    Admitted,
    ConversationView,
    EngineView,
    GraphView,
    Held,
    StepView,
    TurnedAway,
    World,
)
from agentsched_policies.live_programs import LivePrograms
from agentsched_policies.usual_ends import kind_of

#: Units of its reload time, more than any pause will be.
_LONG = 1e9
#: The share of the cache that a single question may ask for and be treated as one.
_QUESTION = 1 / 16
#: Tokens to compute that are no cold start: an engine does so much within one batch.
_BRIEF = 512
_CROWDED = Held(reason="programs", blocks_others=False)
_CHEAP = frozenset({StepClass.AUXILIARY, StepClass.PROBE, StepClass.TOKEN_COUNT})


class WorkingSet:
    """Admission by memory. See the module for the rules.

    `patience`: multiples of its reload time that a paused conversation is kept for when somebody
    waits. `reserve_steps`: mean growth steps reserved for each conversation. `fill`: share of the
    engine's KV capacity that is used. `cold_tokens`: uncached prompt tokens in flight to which a
    further cold start may add; a single one may always start. `growth_share`: growth of a
    conversation per step, as a share of its context, until its own is known. `ageing`: the share of
    the wait bound after which a step that waits may take the memory of anyone who pauses.
    `swap_share`: the share of the wait bound, or of half a shorter program's time, that reloads may
    take; 0 begins programs without end.
    `cheap_reload`: the price of a reload, as a share of computing, up to which nobody waits for
    memory; 0 never. `engine_queue`: how many times its cache may then queue in the engine, in
    tokens of prompts without a first token.
    """

    def __init__(
        self,
        *,
        patience: float = 6.0,
        reserve_steps: float = 0.5,
        fill: float = 0.95,
        cold_tokens: int = 2_048,
        growth_share: float = 0.04,
        ageing: float = 1.0,
        swap_share: float = 0.4,
        cheap_reload: float = 0.7,
        engine_queue: float = 64.0,
    ) -> None:
        if min(patience, reserve_steps, cold_tokens, growth_share, swap_share) < 0:
            raise ValueError("patience, reserve, cold tokens, growth and swap share are 0 or more")
        if min(cheap_reload, engine_queue) < 0:
            raise ValueError("cheap reload and engine queue are 0 or more")
        if not 0 < fill <= 1 or not 0 < ageing <= 1:
            raise ValueError("fill and ageing are above 0 and at most 1")
        self._patience = patience
        self._reserve_steps = reserve_steps
        self._fill = fill
        self._cold_tokens = cold_tokens
        self._growth_share = growth_share
        self._ageing = ageing
        self._swap_share = swap_share
        self._cheap_reload = cheap_reload
        self._engine_queue = engine_queue
        self._live = LivePrograms()

    def observe(self, event: Event, *, now: Instant) -> None:
        self._live.observe(event, now=now)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._live.decided(commands, now=now)

    def admit(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> Admission:
        capacity = engine.capabilities.kv_tokens
        conversation = world.conversation(step)
        is_home = conversation.is_resident and conversation.engine == engine.engine
        if capacity is None or is_home or not engine.running_steps + engine.peer_steps:
            return self._admitted_alone(step, engine, world, now=now, capacity=capacity)
        missing = world.missing_tokens(step, engine.engine)
        is_question = missing <= _QUESTION * capacity and self._is_question(step, world)
        need = missing + (0.0 if is_question else self._reserve(conversation))
        is_late = between(step.arrived_at, now) >= world.wait_ns_max
        is_due = is_late or step.bypassed >= world.bypasses_max
        if self._is_cheap(engine):
            return self._admitted_over_tier(step, engine, capacity, is_due=is_due)
        # First, since under overload it is the answer for many at every event.
        if not is_question and self._is_crowded(step, engine, world, capacity, need, now=now):
            if is_due:
                return TurnedAway(reason="programs", retry_after=Nanos(world.wait_ns_max // 4))
            return _CROWDED
        free = self._free(engine, world, capacity)
        if is_question:
            # It leaves before anybody grows: what is set aside for that is its to use.
            free = float(capacity - world.resident_tokens(engine.engine))
        if is_due:
            victims = self._victims(engine, world, need - free, now=now, threshold=0.0)
            return Admitted(releases=tuple(victims))
        cold = engine.cold_tokens(now=now)
        # Titles and the like are too small to be worth a place in the line of cold starts.
        is_cheap = step.step_class in _CHEAP or (is_question and missing <= _BRIEF)
        work = self._work(missing, step, engine, world)
        is_cold_limited = bool(cold) and not is_cheap and cold + work > self._cold_tokens
        if need <= free:
            # With room to spare the engine's own queue does as well as ours.
            if is_cold_limited and self._is_contended(world, engine, capacity):
                return Held(reason="cold start", until=engine.cold_until(now=now))
            return Admitted()
        if is_cold_limited:
            return Held(reason="cold start", until=engine.cold_until(now=now))
        return self._make_room(step, engine, world, need - free, now=now)

    def shuts_out(
        self, engines: Sequence[EngineView], world: World, *, now: Instant
    ) -> Held | None:
        """Whether even the smallest new program is one too many, on every engine."""
        if not self._swap_share or not engines:
            return None
        # As `_is_crowded` has it, term for term, for a program that needs nothing itself and could
        # go to every engine that is up.
        kinds, ends = self._live.new_kinds(), self._live.ends
        if ends.asks_one(kinds):
            return None
        own = ends.least_tokens(kinds) / _engines_of("", world)
        wanted = self._wanted(world, now=now)
        swapped = self._swapped_ns(world, now=now)
        for engine in engines:
            capacity = engine.capabilities.kv_tokens
            if capacity is None or not engine.running_steps + engine.peer_steps:
                return None
            if self._is_cheap(engine):
                return None
            if not _demand(engine, wanted) + own > capacity + swapped / engine.reload_ns:
                return None
        return _CROWDED

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

    def _admitted_over_tier(
        self, step: StepView, engine: EngineView, capacity: int, *, is_due: bool
    ) -> Admission:
        """Nobody waits for memory that is got back for little; the queue there stays short."""
        queued = engine.starting_tokens
        if is_due or not queued or queued + step.prompt_tokens <= self._engine_queue * capacity:
            return Admitted()
        return Held(reason="engine queue")

    def _is_cheap(self, engine: EngineView) -> bool:
        return engine.reload_ns <= self._cheap_reload * engine.prefill_ns

    def _work(self, missing: int, step: StepView, engine: EngineView, world: World) -> float:
        """Tokens to compute, or as much time as it takes to reload them."""
        conversation = world.conversation(step)
        is_return = conversation.steps_done and conversation.engine == engine.engine
        return missing * engine.reload_ns / engine.prefill_ns if is_return else missing

    def _is_crowded(
        self,
        step: StepView,
        engine: EngineView,
        world: World,
        capacity: int,
        need: float,
        *,
        now: Instant,
    ) -> bool:
        """Whether the bound could not be kept for everyone, were this new program let in.

        What does not fit at its peak must take turns, and each turn is a reload: all of them have
        to fit into the bound. Whoever was served before is never refused, nor what it begins.
        """
        if not self._swap_share or self._has_begun(step, world) or _is_of_begun(step, world):
            return False
        usual = self._live.ends.tokens(kind_of(step))
        own = max(need, usual) / _engines_of(step.model, world)
        demand = _demand(engine, self._wanted(world, now=now)) + own
        return demand > capacity + self._swapped_ns(world, now=now) / engine.reload_ns

    def _is_question(self, step: StepView, world: World) -> bool:
        """Whether it is a new program that will probably be over with its first answer.

        Such a one takes no turns with others: it never comes back.
        """
        if step.lineage is not Lineage.NEW or self._has_begun(step, world):
            return False
        return self._live.ends.is_question(kind_of(step))

    def _has_begun(self, step: StepView, world: World) -> bool:
        return step.program in self._live or world.programs[step.program].was_served

    def _wanted(self, world: World, *, now: Instant) -> list[tuple[str, float]]:
        """By model: tokens that programs under way want of each engine that has it."""
        peaks = self._live.peaks(now=now)
        return [(model, tokens / _engines_of(model, world)) for model, tokens in peaks]

    def _swapped_ns(self, world: World, *, now: Instant) -> float:
        """The time that reloads may take of everybody's turn."""
        return self._swap_share * self._live.half_ns(Nanos(world.wait_ns_max), now=now)

    def _make_room(
        self, step: StepView, engine: EngineView, world: World, short: float, *, now: Instant
    ) -> Admission:
        waited = between(step.arrived_at, now) / (self._ageing * world.wait_ns_max)
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
        graph = world.graph(conversation.program)
        if graph is not None and self._waits_for_children(conversation, graph, world):
            return _LONG
        reload_ns = self._reload_ns(conversation, engine, world, graph)
        return between(conversation.paused_at, now) / reload_ns

    def _reload_ns(
        self,
        conversation: ConversationView,
        engine: EngineView,
        world: World,
        graph: GraphView | None,
    ) -> float:
        """The time that computing its own tokens again will take: none if it never comes back."""
        reload_ns = world.own_tokens(conversation.conversation) * engine.reload_ns
        if graph is not None:
            reload_ns *= 1.0 - graph.last_pause_chance(conversation.conversation)
        return max(1.0, reload_ns)

    def _waits_for_children(
        self, conversation: ConversationView, graph: GraphView, world: World
    ) -> bool:
        """Whether its pause lasts until its sub-agents are done: longer than any tool's."""
        if not graph.is_waiting_for_children():
            return False
        if conversation.parent is None:
            return True
        program = world.programs[conversation.program]
        return any(c.parent == conversation.conversation for c in program.conversations.values())

    def _next_crossing(
        self, engine: EngineView, world: World, threshold: float, *, now: Instant
    ) -> Instant | None:
        """When the next paused conversation reaches the threshold, were that to stay as it is."""
        crossings = []
        for conversation in world.resident(engine.engine):
            if conversation.paused_at is None:
                continue
            graph = world.graph(conversation.program)
            reload_ns = self._reload_ns(conversation, engine, world, graph)
            at = after(conversation.paused_at, Nanos(round(threshold * reload_ns)))
            if at > now:
                crossings.append(at)
        return min(crossings, default=None)

    def _free(self, engine: EngineView, world: World, capacity: int) -> float:
        """Tokens of the cache that no resident conversation has or is about to grow into."""
        # As `_reserve`, which is asked too often here to be called.
        steps, young = self._reserve_steps, self._reserve_steps * self._growth_share
        reserved = sum(
            [
                steps * c.growth_tokens if c.steps_done > 1 else young * c.context_tokens
                for c in world.resident(engine.engine)
            ]
        )
        return self._fill * capacity - world.resident_tokens(engine.engine) - reserved

    def _reserve(self, conversation: ConversationView) -> float:
        if conversation.steps_done > 1:
            return self._reserve_steps * conversation.growth_tokens
        return self._reserve_steps * self._growth_share * conversation.context_tokens

    def _is_contended(self, world: World, engine: EngineView, capacity: int) -> bool:
        return world.resident_tokens(engine.engine) > 0.5 * capacity


def _is_of_begun(step: StepView, world: World) -> bool:
    """Whether its program is a child of one that was served."""
    parent = world.programs[step.program].parent
    elder = world.programs.get(parent) if parent is not None else None
    return elder is not None and elder.was_served


def _serves(engine: EngineView, model: str) -> bool:
    """Whether it has this model; an engine that lists none is taken to have it."""
    models = engine.capabilities.models
    return not model or not models or model in models


def _demand(engine: EngineView, wanted: Sequence[tuple[str, float]]) -> float:
    """What they all want of this engine."""
    return sum(tokens for model, tokens in wanted if _serves(engine, model))


def _engines_of(model: str, world: World) -> int:
    """How many engines that are up have a model; 1 where none does."""
    return max(1, sum(e.is_up and _serves(e, model) for e in world.engines.values()))
