"""The fast paged cache does exactly what the one written block by block does."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched_bench.engine.cache import Hit, PagedCache
from agentsched_bench.engine.tier import HostTier, TierConfig

BLOCKS = 24
CHAINS = tuple(
    tuple((trunk, index) for index in range(4)) + tuple((trunk, leaf, index) for index in range(8))
    for trunk in range(2)
    for leaf in range(3)
)


def hashes_of(number: int) -> list[int]:
    """One of six chains; three each begin alike."""
    return [hash(piece) for piece in CHAINS[number]]


class PlainCache:
    """The cache written block by block, as vLLM does it: slow, and the oracle of the fast one."""

    __slots__ = (
        "_by_hash",
        "_free",
        "_hash_of",
        "_references",
        "block_size",
        "evictions",
        "frees",
        "tier",
        "total",
    )

    def __init__(self, *, blocks: int, block_size: int, tier: HostTier | None = None) -> None:
        assert blocks > 0
        assert block_size > 0
        self.total = blocks
        self.block_size = block_size
        self.tier = tier
        #: Free blocks in eviction order. All and only blocks with no reference.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._references = [0] * blocks
        #: The hash of the block's content; None while it has none that can be hit.
        self._hash_of: list[int | None] = [None] * blocks
        #: Blocks by content, oldest first: the same content may be computed twice at a time.
        self._by_hash: dict[int, list[int]] = {}
        #: How many blocks with content were reused for something else.
        self.evictions = 0
        #: Grows whenever blocks become free: a refused allocation may be tried again.
        self.frees = 0

    @property
    def free(self) -> int:
        """Blocks that nobody refers to, with reusable content or without."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that somebody refers to."""
        return self.total - len(self._free)

    @property
    def cached(self) -> int:
        """Blocks whose content can be hit, used or free."""
        return sum(len(blocks) for blocks in self._by_hash.values())

    def resident(self, content: int) -> bool:
        """Whether a block with this hash is here, used or free (the host tier does not count)."""
        return content in self._by_hash

    def lookup(self, hashes: Sequence[int], *, limit: int) -> Hit:
        """The longest cached prefix of the first `limit` hashes. Changes nothing."""
        by_hash = self._by_hash
        references = self._references
        found: list[int] = []
        free = 0
        for index in range(limit):
            blocks = by_hash.get(hashes[index])
            if blocks is None:
                break
            block = blocks[0]
            if references[block] == 0:
                free += 1
            found.append(block)
        reach = len(found)
        if self.tier is not None:
            while reach < limit and self.tier.holds(hashes[reach]):
                reach += 1
        return Hit(
            blocks=tuple(found),
            tier_blocks=reach - len(found),
            free_blocks=free,
            missing=hashes[len(found)] if len(found) < limit else None,
        )

    def touch(self, blocks: Sequence[int]) -> None:
        """Refer to each of `blocks` once more; those that were free leave the free queue."""
        references = self._references
        free = self._free
        for block in blocks:
            if references[block] == 0:
                del free[block]
            references[block] += 1

    def take(self, count: int) -> list[int]:
        """Take `count` blocks from the front of the free queue; what they held is evicted."""
        assert count <= len(self._free)
        taken: list[int] = []
        for _ in range(count):
            block, _none = self._free.popitem(last=False)
            self._forget(block, keep_in_tier=True)
            self._references[block] = 1
            taken.append(block)
        return taken

    def register(self, block: int, content: int) -> None:
        """Make a referenced block findable under the hash of its now known content."""
        assert self._references[block] > 0
        assert self._hash_of[block] is None
        self._hash_of[block] = content
        holders = self._by_hash.get(content)
        if holders is None:
            self._by_hash[content] = [block]
        else:
            holders.append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each of a request's blocks, given in the order of its tokens."""
        references = self._references
        hash_of = self._hash_of
        last: list[int] = []
        first: list[int] = []
        for block in reversed(blocks):
            references[block] -= 1
            assert references[block] >= 0
            if references[block] == 0:
                (first if hash_of[block] is None else last).append(block)
        free = self._free
        for block in last:
            free[block] = None
        for block in reversed(first):
            free[block] = None
            free.move_to_end(block, last=False)
        if blocks:
            self.frees += 1

    def reset(self) -> bool:
        """Forget all content, here and in the tier; refused (False) while any block is in use."""
        if self.used:
            return False
        self._by_hash.clear()
        self._hash_of = [None] * self.total
        if self.tier is not None:
            self.tier.clear()
        return True

    def eviction_order(self) -> tuple[int | None, ...]:
        """The hashes of the free blocks, next victim first; None for a block without content."""
        return tuple(self._hash_of[block] for block in self._free)

    def references(self) -> tuple[int, ...]:
        """How often each block is referred to, by block number."""
        return tuple(self._references)

    def _forget(self, block: int, *, keep_in_tier: bool) -> None:
        content = self._hash_of[block]
        if content is None:
            return
        self._hash_of[block] = None
        self.evictions += 1
        holders = self._by_hash[content]
        if len(holders) == 1:
            del self._by_hash[content]
            if keep_in_tier and self.tier is not None:
                self.tier.put(content)
        else:
            holders.remove(block)


class Requests:
    """Requests over one cache: they hold whole prefixes and give all back at once."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.held: list[tuple[list[int], list[int], int]] = []

    def begin(self, chain: list[int], *, limit: int, whole: int, partial: bool) -> Any:
        """Take what is cached and compute up to `whole` blocks; None where there is no room."""
        hit = self.cache.lookup(chain, limit=limit)
        count = max(0, whole - len(hit.blocks)) + partial
        if count + hit.free_blocks > self.cache.free:
            return None
        self.cache.touch(hit.blocks)
        blocks = [*hit.blocks, *self.cache.take(count)]
        full = max(whole, len(hit.blocks))
        for index in range(len(hit.blocks), full):
            self.cache.register(blocks[index], chain[index])
        self.held.append((blocks, chain, full))
        return blocks, hit.tier_blocks, hit.free_blocks, hit.missing

    def end(self, number: int) -> None:
        blocks, _, _ = self.held.pop(number)
        self.cache.release(blocks)


def state(requests: Requests) -> Any:
    cache = requests.cache
    return (
        cache.free,
        cache.used,
        cache.cached,
        cache.evictions,
        cache.frees,
        cache.eviction_order(),
        cache.references(),
        None if cache.tier is None else len(cache.tier),
    )


operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("begin"),
            st.integers(0, 5),
            st.integers(0, 12),
            st.integers(0, 12),
            st.booleans(),
        ),
        st.tuples(st.just("end"), st.integers(0, 50)),
        st.tuples(st.just("reset")),
    ),
    max_size=60,
)


def play(requests: Requests, operation: tuple[Any, ...]) -> Any:
    match operation:
        case ("begin", chain, limit, whole, partial):
            return requests.begin(hashes_of(chain), limit=limit, whole=whole, partial=partial)
        case ("end", number):
            if requests.held:
                requests.end(number % len(requests.held))
        case ("reset",):
            return requests.cache.reset()
    return None


@settings(max_examples=300, deadline=None)
@given(operations=operations, has_tier=st.booleans())
def test_both_caches_do_the_same(operations: list[tuple[Any, ...]], has_tier: bool) -> None:
    def tier() -> HostTier | None:
        return HostTier(TierConfig(blocks=6, tokens_per_second=1e6)) if has_tier else None

    fast = Requests(PagedCache(blocks=BLOCKS, block_size=4, tier=tier()))
    plain = Requests(PlainCache(blocks=BLOCKS, block_size=4, tier=tier()))
    for operation in operations:
        assert play(fast, operation) == play(plain, operation)
        assert state(fast) == state(plain)
        fast.cache.check()


@pytest.mark.parametrize("seed", [1, 2])
def test_stale_entries_do_not_pile_up(seed: int) -> None:
    """A conversation that comes back ten thousand times leaves no trail behind it."""
    rng = random.Random(seed)
    fast = Requests(PagedCache(blocks=BLOCKS, block_size=4))
    plain = Requests(PlainCache(blocks=BLOCKS, block_size=4))
    for _ in range(1_500):
        operation = ("begin", rng.randrange(6), 12, rng.randrange(12), False)
        assert play(fast, operation) == play(plain, operation)
        for requests in (fast, plain):
            while requests.held:
                requests.end(0)
    assert state(fast) == state(plain)
    fast.cache.check()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_conversations_that_come_back_find_what_they_left(seed: int) -> None:
    """Growing conversations take turns, some at once: their trails lead where the plain cache does.

    They begin alike; a few are at the same content at a time, so that it is in two blocks.
    """
    rng = random.Random(seed)
    fast = Requests(PagedCache(blocks=120, block_size=4))
    plain = Requests(PlainCache(blocks=120, block_size=4))
    chains = [[*range(6), *(100 * talk + index for index in range(40))] for talk in range(1, 7)]
    grown = [6] * len(chains)
    followed = twins = 0
    for _ in range(800):
        talk = rng.randrange(len(chains))
        whole = min(len(chains[talk]), grown[talk] + rng.randrange(4))
        grown[talk] = 6 if whole == len(chains[talk]) else whole
        limit = max(0, whole - rng.randrange(3))
        for requests in (fast, plain):
            while len(requests.held) > seed:
                requests.end(0)
        before = len(fast.cache._trails)
        began = [
            r.begin(chains[talk], limit=limit, whole=whole, partial=True) for r in (fast, plain)
        ]
        assert began[0] == began[1]
        followed += began[0] is not None and len(fast.cache._trails) < before
        twins += bool(fast.cache._twins)
        assert state(fast) == state(plain)
        fast.cache.check()
    assert followed > 50
    assert twins > 50


def test_trails_are_bounded() -> None:
    """Many branches of one long beginning leave trails of no more than twice the blocks."""
    fast = Requests(PagedCache(blocks=60, block_size=4))
    trunk = list(range(20))
    for leaf in range(200):
        fast.begin([*trunk, 1000 + leaf], limit=21, whole=21, partial=False)
        fast.end(0)
        fast.cache.check()
    assert sum(map(len, fast.cache._trails.values())) > 60


def test_a_block_nobody_holds_cannot_be_released() -> None:
    cache = PagedCache(blocks=4, block_size=4)
    blocks = cache.take(2)
    cache.release(blocks)
    with pytest.raises(AssertionError):
        cache.release(blocks)
