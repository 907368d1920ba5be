"""One vLLM engine on virtual time: continuous batching over a paged prefix cache, no I/O.

The caller owns time. It adds and aborts generations, and lets steps happen:

    duration = model.begin(now=now)       # what the step computes is fixed and allocated now
    outcome = model.finish()              # at now + duration: tokens, ends

`step` does both at once, for callers that need not look in between. `run_until` does many steps and
stops at the first in which something started or ended; decode-only steps are fused there, with
results identical to single steps. No randomness: equal calls give equal answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from agentsched.model.time import Instant, Nanos, after
from agentsched_bench.engine.batch import Batcher, Plan
from agentsched_bench.engine.cache import PagedCache
from agentsched_bench.engine.cost import CostModel
from agentsched_bench.engine.requests import (
    EngineConfig,
    Finished,
    Gauges,
    Generation,
    Live,
    Refusal,
    StepOutcome,
    Stretch,
)
from agentsched_bench.engine.tier import HostTier


class EngineModel:
    """The engine. Not thread safe; between `begin` and `finish` only add, abort and queries."""

    __slots__ = (
        "_batch",
        "_by_id",
        "_duration",
        "_in_flight",
        "_sequence",
        "_started_at",
        "config",
    )

    def __init__(self, config: EngineConfig, *, cache_type: type[PagedCache] = PagedCache) -> None:
        self.config = config
        tier = HostTier(config.tier) if config.tier is not None else None
        cache = cache_type(blocks=config.blocks - 1, block_size=config.block_size, tier=tier)
        self._batch = Batcher(config, cache)
        #: Everything waiting or running.
        self._by_id: dict[str, Live] = {}
        self._sequence = 0
        self._in_flight: Plan | None = None
        self._started_at = Instant(0)
        self._duration = Nanos(0)

    @property
    def cache(self) -> PagedCache:
        """The block pool, to look at."""
        return self._batch.cache

    def __len__(self) -> int:
        """How many generations wait or run."""
        return len(self._by_id)

    def __contains__(self, key: str) -> bool:
        return key in self._by_id

    def add(self, generation: Generation, *, now: Instant) -> Refusal | None:
        """Queue a generation; on refusal nothing has changed."""
        assert generation.chain.block_size == self.config.block_size
        if generation.id in self._by_id:
            return Refusal.DUPLICATE
        if generation.prompt_tokens + generation.output_tokens > self.config.max_model_len:
            return Refusal.TOO_LONG
        if self._queue_is_full(generation):
            return Refusal.QUEUE_FULL
        self._sequence += 1
        live = Live(generation, now=now, sequence=self._sequence)
        self._by_id[generation.id] = live
        self._batch.waiting.add(live)
        return None

    def abort(self, key: str) -> bool:
        """Drop a generation and free its blocks at once; False when it is not (any more) here."""
        live = self._by_id.pop(key, None)
        if live is None:
            return False
        live.gone = True
        if key in self._batch.waiting:
            self._batch.waiting.remove(key)
        else:
            self._batch.running.remove(live)
            self._batch.drop_blocks(live)
        return True

    def begin(self, *, now: Instant) -> Nanos | None:
        """Start a step and say how long it takes; None when nothing can be computed now."""
        assert self._in_flight is None, "a step is in flight"
        plan = self._batch.plan(now=now)
        if not plan.parts:
            return None
        self._in_flight = plan
        self._started_at = now
        self._duration = self.config.cost.step(
            prefill_ns=plan.prefill_ns, decodes=plan.decodes, decode_context=plan.decode_context
        )
        return self._duration

    def finish(self) -> StepOutcome:
        """End the step in flight: tokens are emitted, what is complete leaves."""
        plan = self._in_flight
        assert plan is not None, "no step is in flight"
        self._in_flight = None
        emitted: list[str] = []
        first: list[str] = []
        finished: list[Finished] = []
        for live in plan.parts:
            live.scheduled = 0
            if live.gone or live.computed < live.known:
                continue
            emitted.append(live.generation.id)
            if live.emitted == 0:
                first.append(live.generation.id)
                self._batch.tally.prompt_tokens += live.generation.prompt_tokens
            live.emitted += 1
            live.known += 1
            if live.emitted == live.generation.output_tokens:
                finished.append(self._leave(live))
        if finished:
            self._batch.running = [live for live in self._batch.running if not live.gone]
        self._count(plan, emitted=len(emitted))
        return StepOutcome(
            started_at=self._started_at,
            duration=self._duration,
            emitted=tuple(emitted),
            first=tuple(first),
            finished=tuple(finished),
            preempted=tuple(live.generation.id for live in plan.preempted),
            prefilled_tokens=plan.prefilled_tokens,
        )

    def in_flight(self) -> dict[str, int]:
        """How many tokens the step in flight computes of which generation, in running order."""
        plan = self._in_flight
        if plan is None:
            return {}
        return {live.generation.id: live.scheduled for live in plan.parts if not live.gone}

    def live(self) -> tuple[str, ...]:
        """Everything that waits or runs, in order of arrival."""
        return tuple(self._by_id)

    def running(self) -> tuple[str, ...]:
        """Who holds blocks, in the order in which they were let in."""
        return tuple(live.generation.id for live in self._batch.running)

    def step(self, *, now: Instant) -> StepOutcome | None:
        """`begin` and `finish` in one; None when nothing can be computed now."""
        return None if self.begin(now=now) is None else self.finish()

    def run_until(self, *, now: Instant, until: Instant) -> Stretch:
        """Steps back to back from `now`, as long as they begin before `until`.

        Returns after the first step with a first token or an end in it, or when no step is left to
        begin; `at` is then the end of the last step (so it may lie after `until`), or, with nothing
        to do, the instant at which that became so.
        """
        steps = 0
        while now < until:
            fused, now = self._decode(now=now, until=until)
            steps += fused
            if now >= until:
                break
            outcome = self.step(now=now)
            if outcome is None:
                ready = self.next_ready(now=now)
                if ready is None or ready >= until:
                    break
                now = ready
                continue
            steps += 1
            now = after(now, outcome.duration)
            if outcome.first or outcome.finished:
                return Stretch(steps=steps, at=now, outcome=outcome)
        return Stretch(steps=steps, at=now, outcome=None)

    def next_ready(self, *, now: Instant) -> Instant | None:
        """When the next load from the tier ends; None when nothing is being loaded."""
        pending = [live.ready_at for live in self._batch.running if live.ready_at > now]
        return min(pending, default=None)

    def quiet_until(self, *, now: Instant) -> Instant:
        """No first token and no end comes before this, unless something is added or aborted.

        A lower bound, so that a simulation need not look at the engine before; `now` at worst.
        """
        running = self._batch.running
        if not running or len(self._batch.waiting) or not self._is_steady(now=now):
            return now
        steps = min(live.generation.output_tokens - live.emitted for live in running)
        blocks = len(running) * (steps // self.config.block_size + 1)
        if blocks > self._batch.cache.free:
            return now  # somebody may be preempted, which makes the steps after it shorter
        context = sum(live.computed for live in running)
        cost = self.config.cost
        step = cost.step(prefill_ns=0.0, decodes=len(running), decode_context=context)
        return after(now, Nanos(steps * step))

    def cached_tokens(self, key: str) -> int | None:
        """What a live generation's first admission found in the cache; None before it."""
        return self._by_id[key].cached_tokens

    def use_cost(self, cost: CostModel) -> None:
        """From the next step on, steps take as long as `cost` says."""
        self.config = replace(self.config, cost=cost)
        self._batch.use(self.config)

    def pin(self, key: str, hashes: Sequence[int], *, tokens: int, value: float = 0.0) -> int:
        """Keep the cached part of a prefix until `unpin`, or until room is needed.

        Returns how many tokens are kept; 0 when none of it is here.
        """
        size = self.config.block_size
        blocks = min(tokens // size, len(hashes))
        return self._batch.hold(key, hashes, blocks=blocks, value=value) * size

    def unpin(self, key: str) -> bool:
        """Keep it no longer; False when it had given way."""
        return self._batch.let_go(key)

    def reset_cache(self) -> bool:
        """Forget all cached content; refused (False) while anything holds blocks, as in vLLM."""
        return self._batch.cache.reset()

    def gauges(self, *, now: Instant) -> Gauges:
        """The present state in numbers."""
        batch = self._batch
        tally = batch.tally
        loading = sum(live.ready_at > now for live in batch.running)
        return Gauges(
            running=len(batch.running) - loading,
            waiting=len(batch.waiting) + loading,
            waiting_tokens=batch.waiting.tokens,
            blocks_total=batch.cache.total,
            blocks_used=batch.cache.used,
            blocks_cached=batch.cache.cached,
            prefix_queries=tally.prefix_queries,
            prefix_hits=tally.prefix_hits,
            prompt_tokens=tally.prompt_tokens,
            generation_tokens=tally.generation_tokens,
            prefilled_tokens=tally.prefilled_tokens,
            tier_tokens=tally.tier_tokens,
            preemptions=tally.preemptions,
            evictions=batch.cache.evictions,
            steps=tally.steps,
            busy_ns=tally.busy_ns,
        )

    def check(self) -> None:
        """Assert every invariant; slow."""
        batch = self._batch
        batch.cache.check()
        assert len(batch.running) <= self.config.max_num_seqs
        assert len(batch.running) + len(batch.waiting) == len(self._by_id)
        holders: Counter[int] = Counter()
        for live in batch.running:
            assert self._by_id[live.generation.id] is live
            self._check_live(live)
            holders.update(live.blocks)
        for _, blocks in batch.holds().values():
            holders.update(blocks)
        for block, references in enumerate(batch.cache.references()):
            assert holders[block] == references
        for live in batch.waiting.members():
            assert self._by_id[live.generation.id] is live
            assert not live.blocks
            assert live.computed == 0
        tokens = sum(live.generation.prompt_tokens for live in batch.waiting.members())
        assert batch.waiting.tokens == tokens

    def _check_live(self, live: Live) -> None:
        assert not live.gone
        assert len(set(live.blocks)) == len(live.blocks)
        assert live.computed <= live.known
        assert live.computed <= len(live.blocks) * self.config.block_size
        assert live.known == live.generation.prompt_tokens + live.emitted
        assert live.emitted < live.generation.output_tokens
        assert live.registered <= len(live.blocks)

    def _queue_is_full(self, generation: Generation) -> bool:
        waiting = self._batch.waiting
        config = self.config
        if config.max_queued is not None and len(waiting) >= config.max_queued:
            return True
        if config.max_queued_tokens is None:
            return False
        return waiting.tokens + generation.prompt_tokens > config.max_queued_tokens

    def _leave(self, live: Live) -> Finished:
        live.gone = True
        key = live.generation.id
        del self._by_id[key]
        self._batch.drop_blocks(live)
        assert live.cached_tokens is not None
        return Finished(
            id=key,
            prompt_tokens=live.generation.prompt_tokens,
            output_tokens=live.emitted,
            cached_tokens=live.cached_tokens,
            preemptions=live.preemptions,
        )

    def _count(self, plan: Plan, *, emitted: int) -> None:
        tally = self._batch.tally
        tally.generation_tokens += emitted
        tally.prefilled_tokens += plan.prefilled_tokens
        tally.steps += 1
        tally.busy_ns += self._duration

    # Fused decoding. While every running generation decodes and nobody can be let in, a step does
    # nothing but emit one token each; only a generation that crosses a block border touches the
    # cache. Which ones do so repeats every `block_size` steps, so each step costs only its borders.

    def _decode(self, *, now: Instant, until: Instant) -> tuple[int, Instant]:
        """Fused decode steps from `now`, short of any in which one ends: count and end."""
        running = self._batch.running
        if not running or not self._is_steady(now=now):
            return 0, now
        limit = min(live.generation.output_tokens - live.emitted for live in running) - 1
        if limit <= 0:
            return 0, now
        cache = self._batch.cache
        size = cache.block_size
        borders = self._borders()
        decodes = len(running)
        context = sum(live.computed for live in running)
        steps = 0
        started_at = now
        # As `CostModel.step` has it, term for term.
        cost = self.config.cost
        base_ns, per_context_ns = cost.base_ns, cost.per_decode_context_ns
        decode_ns = decodes * cost.per_decode_ns
        while steps < limit and now < until:
            crossing = borders.get(steps % size)
            met = False
            if crossing is not None:
                if sum(takes for _, takes in crossing) > cache.free:
                    break
                met = self._cross(crossing)
            span = round(base_ns + (decode_ns + context * per_context_ns))
            now = Instant(now + (span if span > 0 else 1))
            context += decodes
            steps += 1
            if met:
                break
        self._advance(steps, span=now - started_at)
        return steps, now

    def _is_steady(self, *, now: Instant) -> bool:
        batch = self._batch
        running = batch.running
        if len(running) > self.config.max_num_batched_tokens:
            return False
        if len(batch.waiting) and not (
            len(running) >= self.config.max_num_seqs
            or len(running) >= self.config.max_num_batched_tokens
            or batch.head_is_blocked()
        ):
            return False
        return all(self._just_decodes(live, now=now) for live in running)

    def _just_decodes(self, live: Live, *, now: Instant) -> bool:
        if not live.emitted or live.known - live.computed != 1 or live.ready_at > now:
            return False
        # Blocks that came from the tier are registered by the first step that uses them.
        full = live.computed // self.config.block_size
        return live.registered == full or not self.config.prefix_caching

    def _borders(self) -> dict[int, list[tuple[Live, bool]]]:
        """Per step to come, modulo the block size: who takes a block, or fills one up.

        A pair is a generation and whether it takes; with blocks of one token it does both.
        """
        size = self.config.block_size
        borders: dict[int, list[tuple[Live, bool]]] = {}
        for live in self._batch.running:
            borders.setdefault(-live.computed % size, []).append((live, True))
            if size > 1:
                borders.setdefault((-live.computed - 1) % size, []).append((live, False))
        return borders

    def _cross(self, crossing: list[tuple[Live, bool]]) -> bool:
        """Take and register blocks for one step; whether the queue's head may now find room."""
        batch = self._batch
        cache = batch.cache
        met = False
        for live, takes in crossing:
            if takes:
                live.blocks.extend(cache.take(1))
            fills = not takes or self.config.block_size == 1
            if fills and self.config.prefix_caching:
                content = live.hashes[live.registered]
                cache.register(live.blocks[live.registered], content)
                live.registered += 1
                met = met or content == batch.blocked_on()
        return met

    def _advance(self, steps: int, *, span: int) -> None:
        for live in self._batch.running:
            live.emitted += steps
            live.known += steps
            live.computed += steps
        tally = self._batch.tally
        tally.generation_tokens += steps * len(self._batch.running)
        tally.steps += steps
        tally.busy_ns += span
