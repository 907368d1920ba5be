"""Tokens and words from named streams: the same name gives the same content on every machine."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from agentsched_bench.workload.shape import Piece

#: Streams are drawn in pieces of this many values, so that a far offset costs little.
_CHUNK: Final = 1024
_VALUES: Final = struct.Struct(f"<{_CHUNK}H")

#: Short, common words; which of them are one token each is found out on the target.
_WORDS: Final = (
    "the of and to in is for on that with as be this are from or by at it an we can not have "
    "all new more use one time has if will out other what which their when who about up than "
    "into only some them no how then first may also any after line code file test name type "
    "list key value data page work state part case end run get set make find read write open "
    "close call check error result return class function method object string number model "
    "module path order point change build process system user group table index field base "
    "form view text word block count size start stop next last same each many most such very "
    "well over under between through before where while both few long short high low good "
    "great small large right left place world year day hand house water light side head need "
    "try ask seem feel leave keep let begin help show hear play move live hold bring happen "
    "provide include continue allow add spend grow walk win offer remember consider appear "
    "buy wait serve send expect stay fall cut reach kill remain suggest raise pass sell "
    "require report decide pull "
)
WORDS: Final = tuple(_WORDS.split())


@lru_cache(maxsize=4096)
def _chunk(stream: str, number: int) -> tuple[int, ...]:
    digest = hashlib.shake_128(f"{stream}\0{number}".encode()).digest(_VALUES.size)
    return _VALUES.unpack(digest)


def values(stream: str, *, start: int, count: int) -> list[int]:
    """`count` numbers below 65,536 of a stream, from its `start`-th on."""
    drawn: list[int] = []
    number, offset = divmod(start, _CHUNK)
    while len(drawn) < count:
        chunk = _chunk(stream, number)
        drawn.extend(chunk[offset : offset + count - len(drawn)])
        number, offset = number + 1, 0
    return drawn


def token_ids(pieces: Iterable[Piece], *, salt: str) -> list[int]:
    """Token ids for `pieces`, each from 1,000 up to 4,000; one per token, exactly.

    `salt` makes another content with the same structure: what was shared stays shared.
    """
    return [
        1_000 + value % 3_000
        for piece in pieces
        for value in values(f"{salt}/{piece.stream}", start=piece.start, count=piece.tokens)
    ]


def words(pieces: Iterable[Piece], *, salt: str, vocabulary: Sequence[str] = WORDS) -> list[str]:
    """One word for each token of `pieces`, drawn from `vocabulary`."""
    return [
        vocabulary[value % len(vocabulary)]
        for piece in pieces
        for value in values(f"{salt}/{piece.stream}", start=piece.start, count=piece.tokens)
    ]
