"""The engine that costs least in seconds, and between equals the one that every replica names.

    cost(e) = uncached prompt tokens x price          price of computing, or of reloading at home
            + prefill in flight there
            + steps x answer tokens x decode price x (1 + crowd x how full it is)
            + tokens that would be evicted for it x price of reloading them
            + spread x prompt x prefill price x rendezvous hash of (program, e)

`steps` is this one and those that are expected to follow, at most `horizon`: a faster engine pays
off over several. All prices are learnt per engine, so fast and slow, large and small engines and
those with a tier need no configuration. How full an engine is counts the live conversations that
are at home there, whether they compute or pause: they will all be back.

A conversation moves at turn boundaries only, and only where that saves `margin` more than the
prefix that it loses. Conversations that lost their KV anyway are free to go wherever is best, and a
step that waits is placed anew whenever something happens: nothing is queued for an engine that may
turn out to be the wrong one. Siblings and programs with one system prompt come together by
themselves, since what is there already need not be computed, until the queue costs more than that.

The hash makes replicas of the proxy agree without asking while loads are alike, and keeps those
that see old loads from all running to one engine. It is weighted by capacity; an engine that is
lost or comes back moves only the programs that were, or will be, its own.

Fails where prices are not learnt (no streaming, no usage): then engines of unlike speed are taken
to be alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import Command, EngineId, EngineLost, EngineReported, Event, Instant
from agentsched.policy import ConversationView, EngineView, StepView, World
from agentsched_policies.hashing import rendezvous
from agentsched_policies.homes import Homes

#: Worse than any cost: the prompt does not fit.
_IMPOSSIBLE = -1e30
#: Engines whose decode prices are so near to each other are taken to be equally fast.
_ALIKE = 0.25
#: Tokens that an engine of unknown size is taken to hold, to weigh it.
_POOL = 100_000


class Rendezvous:
    """Least seconds. `spread`: weight of the hash, in prefills of the whole prompt.

    `margin`: how much more than the lost prefix a move must save, as a share of it. `crowd`: weight
    of how full an engine is, for whoever has no KV anywhere. `evict`: weight of what would be
    evicted. `horizon`: for how many steps at most an engine is chosen.
    """

    def __init__(
        self,
        *,
        spread: float = 0.1,
        margin: float = 4.0,
        crowd: float = 4.0,
        evict: float = 1.0,
        horizon: float = 4.0,
    ) -> None:
        if min(spread, margin, crowd, evict, horizon) < 0:
            raise ValueError("spread, margin, crowd and evict are 0 or more")
        self._spread = spread
        self._margin = margin
        self._crowd = crowd
        self._evict = evict
        self._horizon = horizon
        self._homes = Homes()
        #: KV tokens of each engine that reported, to weigh them against each other.
        self._pools: dict[EngineId, int] = {}
        self._pool_mean = 1.0

    def observe(self, event: Event, *, now: Instant) -> None:
        self._homes.observe(event, now=now)
        if isinstance(event, EngineReported):
            self._pools[event.engine] = event.capabilities.kv_tokens or _POOL
        elif isinstance(event, EngineLost):
            self._pools.pop(event.engine, None)
        else:
            return
        self._pool_mean = sum(self._pools.values()) / max(1, len(self._pools))

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._homes.decided(commands, now=now)

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        longest = engine.capabilities.context_max or engine.capabilities.kv_tokens
        if longest is not None and step.prompt_tokens > longest:
            return _IMPOSSIBLE - step.prompt_tokens + longest
        conversation = world.conversation(step)
        missing = world.missing_tokens(step, engine.engine)
        is_home = conversation.engine == engine.engine
        is_resident = is_home and conversation.is_resident
        price = engine.reload_ns if is_home else engine.prefill_ns
        cost = missing * price + engine.cold_tokens(now=now) * engine.prefill_ns
        if not is_home and conversation.is_resident:
            cost += self._margin * missing * engine.prefill_ns
        pool = engine.capabilities.kv_tokens
        # Whoever has its KV somewhere moves for what waits there now, not for what may come.
        is_free = not conversation.is_resident
        full = self._homes.tokens(engine.engine) / (pool or _POOL) if is_free else 0.0
        output = step.output_tokens_expected or self._homes.output_tokens
        steps = self._steps(step, world)
        cost += steps * output * _decode_ns(engine, world) * (1.0 + self._crowd * full)
        if pool is not None and not is_resident:
            over = self._homes.tokens(engine.engine) + missing - pool
            cost += self._evict * max(0.0, over) * engine.reload_ns
        return -cost - self._jitter(step, engine, conversation)

    def _steps(self, step: StepView, world: World) -> float:
        """How many steps the choice is for: this one and those that will probably follow it."""
        graph = world.graph(step.program)
        left = graph.steps_left() if graph is not None else None
        return min(self._horizon, 1.0 + left) if left is not None else self._horizon

    def _jitter(self, step: StepView, engine: EngineView, conversation: ConversationView) -> float:
        """Nanoseconds by which replicas tell equal engines apart, all of them alike."""
        if not self._spread or conversation.is_resident:
            return 0.0
        weight = (engine.capabilities.kv_tokens or _POOL) / self._pool_mean
        scale = min(10.0, rendezvous(step.program, engine.engine, weight=weight))
        return self._spread * scale * step.prompt_tokens * engine.prefill_ns


def _decode_ns(engine: EngineView, world: World) -> float:
    """Its price of an output token, or the fleet's where it differs by less than a quarter.

    Prices follow the load of the moment; small differences between like engines mean nothing.
    """
    prices = [e.decode_ns for e in world.engines.values() if e.is_up]
    mean = sum(prices) / len(prices) if prices else engine.decode_ns
    return engine.decode_ns if abs(engine.decode_ns / mean - 1.0) > _ALIKE else mean
