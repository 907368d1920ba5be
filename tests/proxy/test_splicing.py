"""Splicing: only what is put or dropped changes; all other bytes stay as the client sent them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.splicing import SCHEDULER_FIELDS, forward_body, splice
from agentsched.proxy.wire import parse_request

spaces = st.sampled_from(["", " ", "\n", "\t", "\r\n  "])
names = st.sampled_from(["a", "b", "ab", "c", 'q"', "é", "agentsched", "z\\"])
spellings = st.sampled_from(
    ["1", "1.50", "1E+2", '"x"', '"}, \\"a\\": 1"', "[1, 2 ,3]", '{"a":{"b": [ ]}}', "null", '"é"']
)
new_values = st.sampled_from([1, 1.5, "x", "}é", [1, {"a": 2}], {"k": None}, True, None])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    pieces = [
        f"{draw(spaces)}{json.dumps(name)}{draw(spaces)}:{draw(spaces)}{draw(spellings)}"
        f"{draw(spaces)}"
        for name in draw(st.lists(names, max_size=6, unique=True))
    ]
    return f"{draw(spaces)}{{{','.join(pieces) or draw(spaces)}}}{draw(spaces)}".encode()


def other(body: bytes) -> ParsedRequest:
    return parse_request(Dialect.OTHER, body)


def field_texts(body: bytes) -> list[tuple[str, str]]:
    """Each field's name and its text from key to value, found by the standard library alone."""
    text = body.decode()
    decoder = json.JSONDecoder()
    position = text.index("{") + 1
    found: list[tuple[str, str]] = []
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "}":
            return found
        start = position
        name, position = decoder.raw_decode(text, position)
        position = text.index(":", position) + 1
        while text[position] in " \t\r\n":
            position += 1
        _, position = decoder.raw_decode(text, position)
        found.append((name, text[start:position]))


@pytest.mark.slow
class TestSplice:
    @given(bodies(), st.dictionaries(names, new_values, max_size=4), st.sets(names, max_size=4))
    @settings(max_examples=200, deadline=None)
    def test_it_updates_and_keeps_all_else(
        self, body: bytes, put: dict[str, object], drop: set[str]
    ) -> None:
        result = splice(other(body), put=put, drop=drop)
        before = json.loads(body)
        kept = {name: value for name, value in before.items() if name not in drop or name in put}
        assert json.loads(result) == kept | put
        assert list(json.loads(result)) == list(kept | put)
        texts = dict(field_texts(body))
        for name, text in field_texts(result):
            if name not in put:
                assert text == texts[name]
        assert splice(other(result), put=put, drop=drop) is result

    @given(bodies(), st.dictionaries(names, new_values, max_size=3))
    @settings(max_examples=150, deadline=None)
    def test_replacing_touches_the_values_alone(self, body: bytes, put: dict[str, object]) -> None:
        put = {name: value for name, value in put.items() if name in json.loads(body)}
        expected = body.decode()
        for name, text in field_texts(body):
            if name in put:
                value = text[text.index(":", len(json.dumps(name))) + 1 :].lstrip(" \t\r\n")
                new = msgspec.json.encode(put[name]).decode()
                expected = expected.replace(text, text[: len(text) - len(value)] + new, 1)
        assert splice(other(body), put=put) == expected.encode()

    @given(bodies())
    @settings(max_examples=100, deadline=None)
    def test_nothing_to_do_gives_the_body_itself(self, body: bytes) -> None:
        request = other(body)
        assert splice(request, put={}, drop=["not there"]) is request.body
        same = {name: msgspec.Raw(bytes(raw)) for name, raw in request.fields.items()}
        assert splice(request, put=same, drop=[]) is request.body

    def test_insertion_is_before_the_closing_brace(self) -> None:
        body = b'{\n  "model": "m",\n  "n": 1.0\n}\n'
        assert splice(other(body), put={"x": 1}) == b'{\n  "model": "m",\n  "n": 1.0\n,"x":1}\n'
        assert splice(other(b" { } "), put={"x": 1, "y": 2}) == b' { "x":1,"y":2} '

    def test_removal_takes_the_comma_along(self) -> None:
        body = b'{"a": 1, "b": 2, "c": 3}'
        assert splice(other(body), put={}, drop=["a"]) == b'{"b": 2, "c": 3}'
        assert splice(other(body), put={}, drop=["b"]) == b'{"a": 1, "c": 3}'
        assert splice(other(body), put={}, drop=["c"]) == b'{"a": 1, "b": 2}'
        assert splice(other(body), put={}, drop=["a", "b", "c"]) == b"{}"
        assert splice(other(body), put={"x": 0}, drop=["a", "b", "c"]) == b'{"x":0}'

    def test_what_is_no_object_stays(self) -> None:
        for body in (b"", b"[1]", b"x=1", b'{"a":1,"a":2}'):
            assert splice(other(body), put={"x": 1}, drop=["a"]) is body


def forwarded(
    document: dict[str, Any], dialect: Dialect = Dialect.CHAT, **fields: object
) -> dict[str, Any]:
    request = parse_request(dialect, json.dumps(document).encode())
    result: dict[str, Any] = json.loads(forward_body(request, fields=fields))
    return result


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class TestForwardBody:
    def test_a_plain_request_goes_as_it_came(self) -> None:
        body = json.dumps({**CHAT, "user": "u", "metadata": {"a": "b"}}, indent=3).encode()
        request = parse_request(Dialect.CHAT, body)
        assert forward_body(request, fields={}) is body

    @pytest.mark.parametrize(
        ("options", "sent"),
        [
            ({}, {"include_usage": True}),
            ({"stream_options": None}, {"include_usage": True}),
            ({"stream_options": {}}, {"include_usage": True}),
            ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
            ({"stream_options": {"x": [1]}}, {"x": [1], "include_usage": True}),
            ({"stream_options": {"continuous_usage_stats": True}}, {"include_usage": True}),
            (
                {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
                {"include_usage": True, "continuous_usage_stats": True},
            ),
            ({"stream_options": "wrong"}, "wrong"),
        ],
    )
    def test_usage_is_asked_for(self, options: dict[str, Any], sent: object) -> None:
        document = {**CHAT, "stream": True, **options}
        assert forwarded(document)["stream_options"] == sent

    def test_but_not_where_it_comes_anyway(self) -> None:
        assert "stream_options" not in forwarded(CHAT)
        messages = {**CHAT, "stream": True, "max_tokens": 1}
        assert "stream_options" not in forwarded(messages, Dialect.MESSAGES)
        responses = {"model": "m", "input": "hi", "stream": True}
        assert "stream_options" not in forwarded(responses, Dialect.RESPONSES)

    def test_scheduler_fields_go_and_openais_stay(self) -> None:
        kept = {"metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k", "session_id": "s"}
        noise = dict.fromkeys(SCHEDULER_FIELDS, "x")
        assert forwarded({**CHAT, **noise, **kept}) == {**CHAT, **kept}

    def test_a_caller_may_keep_them_for_an_engine_that_reads_them(self) -> None:
        body = json.dumps({**CHAT, "nvext": {"a": 1}, "job_id": "j"}).encode()
        request = parse_request(Dialect.CHAT, body)
        result = forward_body(request, fields={}, keep={"nvext"})
        assert json.loads(result) == {**CHAT, "nvext": {"a": 1}}

    @pytest.mark.parametrize(
        ("theirs", "sent"),
        [
            ({"agentic_context": {"program_id": "p"}}, None),
            ({"agentic_context": {"p": 1}, "session_id": "s"}, {"session_id": "s"}),
            ({"n": None, "x": 1}, {"x": 1}),
            ({"agentsched_grace_s": 600, "x": 1}, {"x": 1}),
            ({"agentsched_conversation": "another's", "agentsched_tenant": "t"}, None),
            (
                {"l": [1, "a", 2.5], "bad": [[1]], "worse": [{}], "null": [None]},
                {"l": [1, "a", 2.5]},
            ),
        ],
    )
    def test_what_stock_vllm_refuses_is_taken_out(self, theirs: object, sent: object) -> None:
        assert forwarded({**CHAT, "vllm_xargs": theirs}).get("vllm_xargs") == sent

    def test_what_it_takes_or_answers_itself_stays_to_the_byte(self) -> None:
        for text in (b'{"a" : 1.0, "t":true , "l":[ ]}', b"null", b'"wrong"', b"{ }"):
            body = b'{"model":"m","messages":[],"vllm_xargs": ' + text + b"}"
            request = parse_request(Dialect.CHAT, body)
            assert forward_body(request, fields={}) is body

    def test_engine_fields_win(self) -> None:
        document = {**CHAT, "priority": 9, "vllm_xargs": {"mine": 1, "both": 1}}
        sent = forwarded(
            document, priority=-3, session_id="s", cache_salt="c", vllm_xargs={"both": 2}
        )
        assert sent["priority"] == -3
        assert sent["session_id"] == "s"
        assert sent["cache_salt"] == "c"
        assert sent["vllm_xargs"] == {"mine": 1, "both": 2}
        assert forwarded(CHAT, vllm_xargs={"ours": "x"})["vllm_xargs"] == {"ours": "x"}

    def test_how_long_the_plugin_keeps_it_is_not_the_clients_to_say(self) -> None:
        document = {**CHAT, "vllm_xargs": {"agentsched_grace_s": 600, "x": 1}}
        ours = {"agentsched_conversation": "c"}
        assert forwarded(document, vllm_xargs=ours)["vllm_xargs"] == {"x": 1, **ours}
        body = json.dumps(document).replace("agentsched_", r"\u0061gentsched_").encode()
        sent = forward_body(parse_request(Dialect.CHAT, body), fields={"vllm_xargs": ours})
        assert json.loads(sent)["vllm_xargs"] == {"x": 1, **ours}

    def test_forwarding_twice_changes_nothing_more(self) -> None:
        document = {**CHAT, "stream": True, "agentsched": {}, "vllm_xargs": {"o": {}, "k": 1}}
        request = parse_request(Dialect.CHAT, json.dumps(document).encode())
        once = forward_body(request, fields={"priority": 1})
        again = parse_request(Dialect.CHAT, once)
        assert forward_body(again, fields={"priority": 1}) is once
