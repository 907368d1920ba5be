"""How an engine's KV cache is laid out: in which models pins are safe, and how far blocks reach.

A model whose layers are of one kind has one group of them, and one block for each stretch of
tokens. A hybrid one has several groups in one pool, each with a block of its own for a stretch,
which may be of another length; of a prefix, only what all groups have is found. A group whose
attention has a window keeps the blocks of the window alone, so that a prefix without the last
blocks of its window is not found at all. Where a model drafts with layers of a group (EAGLE, MTP),
vLLM finds the group's prefix one block short of what is there: that block has to be there, too.

Pins rest on this: a block that has a hash stays as it is while anybody holds it. That is so for
full, sliding-window and chunked attention, alone and together, and shown against the real pool.
Recurrent states (Mamba) are rewritten and moved in place, other kinds keep blocks in pools of their
own: there the plugin stays off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from agentsched_adapters.vllm_plugin.ledger import Block

#: The manager that keeps every block of a request.
_DENSE: Final = "FullAttentionManager"
#: Managers whose blocks were shown to be safe to pin, by exact class: a subclass may differ.
_SAFE: Final = frozenset({_DENSE, "SlidingWindowManager", "ChunkedLocalAttentionManager"})
_END: Final = attrgetter("block_hash_num_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One engine's layout. `unit` is the length in tokens at whose multiples a prefix is found;
    `dense` says of each group whether it keeps all of a prompt, not the window alone, and `drafts`
    whether a prefix is found in it only with the block that follows.

    A block that is cached knows how many tokens of its prompt lie up to its end, in any group.
    """

    unit: int
    dense: tuple[bool, ...]
    drafts: tuple[bool, ...]

    @property
    def has_windows(self) -> bool:
        """Whether some group keeps a window alone."""
        return not all(self.dense)

    def groups(self, manager: Any, request: Any) -> list[Sequence[Block]]:
        """The blocks in which the next request of a conversation would find this one's.

        With windows, those that are found now. Some are no longer the request's own but still
        cached, and of its own some are of no use: unless told otherwise, vLLM caches of a window
        what lies before the end of the prompt, so that nothing of the answer is found.
        """
        if not self.has_windows:
            return list(manager.get_blocks(request.request_id).blocks)
        hits, _, _ = manager.coordinator.find_longest_cache_hit(
            request.block_hashes, request.num_tokens - 1
        )
        managers = manager.coordinator.single_type_managers
        return [
            [*hit, *_next(one, request, len(hit))] if drafts else hit
            for one, hit, drafts in zip(managers, hits, self.drafts, strict=True)
        ]

    def by_position(self, blocks: Iterable[Block]) -> list[Block]:
        """Each of these blocks once, heads before tails, groups in their order."""
        return sorted({block.block_id: block for block in blocks}.values(), key=_END)

    def limit(self, tokens: int) -> int:
        """The end of the unit in which so many tokens end: it may be open."""
        return -(-tokens // self.unit) * self.unit

    def tokens(self, blocks: Sequence[Block]) -> int:
        """How many tokens of a prefix are found with these blocks, in whole units."""
        ends = {end for block in blocks if (end := _END(block)) % self.unit == 0}
        if not any(self.dense):
            return max(ends, default=0)
        return self.unit * len(ends)


def layout_of(manager: Any, *, unit: int) -> Layout:
    """The layout of a `KVCacheManager`; `unit` is its scheduler's block size."""
    managers = manager.coordinator.single_type_managers
    return Layout(
        unit=unit,
        dense=tuple(type(one).__name__ == _DENSE for one in managers),
        drafts=tuple(bool(getattr(one, "use_eagle", False)) for one in managers),
    )


def _next(manager: Any, request: Any, count: int) -> Sequence[Block]:
    """The block of a group that follows the first `count` of a request's, where it is cached."""
    pool = manager.block_pool
    last = (count + 1) * (manager.block_size // pool.hash_block_size) - 1
    if not count or last >= len(request.block_hashes):
        return ()
    return pool.get_cached_block(request.block_hashes[last], [manager.kv_cache_group_id]) or ()


def refusal(manager: Any) -> str | None:
    """Why pins are not safe with this `KVCacheManager`; None where they are."""
    managers = manager.coordinator.single_type_managers
    kinds = sorted({type(one).__name__ for one in managers} - _SAFE)
    if kinds:
        return (
            f"agentsched's plugin was not shown to be safe with the KV cache of this model "
            f"({', '.join(kinds)}) and stays off: the engine runs as stock."
        )
    if any(one.block_pool is not manager.block_pool for one in managers):
        return (
            "agentsched's plugin needs one pool of KV blocks, and this model has several: "
            "it stays off, the engine runs as stock."
        )
    return None


def capacity(manager: Any, *, blocks: int, unit: int) -> int:
    """Tokens of long contexts that a pool of so many blocks holds."""
    managers = manager.coordinator.single_type_managers
    dense: list[int] = [one.block_size for one in managers if type(one).__name__ == _DENSE]
    # For each unit of a prompt, a group of full attention takes so many blocks and keeps them.
    return blocks * unit // max(1, sum(unit // size for size in dense))
