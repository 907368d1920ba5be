"""Token ids, in prompts and in answers, as bytes of which one may begin with the other.

Clients that send token ids for a prompt (trainers, replays) get those of the answer with
`return_token_ids`, and put both at the beginning of their next prompt. JSON spells one list in many
ways, and ends it; four bytes an id do neither.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

import msgspec

from agentsched.proxy.fields import BROKEN

#: Bytes of a packed id.
ID_BYTES: Final = 4

_IDS: Final = msgspec.json.Decoder(list[int])
_WORDS: Final = next(code for code in "IL" if array(code).itemsize == ID_BYTES)


def pack(ids: Iterable[int]) -> bytes | None:
    """Token ids, four bytes each; None where one is no number that a vocabulary has."""
    try:
        return array(_WORDS, ids).tobytes()
    except (OverflowError, TypeError):
        return None


def unpack(ids: bytes) -> list[int]:
    """The ids that were packed."""
    return array(_WORDS, ids).tolist()


def pack_lists(raws: Iterable[bytes]) -> bytes:
    """Several JSON lists of token ids as one; nothing where one of them is none."""
    try:
        packed = [pack(_IDS.decode(raw)) for raw in raws]
    except BROKEN:
        return b""
    return b"".join(part for part in packed if part is not None) if None not in packed else b""
