"""A paged KV cache with prefix reuse, as vLLM keeps it: blocks, references and one free queue.

A block is free when nobody refers to it; a free block keeps its content, and can be hit, until it
is taken for something else. The free queue is the eviction order: blocks that hold nothing reusable
go to its front, the others to its end, a prompt's last block before its first; blocks are taken
from the front. So what was released longest ago is lost first, and of one prompt the tail before
the head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from agentsched_bench.engine.tier import HostTier


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """The longest cached prefix of a chain: resident blocks, then blocks in the host tier."""

    blocks: tuple[int, ...]
    #: How many more blocks the host tier holds after those.
    tier_blocks: int
    #: How many of `blocks` are free now; taking them uses up that much room.
    free_blocks: int
    #: The first hash that is not resident; absent when all are.
    missing: int | None


class PagedCache:
    """`total` usable blocks of `block_size` tokens.

    vLLM keeps one block back as a placeholder: an engine started with N blocks has N - 1 usable.
    """

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

    def check(self) -> None:
        """Assert every invariant; slow."""
        assert len(self._free) + self.used == self.total
        assert len(self._references) == self.total
        for block, count in enumerate(self._references):
            assert count >= 0
            assert (count == 0) == (block in self._free)
        registered = 0
        for content, blocks in self._by_hash.items():
            assert blocks
            assert len(set(blocks)) == len(blocks)
            registered += len(blocks)
            for block in blocks:
                assert self._hash_of[block] == content
        assert registered == sum(content is not None for content in self._hash_of)
        if self.tier is not None:
            self.tier.check()

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
