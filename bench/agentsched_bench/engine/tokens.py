"""Who a token is, as far as a prefix cache cares: one chained hash per full block.

A prefix cache never looks at tokens, only at the hashes of full blocks, each chained to its parent.
So a request carries a `BlockChain`. `TokenChain` makes it from token ids (the server); `RunChain`
from runs of named content (the simulator): a run is `tokens` tokens of a content, from an offset.
A prompt of 100,000 tokens so costs work per block, and one that grows costs only what was added.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import xxhash

_ROOT_SEED = 0x6167656E74


class BlockChain(Protocol):
    """The tokens of one request, prompt first and then its whole answer, as block hashes."""

    @property
    def block_size(self) -> int:
        """Tokens per block; must be that of the engine."""
        ...

    @property
    def tokens(self) -> int:
        """How many tokens the chain covers so far."""
        ...

    def hashes(self, blocks: int) -> Sequence[int]:
        """The hashes of at least the first `blocks` full blocks; equal prefixes, equal hashes.

        The returned sequence must not be changed, and may grow later.
        """
        ...


class TokenChain:
    """A chain over token ids (each below 2**32)."""

    __slots__ = ("_hashes", "_ids", "_parent", "block_size")

    def __init__(self, ids: Iterable[int], *, block_size: int, salt: str = "") -> None:
        assert block_size > 0
        self.block_size = block_size
        self._ids = array("I", ids)
        self._hashes: list[int] = []
        self._parent = (
            xxhash.xxh3_64_intdigest(salt.encode(), seed=_ROOT_SEED) if salt else _ROOT_SEED
        )

    @property
    def tokens(self) -> int:
        return len(self._ids)

    def hashes(self, blocks: int) -> Sequence[int]:
        assert blocks * self.block_size <= len(self._ids)
        size = self.block_size
        while len(self._hashes) < blocks:
            start = len(self._hashes) * size
            piece = self._ids[start : start + size].tobytes()
            self._parent = xxhash.xxh3_64_intdigest(piece, seed=self._parent)
            self._hashes.append(self._parent)
        return self._hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`tokens` successive tokens of the content called `content`, from `offset` on."""

    content: int
    tokens: int
    offset: int = 0


_PIECE = struct.Struct("<QQQ")


class RunChain:
    """A chain over runs of content; it can grow, and a conversation's requests may share it.

    Two chains agree on a block when the pieces of content in it, and all before it, are the same.
    A run that continues the one before it (same content, next offset) is the same as one long run.
    """

    __slots__ = ("_hashes", "_open", "_open_tokens", "_parent", "_tokens", "block_size")

    def __init__(self, runs: Iterable[Run] = (), *, block_size: int) -> None:
        assert block_size > 0
        self.block_size = block_size
        self._hashes: list[int] = []
        self._parent = _ROOT_SEED
        #: Pieces of the last, not yet full block, and how many tokens they hold together.
        self._open: list[Run] = []
        self._open_tokens = 0
        self._tokens = 0
        for run in runs:
            self.extend(run)

    @property
    def tokens(self) -> int:
        return self._tokens

    def extend(self, run: Run) -> None:
        """Append `run`. What has been hashed stays as it is, so shared prefixes stay shared."""
        assert run.tokens >= 0
        assert run.offset >= 0
        left = run.tokens
        offset = run.offset
        self._tokens += left
        if self._open_tokens:
            taken = min(left, self.block_size - self._open_tokens)
            self._append(content=run.content, offset=offset, tokens=taken)
            left -= taken
            offset += taken
        whole = left // self.block_size
        for _ in range(whole):
            self._seal(_PIECE.pack(run.content, offset, self.block_size))
            offset += self.block_size
        left -= whole * self.block_size
        if left:
            self._append(content=run.content, offset=offset, tokens=left)

    def fork(self, *, tokens: int) -> RunChain:
        """A new chain with the first `tokens` tokens of this one, up to its last full block.

        Only whole blocks can be kept: the answer may be up to `block_size - 1` tokens shorter.
        """
        blocks = min(tokens, self._tokens) // self.block_size
        twin = RunChain(block_size=self.block_size)
        twin._hashes = self._hashes[:blocks]
        twin._parent = twin._hashes[-1] if blocks else _ROOT_SEED
        twin._tokens = blocks * self.block_size
        return twin

    def hashes(self, blocks: int) -> Sequence[int]:
        assert blocks <= len(self._hashes)
        return self._hashes

    def _append(self, *, content: int, offset: int, tokens: int) -> None:
        if tokens == 0:
            return
        last = self._open[-1] if self._open else None
        if last is not None and last.content == content and last.offset + last.tokens == offset:
            merged = Run(content=content, tokens=last.tokens + tokens, offset=last.offset)
            self._open[-1] = merged
        else:
            self._open.append(Run(content=content, tokens=tokens, offset=offset))
        self._open_tokens += tokens
        if self._open_tokens == self.block_size:
            pieces = b"".join(_PIECE.pack(p.content, p.offset, p.tokens) for p in self._open)
            self._open.clear()
            self._open_tokens = 0
            self._seal(pieces)

    def _seal(self, pieces: bytes) -> None:
        self._parent = xxhash.xxh3_64_intdigest(pieces, seed=self._parent)
        self._hashes.append(self._parent)
