"""The tap: relays bytes as they are, and reads the same however they were cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sse_events import (
    CAPTURES,
    DONE,
    FINISH,
    USAGE_CHUNK,
    chat,
    cut,
    data,
    dialect_of,
    read,
    tapped,
)

from agentsched.proxy.answer import Answer
from agentsched.proxy.answers import read_answer
from agentsched.proxy.request import Dialect
from agentsched.proxy.sse import SseTap


class TestFraming:
    def test_whole_events_pass_at_once_and_parts_of_them_wait(self) -> None:
        tap = SseTap(Dialect.CHAT, hide_usage=False)
        first, second = chat({"content": "a"}), chat({"content": "b"})
        assert tap.feed(first + second[:10]) == first
        assert tap.feed(second[10:-1]) == b""
        assert tap.answer().text == "a"
        assert tap.feed(second[-1:] + first + first[:1]) == second + first
        assert tap.feed(first[1:]) == first
        assert tap.close() == b""

    def test_the_rest_of_a_stream_that_dies_within_an_event(self) -> None:
        tap = SseTap(Dialect.CHAT, hide_usage=False)
        assert tap.feed(FINISH + b"data: {") == FINISH
        assert tap.close() == b"data: {"
        assert tap.close() == b""

    def test_comments_names_and_several_data_lines(self) -> None:
        whole = json.dumps({"choices": [{"delta": {"content": "a"}}]}, indent=1).encode()
        lines = b"".join(b"data:" + line + b"\n" for line in whole.split(b"\n"))
        stream = b"\xef\xbb\xbf: hello\n\nretry: 5\nid: 7\n: c\n" + lines + b"event: x\n\n\n\n"
        relayed, tap = tapped(Dialect.CHAT, [stream])
        assert relayed == stream
        assert tap.answer().text == "a"
        assert tap.malformed_events == 0

    def test_malformed_events_are_relayed_and_counted(self) -> None:
        bad = [
            b"data: {\n\n",
            b"data: 5\n\n",
            b'data: {"choices": 5}\n\n',
            b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
            b"data: " + b"[" * 100_000 + b"\n\n",
        ]
        relayed, tap = tapped(Dialect.CHAT, [*bad, chat({"content": "still"})])
        assert relayed == b"".join(bad) + chat({"content": "still"})
        assert tap.answer().text == "still"
        assert tap.malformed_events == len(bad)

    def test_text_is_bounded(self) -> None:
        chunks = [chat({"content": "éa" * 10}), chat({"content": "b" * 10}), FINISH]
        relayed, tap = tapped(Dialect.CHAT, chunks, answer_chars_max=25)
        assert relayed == b"".join(chunks)
        answer = tap.answer()
        assert answer.text == "éa" * 10 + "b" * 5
        assert answer.is_truncated
        assert answer.is_complete

    def test_the_number_of_calls_is_bounded(self) -> None:
        calls = [
            chat({"tool_calls": [{"index": n, "id": f"i{n}", "function": {"arguments": "1"}}]})
            for n in range(1500)
        ]
        answer = read(Dialect.CHAT, *calls)
        assert len(answer.calls) == 1024
        assert answer.is_truncated

    @pytest.mark.parametrize("size", [100, 513, 100_000])
    def test_a_calls_id_is_whole_however_long(self, size: int) -> None:
        call = {"index": 0, "id": "i" * size, "function": {"name": "f", "arguments": "{}"}}
        streamed = read(Dialect.CHAT, chat({"tool_calls": [call]}), FINISH)
        choice = {"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
        whole = read_answer(Dialect.CHAT, json.dumps({"choices": [choice]}).encode())
        assert [a.calls[0].call_id for a in (streamed, whole)] == ["i" * size] * 2
        assert not streamed.is_truncated

    def test_ids_are_bounded_as_text_is(self) -> None:
        calls = [
            chat({"tool_calls": [{"index": n, "id": f"{n}" * 600, "function": {"name": "f"}}]})
            for n in range(9)
        ]
        _, tap = tapped(Dialect.CHAT, [*calls, FINISH], answer_chars_max=1_000)
        answer = tap.answer()
        assert sum(len(call.call_id) for call in answer.calls) == 1_000
        assert answer.is_truncated

    @pytest.mark.parametrize("size", [1, 7, 1000, 10_000])
    def test_after_a_huge_event_it_relays_blindly(self, size: int) -> None:
        stream = b"".join(
            [chat({"content": "a"}), FINISH, chat({"content": "x" * 5000}), USAGE_CHUNK, DONE]
        )
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        relayed, tap = tapped(Dialect.CHAT, pieces, hide_usage=True, event_bytes_max=1000)
        assert relayed == stream
        assert tap.answer().text == "a"
        assert tap.answer().usage is None

    def test_a_blind_tap_takes_a_good_end_for_the_answers(self) -> None:
        huge = chat({"content": "x" * 5_000})
        tap = SseTap(Dialect.CHAT, hide_usage=False, event_bytes_max=1_000)
        assert tap.feed(chat({"content": "a"}) + huge) == chat({"content": "a"}) + huge
        assert not tap.answer().is_complete
        tap.feed(FINISH + DONE)
        assert not tap.is_over
        tap.close()
        answer = tap.answer()
        assert (answer.text, answer.is_complete, answer.is_truncated) == ("a", True, True)

    def test_nor_does_it_hide_an_error_that_came_before(self) -> None:
        error = data({"error": {"message": "died", "code": 500}})
        huge = chat({"content": "x" * 5_000})
        _, tap = tapped(Dialect.CHAT, [error, huge], event_bytes_max=1_000)
        assert tap.answer().error == "died"

    @pytest.mark.parametrize("dialect", [Dialect.EMBEDDINGS, Dialect.OTHER, Dialect.COUNT_TOKENS])
    def test_what_generates_nothing_is_relayed(self, dialect: Dialect) -> None:
        relayed, tap = tapped(dialect, [USAGE_CHUNK, b"x"], hide_usage=True)
        assert relayed == USAGE_CHUNK + b"x"
        assert tap.answer() == Answer()


ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
EVENTS = st.sampled_from(
    [
        chat({"content": "wörd"}).strip(),
        chat({"role": "assistant", "content": ""}).strip(),
        chat({"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "{}"}}]}).strip(),
        FINISH.strip(),
        USAGE_CHUNK.strip(),
        DONE.strip(),
        b": comment",
        b"event: ping",
        b"data: {broken",
        b'data: {"error":{"message":"e"}}',
        b"data: {\ndata: }",
        b"",
        b"\xef\xbb\xbfdata: [DONE]",
        b"\xf0\x9f data",
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    pieces = []
    for block in draw(st.lists(EVENTS, max_size=8)):
        pieces += [block.replace(b"\n", draw(ENDS)), draw(ENDS), draw(ENDS)]
    return b"".join(pieces) + draw(st.sampled_from([b"", b"data: {", b"data: [DONE]", b"\r"]))


CUTS = st.lists(st.integers(0, 5000), max_size=12)


@pytest.mark.slow
class TestAnyCut:
    @given(st.sampled_from(sorted(CAPTURES.glob("*.sse"))), CUTS)
    @settings(max_examples=100, deadline=None)
    def test_every_whole_event_has_passed_and_nothing_else(
        self, path: Path, places: list[int]
    ) -> None:
        stream = path.read_bytes()
        tap = SseTap(dialect_of(path), hide_usage=False)
        fed = relayed = b""
        for chunk in cut(stream, places):
            fed += chunk
            relayed += tap.feed(chunk)
            whole, end, _ = fed.rpartition(b"\n\n")
            assert relayed == whole + end
        assert relayed == stream

    @given(streams(), CUTS, st.booleans(), st.sampled_from([40, 200, 10_000]))
    @settings(max_examples=250, deadline=None)
    def test_gives_the_same_bytes_and_answer(
        self, stream: bytes, places: list[int], hide_usage: bool, event_bytes_max: int
    ) -> None:
        whole, tap = tapped(
            Dialect.CHAT, [stream], hide_usage=hide_usage, event_bytes_max=event_bytes_max
        )
        pieces, other = tapped(
            Dialect.CHAT,
            cut(stream, places),
            hide_usage=hide_usage,
            event_bytes_max=event_bytes_max,
        )
        assert pieces == whole
        assert other.answer() == tap.answer()
        assert other.malformed_events == tap.malformed_events
        if not hide_usage:
            assert whole == stream
        singles = [stream[at : at + 1] for at in range(len(stream))]
        assert (
            tapped(Dialect.CHAT, singles, hide_usage=hide_usage, event_bytes_max=event_bytes_max)[0]
            == whole
        )

    @given(st.sampled_from(list(Dialect)), st.lists(st.binary(max_size=40), max_size=8))
    @settings(max_examples=150, deadline=None)
    def test_any_bytes_go_through(self, dialect: Dialect, chunks: list[bytes]) -> None:
        relayed, tap = tapped(dialect, chunks)
        assert relayed == b"".join(chunks)
        assert isinstance(tap.answer(), Answer)

    @given(
        st.sampled_from(sorted(CAPTURES.glob("*.sse"))),
        st.data(),
    )
    @settings(max_examples=150, deadline=None)
    def test_damaged_real_streams_go_through(self, path: Path, draws: st.DataObject) -> None:
        stream = bytearray(path.read_bytes())
        for _ in range(draws.draw(st.integers(0, 5))):
            stream[draws.draw(st.integers(0, len(stream) - 1))] = draws.draw(st.integers(0, 255))
        pieces = cut(bytes(stream), draws.draw(CUTS))
        relayed, tap = tapped(dialect_of(path), pieces)
        assert relayed == bytes(stream)
        assert tap.answer() == tapped(dialect_of(path), [bytes(stream)])[1].answer()

    @given(st.sampled_from(sorted(CAPTURES.glob("*.sse"))), CUTS)
    @settings(max_examples=100, deadline=None)
    def test_real_streams_are_read_the_same(self, path: Path, places: list[int]) -> None:
        stream = path.read_bytes()
        relayed, tap = tapped(dialect_of(path), cut(stream, places), hide_usage=True)
        whole, other = tapped(dialect_of(path), [stream], hide_usage=True)
        assert relayed == whole
        assert tap.answer() == other.answer()
        assert tap.malformed_events == 0
        assert tap.answer().is_complete
        assert tap.answer().usage is not None
