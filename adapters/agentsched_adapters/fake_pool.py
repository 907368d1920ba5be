"""The fake engine's prefix cache: hash-chained blocks, least recently freed given up first."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Blocks that one request holds: named ones (its whole prompt blocks), and how many others."""

    named: tuple[bytes, ...]
    others: int
    cached_blocks: int


class FakePool:
    """A pool of `blocks` KV blocks. Of vLLM it keeps what matters to a scheduler:

    a prompt hits from its head up to the first missing block; its last token is always computed;
    held blocks are never given up; freed ones are given up in the order in which they were freed,
    the tail of a prompt before its head.
    """

    def __init__(self, *, blocks: int, block_size: int) -> None:
        assert blocks > 0
        assert block_size > 0
        self.blocks = blocks
        self.block_size = block_size
        #: Holders of each block; no zero counts.
        self._holders: Counter[bytes] = Counter()
        #: Cached blocks that nobody holds, the next to give up first.
        self._free: OrderedDict[bytes, None] = OrderedDict()
        #: Blocks of running requests that have no name: partial prompts and answers.
        self._unnamed = 0

    @property
    def held(self) -> int:
        """Blocks that requests or pins hold."""
        return len(self._holders) + self._unnamed

    def take(self, tokens: Sequence[bytes], *, output_tokens: int) -> Grant | None:
        """Blocks for a prompt and its answer; None while held blocks leave too little room."""
        names = self._names(tokens)
        total = -(-(len(tokens) + output_tokens) // self.block_size)
        hits = self._hits(names, limit=(len(tokens) - 1) // self.block_size)
        for name in names[:hits]:
            self._hold(name)
        # Names beyond the hits that another request is computing or has computed cost nothing more.
        new = total - hits - sum(name in self._holders for name in names[hits:])
        if self.held + new > self.blocks:
            self._release(names[:hits])
            return None
        for name in names[hits:]:
            self._hold(name)
        others = total - len(names)
        self._unnamed += others
        while self.held + len(self._free) > self.blocks:
            self._free.popitem(last=False)
        return Grant(named=names, others=others, cached_blocks=hits)

    def give_back(self, grant: Grant, *, is_computed: bool = True) -> None:
        """End a holding. Blocks that were not computed are forgotten rather than cached."""
        self._unnamed -= grant.others
        keep = len(grant.named) if is_computed else grant.cached_blocks
        self._release(grant.named[keep:], forget=True)
        self._release(grant.named[:keep])

    def retain(self, names: Sequence[bytes]) -> tuple[bytes, ...]:
        """Hold what is still cached of these blocks, from the head; the blocks held."""
        kept = tuple(names[: self._hits(names, limit=len(names))])
        for name in kept:
            self._hold(name)
        return kept

    def let_go(self, names: Sequence[bytes]) -> None:
        """End a `retain`."""
        self._release(names)

    def _names(self, tokens: Sequence[bytes]) -> tuple[bytes, ...]:
        names = []
        name = b""
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            block = b"\0".join(tokens[start : start + self.block_size])
            name = hashlib.blake2b(name + block, digest_size=16).digest()
            names.append(name)
        return tuple(names)

    def _hits(self, names: Sequence[bytes], *, limit: int) -> int:
        for index, name in enumerate(names[:limit]):
            if name not in self._free and name not in self._holders:
                return index
        return min(limit, len(names))

    def _hold(self, name: bytes) -> None:
        self._holders[name] += 1
        self._free.pop(name, None)

    def _release(self, names: Sequence[bytes], *, forget: bool = False) -> None:
        for name in reversed(names):
            self._holders[name] -= 1
            if self._holders[name] == 0:
                del self._holders[name]
                if not forget:
                    self._free[name] = None
