"""Normalisation: what clients reshape stays equal, what they change does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentsched.proxy.identity.atoms import (
    Kind,
    Normaliser,
    call_ref,
    canonical_arguments,
    spoken,
)
from agentsched.proxy.identity.signs import Sign

N = Normaliser(seed=7)


def atoms(value: Any) -> tuple[Any, ...]:
    return N.message(json.dumps(value).encode()).atoms


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a" : 1 }'}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"role": "user", "content": "T \n"}, {"role": "user", "content": "T"}),
        (
            {"role": "user", "content": "T"},
            {"role": "user", "content": [{"type": "text", "text": "T"}]},
        ),
        (
            {"role": "user", "content": "T"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "T"}]},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "T", "cache_control": {}}]},
            {"role": "user", "content": "T", "output_config": {"effort": "low"}},
        ),
        (
            {"role": "assistant", "content": "A", "reasoning_content": "hm", "annotations": []},
            {"role": "assistant", "content": [{"type": "output_text", "text": "A "}]},
        ),
        (
            {"role": "assistant", "content": "<think>so</think>\n\nA"},
            {"role": "assistant", "content": "A"},
        ),
        (
            {"role": "assistant", "content": "text", "tool_calls": [CALL]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "tool_calls": [CALL]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
        ),
        (
            {"role": "assistant", "tool_calls": [CALL]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "x", "signature": "s"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1.0}},
                ],
            },
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": "out\n"},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "out"},
                ],
            },
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "out"}]},
            {"type": "function_call_output", "call_id": "c1", "output": "out"},
        ),
    ],
)
def test_reshaped_messages_are_equal(one: Any, other: Any) -> None:
    assert atoms(one) == atoms(other)
    assert atoms(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"role": "user", "content": "T"}, {"role": "user", "content": "t"}),
        ({"role": "user", "content": "T"}, {"role": "assistant", "content": "T"}),
        ({"role": "user", "content": "T"}, {"role": "system", "content": "T"}),
        (
            {"role": "tool", "tool_call_id": "c1", "content": "x"},
            {"role": "tool", "tool_call_id": "c2", "content": "x"},
        ),
        (
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":2}'},
        ),
    ],
)
def test_changed_messages_differ(one: Any, other: Any) -> None:
    assert atoms(one) != atoms(other)


def test_every_end_of_a_block_is_a_place_to_match() -> None:
    before = atoms({"role": "user", "content": "a"})
    after = atoms({"role": "user", "content": [{"text": "a"}, {"type": "text", "text": "b"}]})
    joined = atoms({"role": "user", "content": "ab"})
    assert after[0] == before[0]
    assert after[1] == joined[0]


@pytest.mark.parametrize("value", [{"role": "user", "content": ""}, {"type": "reasoning"}, ""])
def test_what_says_nothing_leaves_no_atom(value: Any) -> None:
    assert atoms(value) == ()


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[1]", b'{"role": 5}', b"\xff\xfe", b'{"content": {"a": []}}']
)
def test_odd_messages_are_hashed_and_raise_nothing(raw: bytes) -> None:
    message = N.message(raw)
    assert all(atom.digest for atom in message.atoms)


def test_arguments_are_compared_as_values() -> None:
    assert canonical_arguments('{"b": 2, "a": [1.0]}') == canonical_arguments({"a": [1], "b": 2})
    assert canonical_arguments("") == canonical_arguments("{}") == canonical_arguments(None)
    assert canonical_arguments("not json ") == b"not json"


def test_prose_calls_name_their_ids() -> None:
    text = "Look.\nCalling tools:\n[{'id': 'chatcmpl-tool-1a2b', 'type': 'function'}]"
    (atom,) = atoms({"role": "assistant", "content": text})
    assert atom.kind == Kind.ASSISTANT
    assert atom.ref == "chatcmpl-tool-1a2b"


def test_hashes_are_keyed() -> None:
    raw = b'{"role":"user","content":"T"}'
    assert Normaliser(seed=1).message(raw) != Normaliser(seed=2).message(raw)


def test_many_blocks_cost_no_more_than_their_length() -> None:
    blocks = [{"type": "text", "text": "x" * 10}] * 5_000
    assert len(atoms({"role": "user", "content": blocks})) == 5_000


def test_signs_are_those_of_what_people_say() -> None:
    phrase = "Your task is to create a detailed summary of the conversation so far"
    asked = N.message(json.dumps({"role": "user", "content": phrase}).encode())
    read = N.message(json.dumps({"role": "tool", "tool_call_id": "c", "content": phrase}).encode())
    assert asked.signs == Sign.COMPACTION
    assert read.signs == Sign.NONE


def test_spoken_keeps_text_that_only_mentions_thinking() -> None:
    assert spoken("a </think> b") == "a </think> b"


def test_a_long_call_id_is_kept_as_its_hash() -> None:
    fits, long = "c" * 128, "c" * 129
    assert call_ref(fits) == fits
    assert call_ref(long) != call_ref(long + "c")
    assert len(call_ref("c" * 1_000_000)) == 2 + 32
    asked = {"role": "assistant", "tool_calls": [CALL | {"id": long}]}
    (call,) = atoms(asked)
    (answer,) = atoms({"role": "tool", "tool_call_id": long, "content": "out"})
    assert call.ref == answer.ref == call_ref(long)


def test_a_call_of_the_old_kind_is_one_without_an_id() -> None:
    old = {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    new = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    }
    assert atoms(old) == atoms(new)
    assert atoms(old)[0].kind == Kind.CALL
    answered = {"role": "function", "name": "f", "content": "out"}
    assert atoms(answered)[0].ref == "f"


@pytest.mark.parametrize("detail", ["f", None, 5, ["f"]])
def test_a_call_without_a_function_has_no_name(detail: Any) -> None:
    call = {"id": "c1", "function": detail}
    assert atoms({"role": "assistant", "tool_calls": [call, "noise"]}) == (N.call("c1", "", None),)


def test_tools_of_the_engines_own_are_part_of_no_history() -> None:
    own = {"type": "web_search_call", "id": "ws_1", "action": {"query": "x"}}
    assert atoms(own) == ()
    ours = {"type": "local_shell_call", "call_id": "c1", "action": {"command": ["ls"]}}
    assert atoms(ours) == (N.call("c1", "local_shell_call", {"command": ["ls"]}),)


def test_an_item_of_an_unknown_kind_is_what_a_user_sent() -> None:
    image = {"type": "input_image", "image_url": "data:..."}
    (atom,) = atoms(image)
    assert atom.kind == Kind.USER
    assert (atom,) == atoms({"role": "user", "content": [image]})
    assert atoms({"type": "input_text", "text": "T"}) == atoms({"role": "user", "content": "T"})


def test_blocks_of_other_kinds_part_the_text_and_drop_what_clients_add() -> None:
    image = {"type": "image", "source": {"data": "x"}}
    message = {
        "role": "user",
        "content": [
            {"type": "text", "text": "a"},
            image | {"cache_control": {"type": "ephemeral"}},
            {"type": "thinking", "thinking": "not kept"},
            {"type": "server_tool_use", "id": "s1"},
            5,
            "b",
        ],
    }
    alone = atoms({"role": "user", "content": [image]})
    first, second, third = atoms(message)
    assert second == alone[0]
    assert (first, third) == (
        atoms({"role": "user", "content": "a"})[0],
        atoms({"role": "user", "content": "b"})[0],
    )
    assert atoms({"role": "user", "content": [{"source": {"data": "x"}}]}) != alone


def test_of_an_answer_in_blocks_only_the_whole_text_counts() -> None:
    blocks = [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]
    whole = atoms({"role": "assistant", "content": "One. Two."})
    assert atoms({"role": "assistant", "content": blocks}) == whole
    # A call that stands between them is all that counts of it.
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
    assert atoms({"role": "assistant", "content": [blocks[0], call, blocks[1]]}) == (
        N.call("c1", "f", {"a": 1}),
    )


@pytest.mark.parametrize(
    ("content", "same"),
    [
        (["a", {"type": "text", "text": "b"}], "ab"),
        ([{"type": "image", "id": "1", "x": 1.0}], [{"x": 1, "type": "image", "id": "2"}]),
        ([["nested"]], '["nested"]'),
        ({"b": 1, "a": 2.0}, '{"a":2,"b":1}'),
        (None, ""),
        ([{"type": "text", "text": 5}], '{"text":5,"type":"text"}'),
    ],
)
def test_results_are_compared_as_text(content: Any, same: Any) -> None:
    assert N.result("c", content) == N.result("c", same)
    assert N.result("c", content) != N.result("c", "something else")
