"""The engine that costs least in seconds, and between equals the one that every replica names.

    cost(e) = uncached prompt tokens x price          price of computing, or of reloading at home
            + prefill in flight there
            + steps x answer tokens x decode price x (1 + crowd x how full it is)
            + tokens that would be evicted for it x price of reloading them x evict
            + spread x prompt x prefill price x rendezvous hash of (program, e)

`steps` is this one and those that are expected to follow, at most `horizon`: a faster engine pays
off over several. All prices are learnt per engine, so fast and slow, large and small engines and
those with a tier need no configuration. How full an engine is counts the live conversations that
are at home there, whether they compute or pause, since they will all be back, and what other
replicas keep there. What would be evicted is another question, of what lies there now: a
conversation that was let go is at home there still, but takes no room, and who waits for memory
must see the room that another engine has. Whoever is thrown out waits for its turn before it is
reloaded, and throws out others: hence `evict` times the price.

A conversation moves at turn boundaries only, and only where that saves `margin` more than the
prefix that it loses. Conversations that lost their KV anyway are free to go wherever is best, and a
step that waits is placed anew whenever something happens: nothing is queued for an engine that may
turn out to be the wrong one. Siblings and programs with one system prompt come together by
themselves, since what is there already need not be computed, until the queue costs more than that.

An engine that had no step yet is given the next new program: what it costs there is only a guess,
and a slow engine that everybody's beginning lies on already would keep them all. Not so where other
replicas left no room for it: it would wait there and teach nobody what that engine costs.

When an engine is lost its programs all look for a place at once, and by cost everyone who was let
go elsewhere would be shuffled with them. For `settle_s` after a loss nobody leaves an engine that
is well and may be given work: those of one that is silent, say, go by cost.

Whatever the load, a prompt goes to an engine that takes one of its length, where there is such.

All that is for caches that are wanted. While everything that lives, other replicas' included, takes
no more than `roomy` of every engine's cache, nobody is evicted, the head of a prompt is on every
engine soon, and what costs time is company: then each stays where it is, and who is new goes where
least runs, as `place.session-affinity` has it. By cost alone newcomers would follow a common
beginning to an engine that is busy already.

The hash makes replicas of the proxy agree without asking while loads are alike, and keeps those
that see old loads from all running to one engine. It is weighted by capacity; an engine that is
lost or comes back moves only the programs that were, or will be, its own.

Fails where prices are not learnt (no streaming, no usage): then engines of unlike speed are taken
to be alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import (
    Command,
    Dispatch,
    EngineId,
    EngineLost,
    EngineReported,
    Event,
    Instant,
    after,
    seconds,
)
from agentsched.policy import EngineView, StepView, World
from agentsched_policies.affinity import Affinity
from agentsched_policies.hashing import rendezvous
from agentsched_policies.homes import Homes
from agentsched_policies.models import serves

#: Worse than any cost: the engine does not take a prompt of this length.
_IMPOSSIBLE = 1e30
#: Worse than any cost but that: it would leave an engine that is well.
_AWAY = 1e29
#: Engines whose decode prices are so near to each other are taken to be equally fast.
_ALIKE = 0.25
#: Tokens that an engine of unknown size is taken to hold, to weigh it.
_POOL = 100_000
#: The share of its cache above which an engine evicts: admission leaves the rest free.
_FULL = 0.95


class Rendezvous:
    """Least seconds. `spread`: weight of the hash, in prefills of the whole prompt.

    `margin`: how much more than the lost prefix a move must save, as a share of it. `crowd`: weight
    of how full an engine is, for whoever has no KV anywhere. `evict`: how many times its reload a
    token that is evicted costs. `horizon`: for how many steps at most an engine is chosen.
    `settle_s`: how long after the loss of an engine all others' conversations keep their place.
    `roomy`: share of every engine's cache up to which load alone decides; 0: never.
    """

    def __init__(
        self,
        *,
        spread: float = 0.1,
        margin: float = 4.0,
        crowd: float = 4.0,
        evict: float = 4.0,
        horizon: float = 4.0,
        settle_s: float = 60.0,
        roomy: float = 0.8,
    ) -> None:
        if min(spread, margin, crowd, evict, horizon, settle_s, roomy) < 0:
            raise ValueError("spread, margin, crowd, evict, horizon, settle_s and roomy: 0 or more")
        self._spread = spread
        self._margin = margin
        self._crowd = crowd
        self._evict = evict
        self._horizon = horizon
        self._settle_ns = seconds(settle_s)
        self._roomy = roomy
        self._affinity = Affinity(speed=True)
        #: Until when nobody leaves an engine that is well.
        self._settled_at: Instant | None = None
        self._homes = Homes()
        #: Engines that had a step since they came up: the others' prices are a first guess.
        self._tried: set[EngineId] = set()
        #: KV tokens of each engine that reported, to weigh them against each other.
        self._pools: dict[EngineId, int] = {}
        self._pool_mean = 1.0

    def observe(self, event: Event, *, now: Instant) -> None:
        self._homes.observe(event, now=now)
        self._affinity.observe(event, now=now)
        if isinstance(event, EngineReported):
            self._pools[event.engine] = event.capabilities.kv_tokens or _POOL
        elif isinstance(event, EngineLost):
            self._pools.pop(event.engine, None)
            self._tried.discard(event.engine)
            self._settled_at = after(now, self._settle_ns)
        else:
            return
        self._pool_mean = sum(self._pools.values()) / max(1, len(self._pools))

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._homes.decided(commands, now=now)
        self._tried |= {command.engine for command in commands if isinstance(command, Dispatch)}

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        up = [e for e in world.engines.values() if e.is_up]
        able = _able(step, [e for e in up if serves(e.capabilities, step.model)])
        if not _takes(engine, step) and any(_takes(e, step) for e in able):
            return -_IMPOSSIBLE
        if self._is_roomy(step, able):
            return self._affinity.score(step, engine, world, now=now)
        home = self._kept_by(step, able, world, now=now)
        if home is not None and home is not engine:
            return -_AWAY
        answers, usual_ns = self._answers(step, world), _usual_ns(step, world)
        return -self._cost(step, engine, world, answers=answers, usual_ns=usual_ns, now=now)

    def best(
        self, step: StepView, engines: Sequence[EngineView], world: World, *, now: Instant
    ) -> EngineView:
        """What the scores come to; what is the same for all engines is found once."""
        engines = _able(step, engines)
        if len(engines) == 1:
            return engines[0]
        if self._is_roomy(step, engines):
            return self._affinity.best(step, engines, world, now=now)
        home = self._kept_by(step, engines, world, now=now)
        if home is not None:
            return home
        answers, usual_ns = self._answers(step, world), _usual_ns(step, world)

        def key(engine: EngineView) -> tuple[float, EngineId]:
            cost = self._cost(step, engine, world, answers=answers, usual_ns=usual_ns, now=now)
            return cost, engine.engine

        return min(engines, key=key)

    def _cost(
        self,
        step: StepView,
        engine: EngineView,
        world: World,
        *,
        answers: float,
        usual_ns: float,
        now: Instant,
    ) -> float:
        conversation = world.conversation(step)
        missing = world.missing_tokens(step, engine.engine)
        over = _evicted_tokens(engine, world, missing)
        is_taken = over > 0 and engine.peer_tokens > 0
        if engine.engine not in self._tried and not is_taken and _is_new(step, world):
            return self._jitter(step, engine)
        is_home = conversation.engine == engine.engine
        price = engine.reload_ns if is_home else engine.prefill_ns
        cost = missing * price + engine.cold_tokens(now=now) * engine.prefill_ns
        # Prices follow the load of the moment; small differences between like engines mean nothing.
        is_alike = abs(engine.decode_ns - usual_ns) <= _ALIKE * usual_ns
        decode = answers * (usual_ns if is_alike else engine.decode_ns)
        if not (is_home and conversation.is_resident):
            cost += self._evict * over * engine.reload_ns
        if conversation.is_resident:
            # It moves for what waits there now, not for what may come.
            lost = 0.0 if is_home else self._margin * missing * engine.prefill_ns
            return cost + decode + lost
        full = self._living_tokens(engine) / (engine.capabilities.kv_tokens or _POOL)
        return cost + decode * (1.0 + self._crowd * full) + self._jitter(step, engine)

    def _is_roomy(self, step: StepView, engines: Sequence[EngineView]) -> bool:
        """Whether all that lives, and this, takes a small part of every engine's cache."""
        most = self._roomy
        return all(
            self._living_tokens(e) + step.prompt_tokens
            <= most * (e.capabilities.kv_tokens or _POOL)
            for e in engines
        )

    def _living_tokens(self, engine: EngineView) -> int:
        """Tokens of our live conversations there, and of what other replicas keep there."""
        return self._homes.tokens(engine.engine) + engine.peer_tokens

    def _kept_by(
        self, step: StepView, engines: Sequence[EngineView], world: World, *, now: Instant
    ) -> EngineView | None:
        """Its home, where that is one of these and nobody leaves what is well; None else."""
        if self._settled_at is None or now >= self._settled_at:
            return None
        home = world.conversation(step).engine
        return next((engine for engine in engines if engine.engine == home), None)

    def _answers(self, step: StepView, world: World) -> float:
        """Output tokens of this step and those that will probably follow it."""
        graph = world.graph(step.program)
        left = graph.steps_left() if graph is not None else None
        steps = min(self._horizon, 1.0 + left) if left is not None else self._horizon
        return steps * (step.output_tokens_expected or self._homes.output_tokens)

    def _jitter(self, step: StepView, engine: EngineView) -> float:
        """Nanoseconds by which replicas tell equal engines apart, all of them alike."""
        if not self._spread:
            return 0.0
        weight = (engine.capabilities.kv_tokens or _POOL) / self._pool_mean
        scale = min(10.0, rendezvous(step.program, engine.engine, weight=weight))
        return self._spread * scale * step.prompt_tokens * engine.prefill_ns


def _is_new(step: StepView, world: World) -> bool:
    """Whether it begins a program that belongs to no other."""
    program = world.programs[step.program]
    is_first = world.conversation(step).engine is None and len(program.conversations) == 1
    return is_first and program.parent is None


def _evicted_tokens(engine: EngineView, world: World, missing: int) -> float:
    """Tokens there that would have to go for so many more."""
    pool = engine.capabilities.kv_tokens
    if pool is None:
        return 0.0
    return max(0.0, world.resident_tokens(engine.engine) + missing - _FULL * pool)


def _able(step: StepView, engines: Sequence[EngineView]) -> Sequence[EngineView]:
    """Engines that take a prompt of this length; all where none does, since lengths are guesses."""
    return [engine for engine in engines if _takes(engine, step)] or engines


def _takes(engine: EngineView, step: StepView) -> bool:
    longest = engine.capabilities.context_max or engine.capabilities.kv_tokens
    return longest is None or step.prompt_tokens <= longest


def _usual_ns(step: StepView, world: World) -> float:
    """What an output token costs on the engines that have its model, in the mean."""
    up = [engine for engine in world.engines.values() if engine.is_up]
    prices = [engine.decode_ns for engine in up if serves(engine.capabilities, step.model)]
    return sum(prices) / max(1, len(prices))
