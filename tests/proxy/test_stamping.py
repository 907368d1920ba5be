"""The fingerprint of a hidden usage chunk reaches the client where it would have found it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from proxy_upstream import DONE, USAGE, chunk, data

from agentsched.proxy.request import Dialect
from agentsched.proxy.sse import SseTap

END = chunk(finish="stop")
USAGE_CHUNK = data({"id": "c1", "choices": [], "usage": USAGE, "system_fingerprint": "fp é"})
STREAM = chunk("hel") + chunk("lo") + END + USAGE_CHUNK + DONE


def relayed(stream: bytes, size: int, *, hides: bool = True) -> bytes:
    tap = SseTap(Dialect.CHAT, hide_usage=hides)
    parts = [tap.feed(stream[start : start + size]) for start in range(0, len(stream), size)]
    return b"".join([*parts, tap.close()])


def events(stream: bytes) -> list[Any]:
    blocks = stream.decode().removesuffix("\n\n").split("\n\n")
    said = [block.removeprefix("data: ") for block in blocks]
    return [one if one == "[DONE]" else json.loads(one) for one in said]


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_it_stands_in_the_chunk_that_ends_the_answer(size: int) -> None:
    found = events(relayed(STREAM, size))
    assert [one.get("system_fingerprint") for one in found[:-1]] == [None, None, "fp é"]
    assert found[2]["choices"][0]["finish_reason"] == "stop"
    assert found[-1] == "[DONE]"
    assert len(found) == 4


@pytest.mark.parametrize("size", [1, 10_000])
def test_who_asked_for_usage_gets_the_bytes_as_they_are(size: int) -> None:
    assert relayed(STREAM, size, hides=False) == STREAM


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("tail", [DONE, b"", chunk("more") + DONE, b": beat\n\n" + DONE])
def test_without_a_usage_chunk_nothing_is_changed_or_lost(tail: bytes, size: int) -> None:
    stream = chunk("hel") + END + tail
    assert relayed(stream, size) == stream


def test_one_that_is_there_already_stays_alone() -> None:
    own = chunk(finish="stop", system_fingerprint="mine")
    assert relayed(own + USAGE_CHUNK + DONE, 10_000) == own + DONE


def test_only_the_end_of_the_answer_waits() -> None:
    tap = SseTap(Dialect.CHAT, hide_usage=True)
    assert tap.feed(chunk("hel")) == chunk("hel")
    assert tap.feed(chunk("lo") + END) == chunk("lo")
    assert tap.feed(USAGE_CHUNK).startswith(END[: END.rindex(b"}")])
    assert tap.feed(DONE) == DONE


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("between", [b"", b": beat\n\n", b"\n", b": data, or so\n\n: beat\n\n"])
def test_it_is_there_wherever_the_network_cut_the_stream(line_end: bytes, between: bytes) -> None:
    stream = chunk("hello") + END + between + USAGE_CHUNK + DONE
    stream = stream.replace(b"\n", line_end)
    whole = relayed(stream, len(stream))
    shown = between if between != b"\n" else b""  # one more line end is the hidden event's
    plain = (chunk("hello") + END + shown + DONE).replace(b"\n", line_end)
    assert whole.count(b"system_fingerprint") == 1
    assert whole.replace(b',"system_fingerprint":"fp \xc3\xa9"', b"") == plain
    for place in range(1, len(stream)):
        tap = SseTap(Dialect.CHAT, hide_usage=True)
        parts = tap.feed(stream[:place]), tap.feed(stream[place:]), tap.close()
        assert b"".join(parts) == whole
