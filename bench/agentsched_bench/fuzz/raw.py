"""HTTP/1.1 on a bare socket: sends any bytes, reads answers by the letter and forgives nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9]) ?([\t\x20-\x7e\x80-\xff]*)")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e]*)?")
_BODILESS: Final = (204, 304)


class BadAnswer(AssertionError):
    """What came back is not HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    """One answer as it was on the wire. Not `is_whole`: the connection ended within its body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_whole: bool = True

    def header(self, name: str) -> str:
        """The value of a header that may occur once at most; empty where it is absent."""
        values = [value for key, value in self.headers if key.lower() == name]
        if len(values) > 1:
            raise BadAnswer(f"{name} occurs {len(values)} times")
        return values[0] if values else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What came back on one connection, and whether the other side ended it in time."""

    data: bytes
    is_closed: bool

    def answers(self, *methods: str) -> list[RawAnswer]:
        """All answers, the last of which may be cut.

        Raises:
            BadAnswer: the bytes are no row of HTTP answers.
        """
        answers: list[RawAnswer] = []
        rest = self.data
        while rest:
            method = methods[len(answers)] if len(answers) < len(methods) else "GET"
            before = rest
            answer, rest = read_answer(rest, method=method)
            if answer is None:
                break
            if method == "HEAD" and rest and not rest.startswith(b"HTTP/1."):
                # The other side could not read the request, so it did not know of the HEAD.
                answer, rest = read_answer(before)
                assert answer is not None
            if answer.status >= 200:
                answers.append(answer)
        return answers


async def exchange(
    host: str, port: int, pieces: Sequence[bytes], *, timeout_s: float, is_ended: bool = False
) -> Exchange:
    """Send pieces, one write each, and read until the other side closes or the time is up.

    `is_ended` closes our half after the last piece. A reset counts as closed.
    """
    received = bytearray()
    is_closed = False
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(timeout_s):
            with contextlib.suppress(ConnectionError):
                await _send(writer, pieces, is_ended=is_ended)
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(65_536):
                    received += chunk
            is_closed = True
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return Exchange(data=bytes(received), is_closed=is_closed)


async def ask(host: str, port: int, request: bytes, *, timeout_s: float) -> RawAnswer:
    """Send one request that asks for the connection to be closed, and read its answer.

    Raises:
        BadAnswer: there is none, or it is not HTTP.
    """
    came = await exchange(host, port, [request], timeout_s=timeout_s)
    answers = came.answers(request.partition(b" ")[0].decode("latin-1"))
    if not answers:
        raise BadAnswer("no answer" + ("" if came.is_closed else f" within {timeout_s:g} s"))
    return answers[0]


async def _send(writer: asyncio.StreamWriter, pieces: Sequence[bytes], *, is_ended: bool) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)  # a turn of the loop, so that pieces arrive as pieces
    if is_ended and writer.can_write_eof():
        writer.write_eof()


def read_answer(data: bytes, *, method: str = "GET") -> tuple[RawAnswer | None, bytes]:
    """The first answer in `data` and what follows; None where not even its head is whole.

    Raises:
        BadAnswer: it is not HTTP.
    """
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise BadAnswer(f"no status line: {data[:80]!r}")
        return None, b""
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise BadAnswer(f"status line {first[:200]!r}")
    headers = []
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BadAnswer(f"header line {line[:200]!r}")
        headers.append((match[1].decode(), match[2].decode("latin-1")))
    empty = RawAnswer(status=int(status[1]), headers=tuple(headers), body=b"")
    body, is_whole, rest = _body(empty, rest, method)
    whole = RawAnswer(status=empty.status, headers=empty.headers, body=body, is_whole=is_whole)
    return whole, rest


def _body(answer: RawAnswer, rest: bytes, method: str) -> tuple[bytes, bool, bytes]:
    length = answer.header("content-length")
    encoding = answer.header("transfer-encoding").lower()
    if length and encoding:
        raise BadAnswer("both a length and an encoding")
    if method == "HEAD" or answer.status < 200 or answer.status in _BODILESS:
        return b"", True, rest
    if encoding:
        if encoding != "chunked":
            raise BadAnswer(f"transfer-encoding {encoding!r}")
        return _chunks(rest)
    if not length:
        return rest, True, b""
    if not length.isdecimal() or len(length) > 18:
        raise BadAnswer(f"content-length {length!r}")
    size = int(length)
    return rest[:size], len(rest) >= size, rest[size:]


def _chunks(rest: bytes) -> tuple[bytes, bool, bytes]:
    body = bytearray()
    while True:
        line, found, after = rest.partition(b"\r\n")
        if not found:
            return bytes(body), False, b""
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadAnswer(f"chunk size {line[:80]!r}")
        size = int(match[1], 16)
        if size == 0:
            if not after.startswith(b"\r\n"):
                if len(after) < 2:
                    return bytes(body), False, b""
                raise BadAnswer(f"after the last chunk: {after[:80]!r}")
            return bytes(body), True, after[2:]
        body += after[:size]
        if len(after) < size + 2:
            return bytes(body), False, b""
        if after[size : size + 2] != b"\r\n":
            raise BadAnswer("a chunk of the wrong length")
        rest = after[size + 2 :]
