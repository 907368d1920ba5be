"""A cache that knows when each conversation comes back, and evicts what is needed last.

Whoever pauses *claims* its blocks until then. Blocks that nobody claims go first, oldest first;
then those of the claim that is used last, tail before head, unless another claims them too: a
block is needed when the first of its claimants is. Returns that depend on others (a parent that
waits for its sub-agents) count as the last. This is Bélády's rule with the true pauses; as the
order of later calls depends on the schedule, it is a yardstick and no exact optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from agentsched.model import Instant
from agentsched_bench.engine.cache import PagedCache
from agentsched_bench.engine.tier import HostTier


@dataclass(slots=True)
class _Claim:
    needed_at: float
    blocks: list[int]


class BeladyCache(PagedCache):
    """A `PagedCache` that is told the future. One that is told nothing is a plain one."""

    __slots__ = ("_claimed", "_claims", "_parked")

    def __init__(self, *, blocks: int, block_size: int, tier: HostTier | None = None) -> None:
        super().__init__(blocks=blocks, block_size=block_size, tier=tier)
        self._claims: dict[str, _Claim] = {}
        #: How many claims there are on a block.
        self._claimed: dict[int, int] = {}
        #: Free blocks that are in no queue, for they were passed over as claimed.
        self._parked: set[int] = set()

    def claim(self, key: str, hashes: Sequence[int], *, needed_at: Instant | None) -> None:
        """What is resident of this prefix will be used then; None: nobody knows when."""
        self.unclaim(key, is_back=True)
        blocks = list(self.lookup(hashes, limit=len(hashes)).blocks)
        for block in blocks:
            self._claimed[block] = self._claimed.get(block, 0) + 1
        self._claims[key] = _Claim(inf if needed_at is None else needed_at, blocks)

    def unclaim(self, key: str, *, is_back: bool) -> None:
        """The conversation is back; or it will never be, or went on elsewhere."""
        claim = self._claims.pop(key, None)
        if claim is None:
            return
        idle = [block for block in claim.blocks if not self._drop_claim(block)]
        free = [block for block in reversed(idle) if block not in self._used]
        if is_back and free:
            # It may have to wait before it uses them: they stand in the queue as the newest.
            self._queue_up(free)
        elif parked := [block for block in free if block in self._parked]:
            # Nobody waits for these: they have the places that they had when passed over, in front.
            self._queue_up(parked)
            self._queue.rotate(1)

    def take(self, count: int) -> list[int]:
        """As `PagedCache.take`, in the order of the module."""
        assert count <= self.free
        taken: list[int] = []
        while len(taken) < count and self._queue:
            taken += self._next_unclaimed(count - len(taken))
        while len(taken) < count:
            taken += self._from_last_claim(count - len(taken), taken)
        self._used.update(taken)
        self._found = None
        self._forget(taken)
        return taken

    def check(self) -> None:
        """Assert what holds here: parked blocks are in no queue, only claimed."""
        queued = set(self._free_blocks())
        free = set(range(self.total)) - self._used
        assert free - queued == self._parked - self._used <= self._claimed.keys()
        for block, count in self._claimed.items():
            assert count == sum(block in claim.blocks for claim in self._claims.values())

    def _next_unclaimed(self, count: int) -> list[int]:
        strip = self._queue[0]
        met = strip.blocks[strip.at : strip.at + count]
        strip.at += len(met)
        self._queued -= len(met)
        if strip.at == len(strip.blocks):
            self._queue.popleft()
        valid = self._valid(met, strip.number)
        self._parked.update(block for block in valid if block in self._claimed)
        return [block for block in valid if block not in self._claimed]

    def _queue_up(self, blocks: Sequence[int]) -> None:
        self._parked.difference_update(blocks)
        super()._queue_up(blocks)

    def _from_last_claim(self, count: int, taken: Sequence[int]) -> list[int]:
        key, claim = max(self._claims.items(), key=lambda item: (item[1].needed_at, item[0]))
        found: list[int] = []
        while claim.blocks and len(found) < count:
            block = claim.blocks.pop()
            if not self._drop_claim(block) and block not in self._used and block not in taken:
                found.append(block)
        self._parked.difference_update(found)
        if not claim.blocks:
            del self._claims[key]
        return found

    def _drop_claim(self, block: int) -> bool:
        """One claim on it less; whether there is another."""
        left = self._claimed[block] - 1
        if left:
            self._claimed[block] = left
            return True
        del self._claimed[block]
        return False
