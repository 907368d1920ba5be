"""Answers that come compressed though no compression was asked for: what they say, in plain bytes.

Some gateway in front of an engine compresses whatever goes through it. Nobody could read a tool
call, an end or the tokens out of that, and an event of ours could not stand beside it.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

from agentsched.model import EngineError
from agentsched.ports import EngineAnswer
from agentsched_adapters.whole import read_whole

#: Bytes that are unpacked at once: a little that comes in may be very much that goes out.
_PIECE: Final = 1 << 18
#: For `zlib`: 16 is for gzip's frame around it.
_FRAMED: Final = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS}
_CODINGS: Final = {**_FRAMED, "deflate": zlib.MAX_WBITS}
_HEADER: Final = "content-encoding"


def coding_of(answer: EngineAnswer) -> str:
    """What a body is packed with; empty where it is as it is."""
    for name, value in answer.headers:
        if name.lower() == _HEADER:
            coding = value.strip().lower()
            return "" if coding == "identity" else coding
    return ""


def unpacked(answer: EngineAnswer, coding: str) -> EngineAnswer:
    """The answer as if it had come without; as it is where we do not know how to undo that."""
    return Unpacked(answer, coding) if coding in _CODINGS else answer


class Unpacked:
    """An answer whose body is unpacked as it comes; see `agentsched.ports.EngineAnswer`."""

    __slots__ = ("_answer", "_coding", "_head", "_inflater", "_is_known")

    def __init__(self, answer: EngineAnswer, coding: str) -> None:
        self._answer = answer
        self._coding = coding
        self._inflater = zlib.decompressobj(_CODINGS[coding])
        #: Of `deflate`: its beginning, and whether that has said which format it is.
        self._head = b""
        self._is_known = False

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        # Its length is that of the packed body.
        gone = (_HEADER, "content-length")
        return tuple(pair for pair in self._answer.headers if pair[0].lower() not in gone)

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._answer.chunks():
            for part in self._parts(chunk):
                yield part

    async def read(self) -> bytes:
        return await read_whole(self.chunks())

    async def aclose(self) -> None:
        await self._answer.aclose()

    def _parts(self, data: bytes) -> Iterator[bytes]:
        """What these bytes bring, in pieces.

        Raises:
            EngineError: they are not packed as they are said to be.
        """
        if self._coding == "deflate" and not self._is_known:
            self._head += data
            if len(self._head) < 2:
                return
            data, self._is_known = self._head, True
            if not _is_zlib(data):
                self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        out = b""
        while data or len(out) == _PIECE:  # a full piece may not be all of it
            if self._inflater.eof:
                if self._coding not in _FRAMED or not data.strip(b"\0"):
                    return
                # Several members in a row are one body (RFC 1952, 2.2).
                self._inflater = zlib.decompressobj(_FRAMED[self._coding])
            try:
                out = self._inflater.decompress(data, _PIECE)
            except zlib.error as error:
                text = f"its answer is not the {self._coding} that it is said to be"
                raise EngineError(text) from error
            data = self._inflater.unused_data or self._inflater.unconsumed_tail
            if out:
                yield out


def _is_zlib(head: bytes) -> bool:
    """Whether a body begins with zlib's frame (RFC 1950, 2.2), which `deflate` means; many servers
    take the word for what is inside of it."""
    return head[0] & 0x0F == 8 and int.from_bytes(head[:2]) % 31 == 0
