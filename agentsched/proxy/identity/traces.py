"""Texts of which only keyed hashes are left, and how they are found in a prompt all the same.

A trace is the hash of a text and of a beginning of it, the stem, whose length is one of a few. Only
texts whose stem stands where a word begins are compared as a whole, so looking for many traces
costs little more than looking for one.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

import msgspec
import xxhash

#: Lengths of stems in bytes. Each that is in use costs one hash for each word of a prompt.
_STEMS: Final = (240, 128, 64, 32, 16, 8)
_WORD: Final = re.compile(rb"(?<![0-9A-Za-z_])[^\s\x80-\xbf]")
#: Words of a prompt beyond these are not looked at.
_WORDS_MAX: Final = 20_000
#: Nor are places beyond these where the same stem stands: a text that repeats itself tells nothing.
_PLACES_MAX: Final = 256
_SALT: Final = 0x7A3C_5D19_0E42_B6F1


class Trace(msgspec.Struct, frozen=True, array_like=True):
    """What is left of a text: its size in bytes and in characters, its hash, its stem's."""

    size: int
    characters: int
    whole: bytes
    stem_size: int
    stem: int


class Tracer:
    """Makes traces, and finds them. `secret` keys the hashes; pure."""

    def __init__(self, *, secret: int) -> None:
        self._seed = (secret ^ _SALT) & (2**64 - 1)

    def trace(self, text: str) -> Trace:
        data = _bytes(text)
        stem_size = next((size for size in _STEMS if size <= len(data)), len(data))
        return Trace(len(data), len(text), self.whole(data), stem_size, self.stem(data[:stem_size]))

    def whole(self, data: bytes) -> bytes:
        return xxhash.xxh3_128_digest(data, seed=self._seed)

    def stem(self, data: bytes) -> int:
        # Signed, for databases and MessagePack have no more than 64 bits.
        return xxhash.xxh3_64_intdigest(data, seed=self._seed) >> 1

    def ground(self, text: str) -> Ground:
        """A text in which traces are to be looked for."""
        return Ground(text, self)


class Ground:
    """One text of a prompt. Hashed when a trace is first looked for, and not again."""

    def __init__(self, text: str, tracer: Tracer) -> None:
        self._text = text
        self._tracer = tracer
        self._data: bytes | None = None
        self._words: list[int] | None = None
        #: Stem size -> stem -> where it stands.
        self._stems: dict[int, dict[int, list[int]]] = {}
        #: Stem size, stem and size of a text -> the hashes of what stands there in that size.
        self._wholes: dict[tuple[int, int, int], set[bytes]] = {}

    def holds(self, trace: Trace) -> bool:
        """Whether the text holds the trace's text, beginning where a word begins."""
        places = self._places(trace.stem_size).get(trace.stem)
        if places is None:
            return False
        key = (trace.stem_size, trace.stem, trace.size)
        wholes = self._wholes.get(key)
        if wholes is None:
            data, whole = self._read(), self._tracer.whole
            wholes = {whole(data[at : at + trace.size]) for at in places}
            self._wholes[key] = wholes
        return trace.whole in wholes

    def is_whole(self, trace: Trace) -> bool:
        """Whether the text is the trace's text."""
        data = self._read()
        return len(data) == trace.size and self._tracer.whole(data) == trace.whole

    def _read(self) -> bytes:
        if self._data is None:
            self._data = _bytes(self._text)
        return self._data

    def _starts(self) -> list[int]:
        if self._words is None:
            found = islice(_WORD.finditer(self._read()), _WORDS_MAX)
            self._words = [word.start() for word in found]
        return self._words

    def _places(self, size: int) -> dict[int, list[int]]:
        known = self._stems.get(size)
        if known is None:
            known = self._stems[size] = {}
            data, stem = self._read(), self._tracer.stem
            for at in self._starts():
                if at + size > len(data):
                    break
                places = known.setdefault(stem(data[at : at + size]), [])
                if len(places) < _PLACES_MAX:
                    places.append(at)
        return known


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
