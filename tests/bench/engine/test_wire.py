"""Request parsing: any JSON is either understood or refused as the client's error."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.model.errors import WireError
from agentsched_bench.engine.answers import compose
from agentsched_bench.engine.ask import Ask
from agentsched_bench.engine.wire import (
    parse_chat,
    parse_completion,
    parse_messages,
    parse_responses,
)

WORDS = (
    "model messages input prompt role content type text tool_calls function name arguments tools "
    "tool_choice max_tokens min_tokens stop stream system id call_id output tool_use_id n seed "
    "vllm_xargs priority stream_options instructions max_output_tokens stop_sequences parameters "
    "properties required enum const input_schema ignore_eos"
)
KEYS = st.sampled_from(sorted(WORDS.split(" ")))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["user", "assistant", "tool_use", "tool_result", "function_call", "text"])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=6)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"])},
        optional={"content": VALUES, "tool_calls": VALUES, "type": VALUES, "name": VALUES},
    ),
    min_size=1,
    max_size=3,
)


def parsed(body: bytes) -> list[Ask]:
    """What the four parsers make of it; anything but an `Ask` or a `WireError` fails the test."""
    asks = []
    for parse in (
        lambda data: parse_chat(data, default_model="m"),
        lambda data: parse_completion(data, default_model="m"),
        lambda data: parse_responses(data, default_model="m"),
        parse_messages,
    ):
        with contextlib.suppress(WireError):
            asks.append(parse(body))
    for ask in asks:
        if ask.prompt:
            assert 0 < len(compose(ask, key="k", room=40, seed=0).tokens) <= 40
    return asks


@pytest.mark.slow
@settings(max_examples=100)
@given(extra=OBJECTS, messages=MESSAGES | VALUES)
def test_any_object_is_understood_or_refused(extra: dict[str, Any], messages: Any) -> None:
    put_everywhere({**extra, "model": "m", "max_tokens": 5}, messages)


@pytest.mark.slow
@settings(max_examples=100)
@given(messages=MESSAGES, schemas=st.lists(OBJECTS, max_size=2))
def test_any_message_is_understood_or_refused(messages: Any, schemas: Any) -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": schema}} for schema in schemas
    ]
    body = {"model": "m", "max_tokens": 5, "tools": tools, "tool_choice": "required"}
    put_everywhere(body, messages)


def put_everywhere(body: dict[str, Any], messages: Any) -> None:
    """Parse `body` with `messages` in each place where a dialect has them."""
    parsed(json.dumps({**body, "messages": messages}).encode())
    parsed(json.dumps({**body, "input": messages}).encode())
    parsed(json.dumps({**body, "prompt": messages}).encode())


@given(body=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_understood_or_refused(body: bytes) -> None:
    parsed(body)


def test_deep_nesting_is_refused() -> None:
    body = (
        b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 5000 + b"]" * 5000 + b"}]}"
    )
    assert parsed(body) == []


def test_four_dialects_of_one_conversation_have_one_prompt() -> None:
    plain = {"model": "m", "max_tokens": 5}
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "list"},
        {
            "role": "assistant",
            "content": "look",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "a b"},
    ]
    chat = parse_chat(json.dumps({**plain, "messages": messages}).encode(), default_model="m")
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "look"}],
        },
        {"type": "function_call", "call_id": "1", "name": "bash", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "a b"},
    ]
    responses = parse_responses(
        json.dumps({"model": "m", "instructions": "be short", "input": items}).encode(),
        default_model="m",
    )
    blocks = [
        {"role": "user", "content": "list"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "tool_use", "id": "1", "name": "bash", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "1", "content": "a b"}],
        },
    ]
    claude = parse_messages(
        json.dumps(
            {**plain, "system": [{"type": "text", "text": "be short"}], "messages": blocks}
        ).encode()
    )
    assert list(chat.prompt) == list(responses.prompt) == list(claude.prompt)
    assert (chat.first_user, chat.answers) == ("list", 1)
    assert (responses.answers, claude.answers) == (1, 1)


@pytest.mark.parametrize(
    ("prompt", "tokens"), [("abcdefgh", 2), ([1, 2, 3], 3), (["abcd"], 1), ([[7, 8]], 2)]
)
def test_prompts_come_in_four_shapes(prompt: Any, tokens: int) -> None:
    ask = parse_completion(json.dumps({"prompt": prompt}).encode(), default_model="m")
    assert len(ask.prompt) == tokens
