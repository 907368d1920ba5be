"""Which tokens the next engine step computes: vLLM's scheduler, over our cache.

Running generations come first, in order; each gets the tokens it lacks, as far as the step's token
budget goes (so long prompts are prefilled in chunks). One that finds no block makes the engine
preempt: the last of the batch, or under priority the one of the lowest rank; a preempted generation
loses its blocks and waits again, first in line. Only when nobody was preempted are waiting ones
let in, strictly in order, each only if all of its known tokens fit beside what is in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentsched.model.time import Instant
from agentsched_bench.engine.cache import Hit, PagedCache
from agentsched_bench.engine.requests import EngineConfig, Live, Scheduling
from agentsched_bench.engine.waiting import WaitingQueue

_NO_HIT = Hit(blocks=(), tier_blocks=0, free_blocks=0, missing=None)


@dataclass(slots=True, kw_only=True)
class Plan:
    """One step being put together. `parts` is in running order."""

    parts: list[Live] = field(default_factory=list)
    preempted: list[Live] = field(default_factory=list)
    prefilled_tokens: int = 0
    prefill_ns: float = 0.0
    decodes: int = 0
    decode_context: int = 0
    budget: int = 0


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counters that only grow."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefilled_tokens: int = 0
    tier_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    busy_ns: int = 0


class Batcher:
    """The running batch and the queue in front of it."""

    __slots__ = ("_blocked", "_config", "_holds", "cache", "running", "tally", "waiting")

    def __init__(self, config: EngineConfig, cache: PagedCache) -> None:
        self._config = config
        self.cache = cache
        self.tally = Tally()
        self.waiting = WaitingQueue(config.scheduling)
        #: Generations that hold blocks, in the order in which they were let in.
        self.running: list[Live] = []
        #: The head of the queue for which there was no room, the first hash that it did not find
        #: and the cache's count of releases then. Until one of the three changes it stays out:
        #: what others take only shrinks the room, and what it would find only shrinks too.
        self._blocked: tuple[Live, int | None, int] | None = None
        #: Blocks that are kept though no generation needs them now, by the key of their pin, with
        #: what they are worth. They give way when room is needed: cheapest first, then oldest.
        self._holds: dict[str, tuple[float, list[int]]] = {}

    def use(self, config: EngineConfig) -> None:
        """Go on with other costs; sizes stay."""
        self._config = config

    def hold(self, key: str, hashes: Sequence[int], *, blocks: int, value: float) -> int:
        """Keep what is cached of the first `blocks` blocks; how many that are."""
        self.let_go(key)
        hit = self.cache.lookup(hashes, limit=blocks)
        if hit.blocks:
            self.cache.touch(hit.blocks)
            self._holds[key] = (value, list(hit.blocks))
        return len(hit.blocks)

    def let_go(self, key: str) -> bool:
        """End a hold; False when there is none (any more)."""
        found = self._holds.pop(key, None)
        if found is None:
            return False
        self.cache.release(found[1])
        return True

    def holds(self) -> Mapping[str, tuple[float, list[int]]]:
        """What is kept, by pin. Read only."""
        return self._holds

    def plan(self, *, now: Instant) -> Plan:
        """Choose and allocate the next step's tokens; an empty plan when nothing can run now."""
        while True:
            plan = Plan(budget=self._config.max_num_batched_tokens)
            self._continue_running(plan, now=now)
            if plan.preempted and not plan.parts:
                # Whoever was preempted last was alone: the room is there now.
                continue
            if not plan.preempted:
                self._let_in(plan, now=now)
            self._price(plan)
            return plan

    def head_is_blocked(self) -> bool:
        """Whether the head of the queue is known to find no room; False when nobody waits."""
        if self._blocked is None:
            return False
        head, missing, frees = self._blocked
        return (
            self.waiting.head() is head
            and self.cache.frees == frees
            and (missing is None or not self.cache.resident(missing))
        )

    def blocked_on(self) -> int | None:
        """The hash whose appearance in the cache ends the head's block."""
        return None if self._blocked is None else self._blocked[1]

    def drop_blocks(self, live: Live) -> None:
        """Give all of a generation's blocks back."""
        self.cache.release(live.blocks)
        live.blocks = []
        live.registered = 0
        live.computed = 0
        live.scheduled = 0
        live.ready_at = Instant(0)

    def _continue_running(self, plan: Plan, *, now: Instant) -> None:
        index = 0
        while index < len(self.running) and plan.budget > 0:
            live = self.running[index]
            if live.ready_at > now:
                index += 1
                continue
            tokens = min(live.known - live.computed, plan.budget)
            assert tokens > 0
            while not self._grow(live, tokens):
                if self._give_way():
                    continue
                victim_index = self._victim()
                victim = self.running.pop(victim_index)
                if victim_index < index:
                    index -= 1
                self._preempt(victim, plan)
                if victim is live:
                    return
            self._schedule(live, tokens, plan)
            index += 1

    def _give_way(self) -> bool:
        """End the cheapest hold; False when nothing is held."""
        if not self._holds:
            return False
        # Equal values: `min` takes the first, which is the oldest.
        return self.let_go(min(self._holds, key=lambda key: self._holds[key][0]))

    def _victim(self) -> int:
        if self._config.scheduling is Scheduling.FCFS:
            return len(self.running) - 1
        return max(range(len(self.running)), key=lambda index: self.running[index].rank)

    def _preempt(self, victim: Live, plan: Plan) -> None:
        if victim.scheduled:
            plan.parts.remove(victim)
            plan.budget += victim.scheduled
        self.drop_blocks(victim)
        victim.preemptions += 1
        self.tally.preemptions += 1
        plan.preempted.append(victim)
        self.waiting.put_back(victim)

    def _let_in(self, plan: Plan, *, now: Instant) -> None:
        while plan.budget > 0 and len(self.running) < self._config.max_num_seqs:
            live = self.waiting.head()
            if live is None or self.head_is_blocked():
                return
            hit = self._lookup(live)
            size = self.cache.block_size
            needed = -(-live.known // size) - len(hit.blocks) + hit.free_blocks
            if needed > self.cache.free:
                if self._give_way():
                    continue
                self._blocked = (live, hit.missing, self.cache.frees)
                return
            self.waiting.remove(live.generation.id)
            self._admit(live, hit, plan, now=now)

    def _lookup(self, live: Live) -> Hit:
        if not self._config.prefix_caching:
            return _NO_HIT
        # The last token is computed even when all are cached: its logits are wanted.
        limit = (live.known - 1) // self.cache.block_size
        return self.cache.lookup(live.hashes, limit=limit)

    def _admit(self, live: Live, hit: Hit, plan: Plan, *, now: Instant) -> None:
        self.cache.touch(hit.blocks)
        live.blocks = list(hit.blocks)
        live.registered = len(hit.blocks)
        live.computed = (len(hit.blocks) + hit.tier_blocks) * self.cache.block_size
        self.running.append(live)
        if live.cached_tokens is None:
            live.cached_tokens = live.computed
            if self._config.prefix_caching:
                self.tally.prefix_queries += live.known
                self.tally.prefix_hits += live.computed
        if hit.tier_blocks:
            self._load(live, hit, now=now)
            return
        tokens = min(live.known - live.computed, plan.budget)
        grown = self._grow(live, tokens)
        assert grown
        self._schedule(live, tokens, plan)

    def _load(self, live: Live, hit: Hit, *, now: Instant) -> None:
        tier = self.cache.tier
        assert tier is not None
        start = len(hit.blocks)
        contents = tuple(live.hashes[start : start + hit.tier_blocks])
        # First the load, then its room: what is evicted for it may push out what is being read.
        live.ready_at = tier.load(contents, block_size=self.cache.block_size, now=now)
        live.blocks.extend(self.cache.take(hit.tier_blocks))
        self.tally.tier_tokens += hit.tier_blocks * self.cache.block_size

    def _grow(self, live: Live, tokens: int) -> bool:
        """Allocate and register the blocks of its next `tokens` tokens; False when none is free."""
        cache = self.cache
        size = cache.block_size
        reach = live.computed + tokens
        needed = -(-reach // size) - len(live.blocks)
        if needed > 0:
            if needed > cache.free:
                return False
            live.blocks.extend(cache.take(needed))
        if self._config.prefix_caching:
            full = min(reach, live.known) // size
            start = live.registered
            if full > start:
                cache.register_all(live.blocks[start:full], live.hashes[start:full])
                live.registered = full
        return True

    def _schedule(self, live: Live, tokens: int, plan: Plan) -> None:
        live.scheduled = tokens
        plan.budget -= tokens
        plan.parts.append(live)

    def _price(self, plan: Plan) -> None:
        """Add up the step and count its tokens as computed."""
        cost = self._config.cost
        for live in plan.parts:
            if live.scheduled == 1 and live.emitted:
                plan.decodes += 1
                plan.decode_context += live.computed
            else:
                plan.prefilled_tokens += live.scheduled
                plan.prefill_ns += cost.prefill_ns(start=live.computed, tokens=live.scheduled)
            live.computed += live.scheduled
