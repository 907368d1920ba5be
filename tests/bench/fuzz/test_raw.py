"""The strict reader takes sound answers only: what it lets through, no fuzz test sees."""

from __future__ import annotations

import pytest

from agentsched_bench.fuzz.raw import BadAnswer, Exchange


def answers(data: bytes, *methods: str) -> list[tuple[int, bytes, bool]]:
    exchange = Exchange(data=data, is_closed=True)
    return [(a.status, a.body, a.is_whole) for a in exchange.answers(*methods)]


def test_a_row_of_answers() -> None:
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n"
        b"HTTP/1.0 204 No Content\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"
    )
    whole = [(200, b"ab", True), (404, b"abc", True), (204, b"", True)]
    assert answers(data) == [*whole, (200, b"ab", False)]


def test_a_head_has_no_body() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert answers(answer * 2, "HEAD", "HEAD") == [(200, b"", True)] * 2


def test_no_answer_at_all() -> None:
    assert answers(b"") == []
    assert answers(b"HTTP/1.1 200 O") == []


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 99 x\r\n\r\n",
        b"HTTP/1.1 999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_no_http(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        answers(data)
