"""Streams of tokens: stable, seekable, and different under another salt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched_bench.workload.shape import Piece
from agentsched_bench.workload.text import WORDS, token_ids, values, words


@given(st.integers(0, 5_000), st.integers(0, 3_000), st.integers(0, 3_000))
def test_a_stream_can_be_entered_anywhere(start: int, first: int, second: int) -> None:
    whole = values("s", start=start, count=first + second)
    parts = values("s", start=start, count=first)
    parts += values("s", start=start + first, count=second)

    assert whole == parts
    assert len(whole) == first + second


def test_streams_are_the_same_on_every_machine() -> None:
    assert values("stream", start=1022, count=4) == [21157, 37502, 48941, 24394]


def test_salt_changes_content_and_keeps_structure() -> None:
    pieces = [Piece(stream="shared", tokens=50), Piece(stream="own", tokens=20)]
    one, two = token_ids(pieces, salt="1"), token_ids(pieces, salt="2")

    assert one != two
    assert len(one) == len(two) == 70
    assert one[:50] == token_ids([Piece(stream="shared", tokens=90)], salt="1")[:50]
    assert all(1000 <= token < 4000 for token in one)
    assert set(words(pieces, salt="1")) <= set(WORDS)
