"""Prefix blocks: runs of their numbers, and numbers for hashes of any kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

Runs = tuple[tuple[int, int], ...]
#: Published ids are below this; numbers for other hashes begin here.
_PUBLISHED_MAX: Final = 1 << 40
#: Sizes in use, and how many blocks a prompt needs to tell them apart.
_SIZES: Final = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TELLING: Final = 3
_MOST: Final = 0.9
#: Hashes that are remembered to give equal ones equal numbers; the longest unseen go first.
HASHES_MAX: Final = 5_000_000


def runs_of(blocks: Iterable[int]) -> Runs:
    """Block numbers as runs `(first, last)` of numbers that follow each other."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] + 1 == block:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return tuple(runs)


def blocks_of(runs: Runs) -> Iterator[int]:
    """The block numbers that runs stand for."""
    for first, last in runs:
        yield from range(first, last + 1)


def first_of(runs: Runs, count: int) -> Runs:
    """The first `count` of the numbers that runs stand for."""
    kept: list[tuple[int, int]] = []
    for first, last in runs:
        length = min(last - first + 1, count)
        if length <= 0:
            break
        kept.append((first, first + length - 1))
        count -= length
    return tuple(kept)


def prefix_blocks(one: Sequence[int], two: Sequence[int]) -> int:
    """How many blocks two prompts begin with alike."""
    count = 0
    for left, right in zip(one, two, strict=False):
        if left != right:
            break
        count += 1
    return count


def block_size_of(rows: Iterable[tuple[int, int]], *, default: int) -> int:
    """The size of blocks that fits most rows of (tokens, blocks); `default` where that does.

    Files of this family do not say it: 512 in Mooncake's own, 16 in Bailian's, others elsewhere.
    """
    told = [(tokens, count) for tokens, count in rows if count >= _TELLING]
    if not told:
        return default

    def fits(size: int) -> int:
        return sum(tokens // size <= count <= -(-tokens // size) for tokens, count in told)

    best = max((default, *_SIZES), key=fits)
    return best if fits(best) >= _MOST * len(told) and fits(best) > fits(default) else default


class Numbers:
    """Small numbers for hashes: the same for the same hash, in the order of their first use.

    Only the last `limit` hashes are remembered; an older one that comes back gets a new number.
    """

    def __init__(self, limit: int = HASHES_MAX) -> None:
        self._limit = limit
        self._numbers: OrderedDict[object, int] = OrderedDict()
        self._next = 0

    def number(self, key: object) -> int:
        found = self._numbers.get(key)
        if found is not None:
            self._numbers.move_to_end(key)
            return found
        self._next += 1
        self._numbers[key] = self._next
        if len(self._numbers) > self._limit:
            self._numbers.popitem(last=False)
        return self._next

    def block(self, name: object) -> int:
        """A block's number: itself where it is a published small one, else one for its hash."""
        if type(name) is int and 0 <= name < _PUBLISHED_MAX:  # `true` is no number
            return name
        return _PUBLISHED_MAX + self.number(str(name))
