"""Streamed answers in all dialects, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.proxy.request import Dialect
from agentsched_bench.live.dialects import Message, StreamReader, chat_body

_CHAT = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
    b": comment\n\n"
    b'data: {"choices":[{"delta":{"content":"h\xc3\xa9"}}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(_CHAT))))
def test_a_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    reader = StreamReader(dialect=Dialect.CHAT)
    places = [0, *sorted(cuts), len(_CHAT)]
    for start, end in itertools.pairwise(places):
        reader.feed(_CHAT[start:end])

    assert reader.text == "hé"
    assert (reader.prompt_tokens, reader.cached_tokens, reader.output_tokens) == (7, 4, 2)
    assert reader.is_complete
    assert not reader.error


def test_the_opening_chunk_is_not_a_token() -> None:
    reader = StreamReader(dialect=Dialect.CHAT)
    first, rest = _CHAT.split(b"\r\n\r\n")

    reader.feed(first + b"\n\n")
    assert not reader.has_token
    reader.feed(rest)
    assert reader.has_token


def test_anthropic_counts_cached_tokens_beside_the_others() -> None:
    reader = StreamReader(dialect=Dialect.MESSAGES)
    reader.feed(
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":'
        b'{"input_tokens":3,"cache_read_input_tokens":5,"cache_creation_input_tokens":2,'
        b'"output_tokens":0}}}\n\n'
        b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"x"}}\n\n'
        b'data: {"type":"message_delta","delta":{},"usage":{"output_tokens":9}}\n\n'
        b'data: {"type":"message_stop"}\n\n'
    )

    assert (reader.prompt_tokens, reader.cached_tokens, reader.output_tokens) == (10, 5, 9)
    assert reader.is_complete
    assert reader.text == "x"


@pytest.mark.parametrize(
    ("dialect", "data", "complaint"),
    [
        (Dialect.CHAT, b'{"error":{"message":"engine died"}}', "engine died"),
        (Dialect.CHAT, b'{"choices": 3}', "unreadable"),
        (Dialect.CHAT, b"\xff\xfe", "unreadable"),
        (
            Dialect.RESPONSES,
            b'{"type":"response.failed","response":{"error":{"message":"no"}}}',
            "failed",
        ),
        (Dialect.MESSAGES, b'{"type":"error","error":{"type":"overloaded_error"}}', "overloaded"),
    ],
)
def test_errors_inside_a_stream_are_kept(dialect: Dialect, data: bytes, complaint: str) -> None:
    reader = StreamReader(dialect=dialect)
    reader.feed(b"data: " + data + b"\n\n")

    assert complaint in reader.error
    assert not reader.is_complete


def test_bodies_ask_for_exact_lengths_where_they_can() -> None:
    prompt = [Message(role="system", text="s"), Message(role="user", text="u")]

    chat = chat_body(Dialect.CHAT, prompt, model="m", output_tokens=9)
    responses = chat_body(Dialect.RESPONSES, prompt, model="m", output_tokens=9)
    messages = chat_body(Dialect.MESSAGES, prompt, model="m", output_tokens=9)

    assert (chat["max_tokens"], chat["min_tokens"], chat["ignore_eos"]) == (9, 9, True)
    assert (responses["max_output_tokens"], responses["instructions"]) == (9, "s")
    assert (messages["max_tokens"], messages["system"]) == (9, "s")
    assert messages["messages"] == [{"role": "user", "content": "u"}]


def test_what_a_system_or_a_developer_says_later_stays_where_it_was_said() -> None:
    """A prompt that goes on begins as the one before; and Anthropic's API knows two roles."""
    roles = ("system", "developer", "user", "assistant", "system", "user")
    prompt = [Message(role=role, text=f"{role} {at}") for at, role in enumerate(roles)]

    responses = chat_body(Dialect.RESPONSES, prompt, model="m", output_tokens=9)
    messages = chat_body(Dialect.MESSAGES, prompt, model="m", output_tokens=9)

    assert responses["instructions"] == messages["system"] == "system 0"
    assert responses["input"] == [{"role": m.role, "content": m.text} for m in prompt[1:]]
    assert messages["messages"] == [
        {"role": m.role if m.role == "assistant" else "user", "content": m.text} for m in prompt[1:]
    ]
