"""A tokenizer without a vocabulary: four ASCII bytes or up to three other bytes are one token.

Left to right, so texts with a common beginning have token lists with a common beginning (except for
the last piece), and exact: `decode(encode(text)) == text`. About four characters a token, which is
what English and code take with real vocabularies. Ids fit 32 bits; markers of the chat template lie
above all text, so no text can imitate them.
"""

from __future__ import annotations

import codecs
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

ASCII_BYTES: Final = 4
_RAW_BYTES: Final = 3
_RAW: Final = 0x8000_0000
_MARKER: Final = 0xF000_0000

#: Before a message's role, between role and content, after a message (also the end of an answer).
START: Final = _MARKER + 1
MIDDLE: Final = _MARKER + 2
END: Final = _MARKER + 3
#: Before a tool call's name; before the list of tools.
CALL: Final = _MARKER + 4
TOOLS: Final = _MARKER + 5

_PARTS: Final = re.compile("[\x01-\x7f]+|[^\x01-\x7f]+")


def encode(text: str) -> list[int]:
    """The tokens of `text`; none for the empty text. Lone surrogates become question marks."""
    ids: list[int] = []
    for part in _PARTS.findall(text):
        if part[0] != "\0" and part[0] < "\x80":
            data = part.encode()
            data += b"\0" * (-len(data) % ASCII_BYTES)
            ids.extend(_little_endian(data))
        else:
            raw = part.encode("utf-8", errors="replace")
            ids.extend(
                _RAW | len(piece) << 24 | int.from_bytes(piece, "little")
                for piece in (raw[i : i + _RAW_BYTES] for i in range(0, len(raw), _RAW_BYTES))
            )
    return ids


def pieces(ids: Iterable[int]) -> list[str]:
    """The text of each token in turn; a character cut between two belongs to the later one."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = [decoder.decode(_bytes_of(token)) for token in ids]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def decode(ids: Sequence[int]) -> str:
    """The text of `ids`; markers have none."""
    return b"".join(map(_bytes_of, ids)).decode(errors="replace")


def _little_endian(data: bytes) -> Iterable[int]:
    words = array("I", data)
    assert words.itemsize == ASCII_BYTES
    if array("I", b"\x01\0\0\0")[0] != 1:
        words.byteswap()
    return words


def _bytes_of(token: int) -> bytes:
    if token >= _MARKER:
        return b""
    if token >= _RAW:
        length = min(token >> 24 & 0x7F, _RAW_BYTES)
        return (token & 0xFF_FFFF).to_bytes(_RAW_BYTES, "little")[:length]
    return token.to_bytes(ASCII_BYTES, "little").rstrip(b"\0")
