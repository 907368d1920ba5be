"""DualMap (arXiv 2602.06502): two hashes of the prompt's beginning, two engines to choose from.

Equal beginnings have the same two candidates, so caches are reused, and the choice of two keeps the
load even. The candidate that has more of the prompt is taken unless its estimated time to the first
token breaks the objective (`ttft_slo_s`, 5 s in their adapter); then the one that is sooner. A step
that has waited for `rebalance_s` (3 s) goes to the one that is sooner as well (theirs goes to the
other candidate). A hot beginning is lengthened, so that what hangs on it spreads: here one that
more than `hot_share` of the latest arrivals have (theirs hash blocks of 512 tokens; ours are the
beginnings that the host named).

TTFT estimate = (prefill in flight + tokens of the prompt that are missing) x prefill price.

Fails on agents: it knows no programs, so a conversation whose hot beginning is lengthened changes
its candidates and loses its cache; and all programs of one system prompt share two engines until
that is known to be hot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from agentsched.model import EngineId, Event, Instant, PrefixId, StepArrived, between, seconds
from agentsched.policy import EngineView, StepView, World
from agentsched_policies.hashing import rendezvous
from agentsched_policies.models import serves

_WINDOW = 512
#: With fewer arrivals nothing is hot.
_ARRIVALS_MIN = 16


class DualMap:
    """Best of the two engines that the prompt's beginning maps to."""

    def __init__(
        self, *, ttft_slo_s: float = 5.0, rebalance_s: float = 3.0, hot_share: float = 0.25
    ) -> None:
        if ttft_slo_s <= 0 or rebalance_s <= 0 or not 0 < hot_share <= 1:
            raise ValueError("objectives are positive and hot_share is above 0 and at most 1")
        self._slo = seconds(ttft_slo_s)
        self._rebalance = seconds(rebalance_s)
        self._hot_share = hot_share
        #: Names of the beginnings of the latest arrivals, and how many of these have each.
        self._recent: deque[tuple[PrefixId, ...]] = deque()
        self._counts: dict[PrefixId, int] = {}

    def observe(self, event: Event, *, now: Instant) -> None:
        if not isinstance(event, StepArrived):
            return
        # A long conversation's later beginnings are its own; the first few decide.
        names = tuple(prefix.prefix for prefix in event.prefixes[:8])
        self._recent.append(names)
        for name in names:
            self._counts[name] = self._counts.get(name, 0) + 1
        if len(self._recent) > _WINDOW:
            self._forget(self._recent.popleft())

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        return self._score(step, engine, self._both(step, world), world, now=now)

    def best(
        self, step: StepView, engines: Sequence[EngineView], world: World, *, now: Instant
    ) -> EngineView:
        """What the scores come to. The candidates, two hashes of each engine, are found once."""
        candidates = self._both(step, world)

        def key(engine: EngineView) -> tuple[float, EngineId]:
            return -self._score(step, engine, candidates, world, now=now), engine.engine

        return min(engines, key=key)

    def _both(self, step: StepView, world: World) -> tuple[str, ...]:
        up = (e for e in world.engines.values() if e.is_up)
        alike = (e for e in up if serves(e.capabilities, step.model))
        return self._candidates(self._key(step), alike)

    def _score(
        self,
        step: StepView,
        engine: EngineView,
        candidates: tuple[str, ...],
        world: World,
        *,
        now: Instant,
    ) -> float:
        if engine.engine not in candidates:
            return -1e9
        missing = world.missing_tokens(step, engine.engine)
        ttft = (engine.cold_tokens(now=now) + missing) * engine.prefill_ns
        if ttft > self._slo or between(step.arrived_at, now) > self._rebalance:
            return -1.0 - ttft / 1e9
        return 1.0 - missing / (1.0 + step.prompt_tokens)

    def _key(self, step: StepView) -> str:
        """The shortest beginning that is not hot."""
        hot = self._hot_share * len(self._recent)
        for prefix in step.prefixes:
            if len(self._recent) < _ARRIVALS_MIN or self._counts.get(prefix.prefix, 0) <= hot:
                return prefix.prefix
        return step.conversation

    def _candidates(self, key: str, engines: Iterable[EngineView]) -> tuple[str, ...]:
        names = [e.engine for e in engines]
        first = min(names, key=lambda name: (rendezvous(f"1/{key}", name), name), default="")
        others = [name for name in names if name != first]
        second = min(others, key=lambda name: (rendezvous(f"2/{key}", name), name), default=first)
        return first, second

    def _forget(self, names: tuple[PrefixId, ...]) -> None:
        for name in names:
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]
