"""A paged KV cache with prefix reuse, as vLLM keeps it: blocks, references and one free queue.

A block is free when nobody refers to it; a free block keeps its content, and can be hit, until it
is taken for something else. The free queue is the eviction order: blocks that hold nothing reusable
go to its front, the others to its end, a prompt's last block before its first; blocks are taken
from the front. So what was released longest ago is lost first, and of one prompt the tail before
the head.

Long prompts have thousands of blocks and each call touches and releases all of them, so nothing
here walks over blocks one by one that a set or a list can take as a whole. The free queue is a row
of *strips*, each the blocks of one release with its number; an entry counts only while its block is
free and was not released again since; stale ones go when they are met or are too many.

A conversation that comes back finds what it left, so a release is remembered as a *trail* under the
content of its last full block. As no block is lost before those behind it, the whole trail is there
as long as that last content is, and a lookup that ends there finds just that. (Where contents are
in two blocks at once there are no trails: which of the two a request held would matter.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agentsched_bench.engine.tier import HostTier

#: Stale entries of the free queue are swept out when entries are more than this many times the
#: blocks, plus the slack: a sweep looks at all of them, so seldom is cheap, and often is small.
_STALE_TIMES: Final = 4
_STALE_SLACK: Final = 4096
#: Trails hold at most so many times the blocks; the one laid first is left first.
_TRAIL_TIMES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """The longest cached prefix of a chain: resident blocks, then blocks in the host tier."""

    blocks: Sequence[int]
    #: How many more blocks the host tier holds after those.
    tier_blocks: int
    #: How many of `blocks` are free now; taking them uses up that much room.
    free_blocks: int
    #: The first hash that is not resident; absent when all are.
    missing: int | None


@dataclass(slots=True)
class _Strip:
    """Blocks of one release, in eviction order from `at` on."""

    number: int
    blocks: Sequence[int]
    at: int = 0


class PagedCache:
    """`total` usable blocks of `block_size` tokens.

    vLLM keeps one block back as a placeholder: an engine started with N blocks has N - 1 usable.

    Callers hold whole prefixes: whoever refers to a block refers to a copy of each block before it,
    and gives all of them back together. Therefore a block is never lost before those behind it.
    """

    __slots__ = (
        "_by_hash",
        "_extra",
        "_found",
        "_hash_of",
        "_number",
        "_queue",
        "_queued",
        "_released",
        "_trail_blocks",
        "_trails",
        "_twins",
        "_used",
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
        #: Blocks that somebody refers to.
        self._used: set[int] = set()
        #: Further references of blocks that several refer to.
        self._extra: dict[int, int] = {}
        #: The free queue, and how many entries it has, stale ones among them.
        self._queue: deque[_Strip] = deque([_Strip(0, range(blocks))])
        self._queued = blocks
        #: The latest release of each block; of those never released it is release 0.
        self._released = [0] * blocks
        self._number = 0
        #: The hash of the block's content; None while it has none that can be hit.
        self._hash_of: list[int | None] = [None] * blocks
        #: The block of each content, the oldest of several.
        self._by_hash: dict[int, int] = {}
        #: Contents that were computed twice at a time: all their blocks, oldest first.
        self._twins: dict[int, list[int]] = {}
        #: The full blocks of a release, by the content of the last of them, while that is there
        #: and no content is in two blocks.
        self._trails: dict[int, Sequence[int]] = {}
        self._trail_blocks = 0
        #: What the latest lookup found and which of it was in use, until the cache changes.
        self._found: tuple[Sequence[int], set[int]] | None = None
        #: How many blocks with content were reused for something else.
        self.evictions = 0
        #: Grows whenever blocks become free: a refused allocation may be tried again.
        self.frees = 0

    @property
    def free(self) -> int:
        """Blocks that nobody refers to, with reusable content or without."""
        return self.total - len(self._used)

    @property
    def used(self) -> int:
        """Blocks that somebody refers to."""
        return len(self._used)

    @property
    def cached(self) -> int:
        """Blocks whose content can be hit, used or free."""
        return len(self._by_hash) + sum(len(blocks) - 1 for blocks in self._twins.values())

    def resident(self, content: int) -> bool:
        """Whether a block with this hash is here, used or free (the host tier does not count)."""
        return content in self._by_hash

    def lookup(self, hashes: Sequence[int], *, limit: int) -> Hit:
        """The longest cached prefix of the first `limit` hashes. Changes nothing."""
        length = self._resident_length(hashes, limit)
        found = self._blocks_of(hashes, length)
        in_use = self._used.intersection(found)
        self._found = (found, in_use)
        reach = length
        if self.tier is not None:
            while reach < limit and self.tier.holds(hashes[reach]):
                reach += 1
        return Hit(
            blocks=found,
            tier_blocks=reach - length,
            free_blocks=length - len(in_use),
            missing=hashes[length] if length < limit else None,
        )

    def touch(self, blocks: Sequence[int]) -> None:
        """Refer to each of `blocks` once more; those that were free leave the free queue."""
        used = self._used
        extra = self._extra
        found, self._found = self._found, None
        is_found = found is not None and found[0] is blocks
        for block in found[1] if found and is_found else used.intersection(blocks):
            extra[block] = extra.get(block, 0) + 1
        content = self._hash_of[blocks[-1]] if blocks else None
        if content is not None and self._trails.get(content) is blocks:
            # Whoever comes back leaves a longer one.
            self._leave_trail(content)
        used.update(blocks)

    def take(self, count: int) -> list[int]:
        """Take `count` blocks from the front of the free queue; what they held is evicted."""
        assert count <= self.free
        taken: list[int] = []
        queue = self._queue
        while len(taken) < count:
            strip = queue[0]
            end = strip.at + count - len(taken)
            met = strip.blocks[strip.at : end]
            strip.at += len(met)
            self._queued -= len(met)
            if strip.at == len(strip.blocks):
                queue.popleft()
            taken += self._valid(met, strip.number)
        self._used.update(taken)
        self._found = None
        self._forget(taken)
        return taken

    def register(self, block: int, content: int) -> None:
        """Make a referenced block findable under the hash of its now known content."""
        self.register_all((block,), (content,))

    def register_all(self, blocks: Sequence[int], contents: Sequence[int]) -> None:
        """`register` each of `blocks` under its content."""
        hash_of = self._hash_of
        by_hash = self._by_hash
        for block, content in zip(blocks, contents, strict=True):
            assert hash_of[block] is None
            hash_of[block] = content
            oldest = by_hash.setdefault(content, block)
            if oldest != block:
                self._twins.setdefault(content, [oldest]).append(block)
                # Of two copies the one in a trail may go and the other stay.
                self._leave_trails()

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each of a request's blocks, given in the order of its tokens."""
        if not blocks:
            return
        self.frees += 1
        self._found = None
        self._remember(blocks)
        gone = self._dropped(blocks[::-1])
        if not gone:
            return
        used = self._used
        before = len(used)
        used.difference_update(gone)
        assert len(used) == before - len(gone), "a block was released that nobody refers to"
        self._queue_up(gone)

    def reset(self) -> bool:
        """Forget all content, here and in the tier; refused (False) while any block is in use."""
        if self.used:
            return False
        self._by_hash.clear()
        self._twins.clear()
        self._leave_trails()
        self._hash_of = [None] * self.total
        if self.tier is not None:
            self.tier.clear()
        return True

    def eviction_order(self) -> tuple[int | None, ...]:
        """The hashes of the free blocks, next victim first; None for a block without content."""
        return tuple(self._hash_of[block] for block in self._free_blocks())

    def check(self) -> None:
        """Assert every invariant; slow."""
        free = list(self._free_blocks())
        assert len(set(free)) == len(free)
        assert self._used.isdisjoint(free)
        assert len(free) + self.used == self.total
        assert self._queued == sum(len(strip.blocks) - strip.at for strip in self._queue)
        assert self._queued <= _STALE_TIMES * self.total + _STALE_SLACK
        assert self._used.issuperset(self._extra)
        assert all(count > 0 for count in self._extra.values())
        registered = {
            block: content for block, content in enumerate(self._hash_of) if content is not None
        }
        for content, block in self._by_hash.items():
            holders = self._twins.get(content, [block])
            assert holders[0] == block
            assert content not in self._twins or len(set(holders)) == len(holders) > 1
            for holder in holders:
                assert registered.pop(holder) == content
        assert not registered
        assert self._by_hash.keys() >= self._twins.keys()
        assert not (self._trails and self._twins)
        assert self._trail_blocks == sum(len(trail) for trail in self._trails.values())
        assert self._trail_blocks <= _TRAIL_TIMES * self.total
        for content, trail in self._trails.items():
            assert self._hash_of[trail[-1]] == content
            assert all(self._hash_of[block] is not None for block in trail)
        if self.tier is not None:
            self.tier.check()

    def references(self) -> tuple[int, ...]:
        """How often each block is referred to, by block number."""
        counts = [0] * self.total
        for block in self._used:
            counts[block] = 1 + self._extra.get(block, 0)
        return tuple(counts)

    def _resident_length(self, hashes: Sequence[int], limit: int) -> int:
        """How many of the first `limit` hashes are resident; residency is closed to the front."""
        by_hash = self._by_hash
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if hashes[middle - 1] in by_hash:
                low = middle
            else:
                high = middle - 1
        return low

    def _blocks_of(self, hashes: Sequence[int], length: int) -> Sequence[int]:
        """The oldest block of each of the first `length` hashes, all of which are resident."""
        trail = self._trails.get(hashes[length - 1]) if length else None
        if trail is not None:
            assert len(trail) == length
            return trail
        return list(map(self._by_hash.__getitem__, hashes[:length]))

    def _remember(self, blocks: Sequence[int]) -> None:
        """Lay a trail along those of a request's blocks that have content."""
        if self._twins:
            return
        hash_of = self._hash_of
        full = len(blocks)
        while full and hash_of[blocks[full - 1]] is None:
            full -= 1
        content = hash_of[blocks[full - 1]] if full else None
        if content is None:
            return
        self._leave_trail(content)
        self._trails[content] = blocks[:full]
        self._trail_blocks += full
        while self._trail_blocks > _TRAIL_TIMES * self.total:
            self._leave_trail(next(iter(self._trails)))

    def _leave_trail(self, content: int) -> None:
        self._trail_blocks -= len(self._trails.pop(content, ()))

    def _leave_trails(self) -> None:
        self._trails.clear()
        self._trail_blocks = 0

    def _queue_up(self, blocks: Sequence[int]) -> None:
        """Free blocks of one release, in eviction order, take their places in the free queue."""
        self._number += 1
        number, released = self._number, self._released
        for block in blocks:
            released[block] = number
        # A request's blocks without content are its last ones.
        empty = 0
        while empty < len(blocks) and self._hash_of[blocks[empty]] is None:
            empty += 1
        if empty:
            self._queue.appendleft(_Strip(self._number, blocks[:empty]))
        if empty < len(blocks):
            self._queue.append(_Strip(self._number, blocks[empty:] if empty else blocks))
        self._queued += len(blocks)
        if self._queued > _STALE_TIMES * self.total + _STALE_SLACK:
            self._sweep()

    def _dropped(self, blocks: Sequence[int]) -> Sequence[int]:
        """Those of `blocks` that have no reference left, in the same order."""
        extra = self._extra
        if not extra:
            return blocks
        kept = extra.keys() & blocks
        if not kept:
            return blocks
        for block in kept:
            if extra[block] == 1:
                del extra[block]
            else:
                extra[block] -= 1
        return [block for block in blocks if block not in kept]

    def _valid(self, blocks: Sequence[int], number: int) -> list[int]:
        """Those of a strip's blocks that are free since that release."""
        used = self._used
        released = self._released
        return [block for block in blocks if released[block] == number and block not in used]

    def _free_blocks(self) -> Iterator[int]:
        for strip in self._queue:
            yield from self._valid(strip.blocks[strip.at :], strip.number)

    def _sweep(self) -> None:
        strips = (
            _Strip(strip.number, self._valid(strip.blocks[strip.at :], strip.number))
            for strip in self._queue
        )
        self._queue = deque(strip for strip in strips if strip.blocks)
        self._queued = sum(len(strip.blocks) for strip in self._queue)

    def _forget(self, blocks: Sequence[int]) -> None:
        """What these blocks held can no longer be hit, except in the tier below."""
        hash_of = self._hash_of
        by_hash = self._by_hash
        twins = self._twins
        trails = self._trails
        put = self.tier.put if self.tier is not None else None
        for block in blocks:
            content = hash_of[block]
            if content is None:
                continue
            hash_of[block] = None
            self.evictions += 1
            if content in trails:
                self._leave_trail(content)
            if content in twins:
                self._forget_twin(block, content)
                continue
            del by_hash[content]
            if put is not None:
                put(content)

    def _forget_twin(self, block: int, content: int) -> None:
        holders = self._twins[content]
        holders.remove(block)
        self._by_hash[content] = holders[0]
        if len(holders) == 1:
            del self._twins[content]
