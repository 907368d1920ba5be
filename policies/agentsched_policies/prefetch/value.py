"""Ours: warm what was evicted just before it is needed, where that pays; keep warm if asked to.

At the end of its tools a return is certain: the prompt is warmed at once. Before that it is planned
for the forecast's middle less the time that the reload takes, and only where the forecast has skill
and its worth exceeds its price. The kernel adds: only under pressure, only with slack (nobody
waits, no prompt is being computed there), few at a time, and never in the way of real work.

    worth   = P(return within `survival` reloads of the warm-up) x reload seconds x paid
    price   = reload seconds x `price`          (slack is cheap, and not for nothing)

With `touch` what is still cached is touched once, before the LRU would drop it: after that share of
a turnover (the time in which the engine computes as many tokens as its pool holds), and only where
the return lies beyond the turnover and within the one that the touch buys, by the same worth and
price. A touch computes nothing anew, and costs others the memory for as long.

`paid` is the share of lately warmed tokens that a next step found cached. Where warm-ups do not
pay, the product falls under the price and they stop; only the certain ones go on trying, as long as
`paid` is above `paid_min`.

When it fails: a client that reports no tools gives no certainty, and without such reports nobody
asks about what is evicted during its pause, unless its engine says so (the plugin, KV events): then
nothing is warmed. A forecast without skill gives no time. A touch keeps what another would have
used sooner: behind an admission that lets in what fits it gains nothing, so it is off (0).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from agentsched.model import (
    CallId,
    ConversationId,
    Event,
    Instant,
    Nanos,
    ProgramId,
    StepArrived,
    StepFinished,
    ToolFinished,
    ToolStarted,
    between,
)
from agentsched.policy import EngineView, PauseView, World
from agentsched_policies.turnover import Turnover

_FINISHED_MAX: Final = 10_000


class Value:
    """Warm-ups by worth. `tokens_min`: shorter prompts are not worth a request; `price` is that of
    an idle engine's second; `survival` bounds how long, in reloads, a warmed prompt may wait;
    `touch` is the share of a turnover after which what is cached is touched, 0 for never.
    """

    def __init__(
        self,
        *,
        price: float = 0.3,
        survival: float = 4.0,
        tokens_min: int = 256,
        paid_min: float = 0.2,
        touch: float = 0.0,
    ) -> None:
        if min(price, tokens_min, paid_min) < 0 or survival <= 0:
            raise ValueError("price, tokens_min and paid_min are 0 or more, survival is positive")
        if not 0.0 <= touch < 1.0:
            raise ValueError("touch is a share of a turnover: 0 or more, and less than 1")
        self._price = price
        self._survival = survival
        self._tokens_min = tokens_min
        self._paid_min = paid_min
        self._touch = touch
        self._turnover = Turnover()
        #: Tool calls that ended, of conversations that have not come back since.
        self._finished: OrderedDict[tuple[ProgramId, CallId], None] = OrderedDict()

    def observe(self, event: Event, *, now: Instant) -> None:
        match event:
            case StepFinished():
                self._turnover.observe(event, now=now)
            case ToolFinished():
                self._finished[event.program, event.call_id] = None
                if len(self._finished) > _FINISHED_MAX:
                    self._finished.popitem(last=False)
            case ToolStarted():
                # It runs: what had ended was an earlier call of that id.
                self._finished.pop((event.program, event.call_id), None)
            case StepArrived():
                for call in event.answers:
                    self._finished.pop((event.program, call), None)
            case _:
                pass

    def warm_at(self, pause: PauseView, world: World, *, now: Instant) -> Instant | None:
        engine = world.engines[pause.engine]
        missing = self._missing(pause.conversation, pause, world)
        is_touch = not missing and self._is_there(pause, world)
        tokens = pause.prefix.tokens if is_touch else missing
        if tokens < self._tokens_min or engine.capabilities.kv_tokens is None:
            return None
        if not engine.capabilities.prefix_cache or engine.warm_paid < self._paid_min:
            return None
        if is_touch:
            return self._before_dropped(pause, engine, world, now=now)
        if pause.tools and all((pause.program, c) in self._finished for c in pause.tools):
            return now
        return self._foreseen(pause, engine, world, missing, now=now)

    def _foreseen(
        self, pause: PauseView, engine: EngineView, world: World, missing: int, *, now: Instant
    ) -> Instant | None:
        graph = world.graph(pause.program)
        returns = graph.returns(pause.conversation, now=now) if graph is not None else None
        if returns is None or not returns.has_skill or not pause.tools:
            return None
        middle = returns.quantile(0.5)
        if middle is None:
            return None
        reload_ns = engine.reload(missing)
        at = max(0, middle - reload_ns)
        window = round(self._survival * reload_ns)
        before, after = returns.chances([Nanos(at), Nanos(at + window)])
        chance = (after - before) / max(1e-9, 1.0 - before)
        return Instant(now + at) if chance * engine.warm_paid > self._price else None

    def _is_there(self, pause: PauseView, world: World) -> bool:
        """Whether it is cached, as far as we know, and touches are wanted."""
        program = world.programs.get(pause.program)
        talk = program.conversations.get(pause.conversation) if program is not None else None
        return self._touch > 0.0 and talk is not None and talk.is_resident and not talk.is_over

    def _before_dropped(
        self, pause: PauseView, engine: EngineView, world: World, *, now: Instant
    ) -> Instant | None:
        """When to touch what is cached; None where it is back before, or not soon enough after."""
        graph = world.graph(pause.program)
        returns = graph.returns(pause.conversation, now=now) if graph is not None else None
        if returns is None or not returns.has_skill or not pause.tools:
            return None
        turnover = self._turnover.span_ns(engine, world, now=now)
        dropped = turnover - between(pause.since, now)
        at = dropped - (1.0 - self._touch) * turnover
        if at < 0:
            return None  # it was used long ago, and is only counted as cached
        before, after = returns.chances([Nanos(round(dropped)), Nanos(round(at + turnover))])
        chance = (after - before) / max(1e-9, 1.0 - before)
        return Instant(now + round(at)) if chance * engine.warm_paid > self._price else None

    def _missing(self, key: ConversationId, pause: PauseView, world: World) -> int:
        """Tokens of its context that have probably been evicted."""
        program = world.programs.get(pause.program)
        talk = program.conversations.get(key) if program is not None else None
        if talk is None or talk.is_over:
            return 0
        return 0 if talk.is_resident else pause.prefix.tokens
