"""Prompts known by the hashes of their blocks: what two of them share, and names for the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentsched_bench.workload.trace import RecordedStep, Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedPrompt:
    """A scaled prompt as runs `(first, last)` of blocks of `block_tokens` tokens each."""

    source: str
    runs: tuple[tuple[int, int], ...]
    block_tokens: int
    tokens: int

    def common_tokens(self, other: HashedPrompt) -> int:
        """Tokens of the longest common prefix, in whole blocks."""
        assert self.block_tokens == other.block_tokens
        blocks = 0
        mine, theirs = _Cursor(self.runs), _Cursor(other.runs)
        while mine.block is not None and mine.block == theirs.block:
            step = min(mine.left, theirs.left)
            blocks += step
            mine.advance(step)
            theirs.advance(step)
        return min(blocks * self.block_tokens, self.tokens, other.tokens)

    def stretches(self, start: int, end: int) -> Iterator[tuple[str, int, int]]:
        """(stream, offset, tokens) for the hashed part of `[start, end)`, in order.

        Runs that follow each other in number are one stream per block: the same hash gives the
        same tokens wherever it stands.
        """
        at = 0
        size = self.block_tokens
        for first, last in self.runs:
            run_end = at + (last - first + 1) * size
            position = max(start, at)
            while position < min(run_end, end):
                block, offset = divmod(position - at, size)
                tokens = min(size - offset, end - position, run_end - position)
                yield f"hash/{self.source}/{first + block}", offset, tokens
                position += tokens
            at = run_end
            if at >= end:
                return


class _Cursor:
    """A place in runs of blocks."""

    def __init__(self, runs: tuple[tuple[int, int], ...]) -> None:
        self._runs = iter(runs)
        self.block: int | None = None
        self.left = 0
        self._next()

    def advance(self, blocks: int) -> None:
        assert self.block is not None
        self.block += blocks
        self.left -= blocks
        if self.left == 0:
            self._next()

    def _next(self) -> None:
        run = next(self._runs, None)
        self.block = None if run is None else run[0]
        self.left = 0 if run is None else run[1] - run[0] + 1


def scaled_prompt(recording: Recording, step: RecordedStep, *, scale: float) -> HashedPrompt | None:
    """The hashed prompt of a step with tokens divided by `scale`; None where it has no hashes."""
    if step.hash_ids is None or recording.block_size is None:
        return None
    return HashedPrompt(
        source=recording.hash_scope or recording.source,
        runs=step.hash_ids,
        block_tokens=max(1, round(recording.block_size / scale)),
        tokens=max(1, round(step.input_tokens / scale)),
    )
