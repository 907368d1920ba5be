"""Compressed bodies come out as they went in, however they are cut, and never much at once."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator, Sequence

import pytest

from agentsched.model import EngineError
from agentsched_adapters.unpacking import _PIECE, coding_of, unpacked

TEXT = b"".join(b"data: %d\n\n" % n for n in range(20_000))


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


class Body:
    """An engine's answer that comes in these chunks."""

    def __init__(self, *chunks: bytes, coding: str = "gzip") -> None:
        self._chunks = chunks
        self.headers: Sequence[tuple[str, str]] = (
            ("Content-Type", "a"),
            ("Content-Encoding", coding),
            ("Content-Length", "9"),
        )
        self.status = 200
        self.is_closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk

    async def read(self) -> bytes:
        return b"".join(self._chunks)

    async def aclose(self) -> None:
        self.is_closed = True


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def parts_of(body: Body) -> list[bytes]:
    return [part async for part in unpacked(body, coding_of(body)).chunks()]


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("X-GZip", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
        ("gzip", gzip.compress(TEXT[:9]) + gzip.compress(b"") + gzip.compress(TEXT[9:])),
        ("gzip", gzip.compress(TEXT) + b"\0" * 64),
        ("deflate", zlib.compress(TEXT) + b"more"),
    ],
    ids=["gzip", "x-gzip", "zlib", "raw", "members", "padding", "tail"],
)
@pytest.mark.parametrize("size", [1, 7, 4_096, 1 << 20])
async def test_it_comes_out_as_it_went_in(coding: str, packed: bytes, size: int) -> None:
    body = Body(*cut(packed, size), coding=coding)
    assert b"".join(await parts_of(body)) == TEXT
    answer = unpacked(body, coding_of(body))
    assert await answer.read() == TEXT
    assert list(answer.headers) == [("Content-Type", "a")]
    await answer.aclose()
    assert body.is_closed


async def test_little_that_is_very_much_comes_in_pieces() -> None:
    parts = await parts_of(Body(gzip.compress(b" " * (16 * _PIECE + 1))))
    assert max(map(len, parts)) <= _PIECE
    assert sum(map(len, parts)) == 16 * _PIECE + 1


async def test_what_is_read_whole_is_bounded() -> None:
    with pytest.raises(EngineError, match="larger than"):
        await unpacked(Body(gzip.compress(b" " * ((64 << 20) + 1), 1)), "gzip").read()


@pytest.mark.parametrize(
    ("coding", "chunks"),
    [
        ("gzip", [b"plain text"]),
        ("deflate", [b"plain text"]),
        ("gzip", [gzip.compress(TEXT)[:-8] + b"????????"]),
        ("deflate", [zlib.compress(TEXT)[:50], b"\xff" * 50]),
    ],
)
async def test_what_is_not_what_it_is_said_to_be(coding: str, chunks: list[bytes]) -> None:
    with pytest.raises(EngineError, match="is said to be"):
        await parts_of(Body(*chunks, coding=coding))


async def test_what_came_before_a_cut_is_there() -> None:
    packed = gzip.compress(TEXT)
    assert TEXT.startswith(b"".join(await parts_of(Body(packed[: len(packed) // 2]))))


@pytest.mark.parametrize("coding", ["identity", "Identity", "", "br", "gzip, gzip", "utf-8"])
def test_others_are_left_alone(coding: str) -> None:
    body = Body(b"x", coding=coding)
    assert unpacked(body, coding_of(body)) is body
