"""A modelled engine inside the simulation, advanced no further than anyone could notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentsched.model import (
    Capabilities,
    EngineId,
    EngineLoad,
    EngineReported,
    Instant,
    Nanos,
)
from agentsched_bench.engine.cache import PagedCache
from agentsched_bench.engine.model import EngineModel
from agentsched_bench.engine.requests import (
    EngineConfig,
    Generation,
    Refusal,
    Scheduling,
    StepOutcome,
)
from agentsched_bench.oracles.belady import BeladyCache


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTraits:
    """What an engine does beside generating: keep prefixes on request (our plugin), warm them up
    by a request of one token (any stock engine); and which models it serves (none named: all).
    `is_clairvoyant`: its cache knows when conversations come back, as no cache does."""

    is_clairvoyant: bool = False
    pins: bool = False
    warm: bool = True
    models: tuple[str, ...] = ()


class SimEngine:
    """One engine: its model, and how far in time that has come."""

    def __init__(
        self, engine: EngineId, config: EngineConfig, *, traits: EngineTraits | None = None
    ) -> None:
        self.engine = engine
        self.config = config
        self.traits = traits or EngineTraits()
        self.model = self._fresh()
        #: The model's state is that of this instant; a step that began before may end after it.
        self.at = Instant(0)
        #: Number of its latest entry in the agenda; older ones are stale.
        self.wake = 0
        self.is_lost = False
        #: How often it was lost: what an earlier life had to say does not come out any more.
        self.lives = 0
        #: It stands still: what is in it stays where it is.
        self.is_stalled = False
        self._busy_before = 0
        self._preemptions_before = 0
        self._slowness = 1.0

    @property
    def busy_ns(self) -> int:
        """How long it computed, over all of its lives."""
        return self._busy_before + self.model.gauges(now=self.at).busy_ns

    @property
    def preemptions(self) -> int:
        """How often it preempted, over all of its lives."""
        return self._preemptions_before + self.model.gauges(now=self.at).preemptions

    @property
    def request_ns(self) -> Nanos:
        """How long a call takes until it is in the engine; the answer takes as long again."""
        return Nanos(round(self.config.cost.per_call_ns / 2))

    def look(self) -> EngineReported:
        """As `report`, with its gauges: what a look finds."""
        gauges = self.model.gauges(now=self.at)
        load = EngineLoad(
            running=gauges.running,
            waiting=gauges.waiting,
            kv_usage=gauges.cache_usage,
            preemptions=gauges.preemptions,
            computed_tokens=gauges.prompt_tokens + gauges.generation_tokens,
        )
        return replace(self.report(), load=load)

    def report(self) -> EngineReported:
        """What it says about itself, as the vLLM adapter does."""
        tokens = (self.config.blocks - 1) * self.config.block_size
        return EngineReported(
            engine=self.engine,
            capabilities=Capabilities(
                prefix_cache=True,
                cached_tokens=True,
                tier=self.config.tier is not None,
                priority=self.config.scheduling is Scheduling.PRIORITY,
                pins=self.traits.pins,
                warm=self.traits.warm,
                models=self.traits.models,
                block_size=self.config.block_size,
                kv_tokens=tokens,
                running_max=self.config.max_num_seqs,
                context_max=self.config.max_model_len,
            ),
            load=EngineLoad(),
        )

    def quiet_until(self) -> Instant | None:
        """Nothing starts or ends before this; None while it computes nothing."""
        if self.is_stalled or not len(self.model):
            return None
        return max(self.at, self.model.quiet_until(now=self.at))

    def add(self, generation: Generation, *, now: Instant) -> Refusal | None:
        """A call reaches the engine, which has been advanced to `now`."""
        self.at = max(self.at, now)
        return self.model.add(generation, now=now)

    def advance(self, *, until: Instant) -> tuple[Instant, StepOutcome] | None:
        """Compute until then, or to the next step in which something starts or ends: its end."""
        while self.at < until and len(self.model) and not self.is_stalled:
            stretch = self.model.run_until(now=self.at, until=until)
            if stretch.outcome is not None:
                self.at = stretch.at
                return stretch.at, stretch.outcome
            # Not a step further: whatever is there is being loaded beyond `until`.
            self.at = stretch.at if stretch.at > self.at else until
        return None

    def lose(self) -> tuple[str, ...]:
        """It dies: everything in it is gone. The ids of what it was doing."""
        live = self.model.live()
        self._busy_before, self._preemptions_before = self.busy_ns, self.preemptions
        self.model = self._fresh()
        self.slow(1.0)
        self.is_lost = True
        self.lives += 1
        return live

    def claim(self, conversation: str, hashes: Sequence[int], *, at: Instant | None) -> None:
        """Where the cache is clairvoyant: when this conversation comes back."""
        if isinstance(self.model.cache, BeladyCache):
            self.model.cache.claim(conversation, hashes, needed_at=at)

    def unclaim(self, conversation: str, *, is_back: bool) -> None:
        """Where the cache is clairvoyant: it is back, or over or elsewhere."""
        if isinstance(self.model.cache, BeladyCache):
            self.model.cache.unclaim(conversation, is_back=is_back)

    def _fresh(self) -> EngineModel:
        cache_type = BeladyCache if self.traits.is_clairvoyant else PagedCache
        return EngineModel(self.config, cache_type=cache_type)

    def slow(self, factor: float) -> None:
        """Steps take `factor` times as long as until now."""
        self._slowness *= factor
        # Two slowdowns that end give the very numbers that were there before them.
        if abs(self._slowness - 1.0) < 1e-9:
            self._slowness = 1.0
        cost = self.config.cost
        self.model.use_cost(cost if self._slowness == 1.0 else cost.slower(self._slowness))
