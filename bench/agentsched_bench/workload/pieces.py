"""A prompt's pieces, cut where a number of tokens ends."""

from __future__ import annotations

from collections.abc import Sequence

from agentsched_bench.workload.shape import Piece


def split(pieces: Sequence[Piece], tokens: int) -> tuple[list[Piece], list[Piece]]:
    """The first `tokens` tokens of `pieces`, and the rest."""
    head: list[Piece] = []
    rest: list[Piece] = []
    left = tokens
    for piece in pieces:
        first = min(left, piece.tokens)
        if first:
            head.append(Piece(stream=piece.stream, start=piece.start, tokens=first))
        if first < piece.tokens:
            start = piece.start + first
            rest.append(Piece(stream=piece.stream, start=start, tokens=piece.tokens - first))
        left -= first
    return head, rest
