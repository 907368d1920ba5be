"""Parsing: what is read, what is refused, and that both ways of reading agree with `json`."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.model import WireError
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.wire import WireLimits, parse_request

PROMPTS: dict[Dialect, dict[str, object]] = {
    Dialect.CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    Dialect.COMPLETIONS: {"prompt": "hi"},
    Dialect.RESPONSES: {"input": [{"role": "user", "content": "hi"}]},
    Dialect.MESSAGES: {"messages": [{"role": "user", "content": "hi"}]},
    Dialect.COUNT_TOKENS: {"messages": [{"role": "user", "content": "hi"}]},
    Dialect.EMBEDDINGS: {"input": "hi"},
}


def parse(dialect: Dialect = Dialect.CHAT, /, **fields: object) -> ParsedRequest:
    document = {"model": "m", **PROMPTS[dialect], **fields}
    return parse_request(dialect, json.dumps(document).encode())


def refusal(body: bytes, *, dialect: Dialect = Dialect.CHAT, **limits: int) -> WireError:
    with pytest.raises(WireError) as caught:
        parse_request(dialect, body, WireLimits(**limits))
    return caught.value


def decoded(raw: msgspec.Raw | None) -> object:
    return None if raw is None else json.loads(bytes(raw))


class TestReading:
    def test_a_chat_request(self) -> None:
        request = parse(stream=True, max_tokens=7, tools=[{"type": "function"}], temperature=0.5)
        assert request.model == "m"
        assert request.is_stream
        assert not request.wants_usage
        assert request.output_tokens_max == 7
        assert [decoded(raw) for raw in request.messages] == PROMPTS[Dialect.CHAT]["messages"]
        assert decoded(request.tools) == [{"type": "function"}]
        assert request.system is None
        assert list(request.fields) == [
            "model",
            "messages",
            "stream",
            "max_tokens",
            "tools",
            "temperature",
        ]

    def test_a_responses_request(self) -> None:
        request = parse(Dialect.RESPONSES, instructions="be kind", max_output_tokens=9, stream=True)
        assert decoded(request.system) == "be kind"
        assert request.output_tokens_max == 9
        assert request.wants_usage
        assert len(request.messages) == 1
        plain = parse(Dialect.RESPONSES, input="just a string")
        assert [decoded(raw) for raw in plain.messages] == ["just a string"]

    def test_a_messages_request(self) -> None:
        request = parse(Dialect.MESSAGES, system=[{"type": "text", "text": "s"}], max_tokens=5)
        assert decoded(request.system) == [{"type": "text", "text": "s"}]
        assert request.output_tokens_max == 5

    @pytest.mark.parametrize("prompt", ["hi", ["a", "b"], [1, 2, 3], [[1], [2]]])
    def test_a_completions_prompt_is_one_item(self, prompt: object) -> None:
        request = parse(Dialect.COMPLETIONS, prompt=prompt)
        assert [decoded(raw) for raw in request.messages] == [prompt]

    def test_completions_may_bring_embeddings_instead(self) -> None:
        body = b'{"model":"m","prompt_embeds":"AAAA"}'
        assert parse_request(Dialect.COMPLETIONS, body).messages == ()

    @pytest.mark.parametrize(
        ("options", "wanted"),
        [
            (None, False),
            ({}, False),
            ({"include_usage": False}, False),
            ({"include_usage": None}, False),
            ({"include_usage": True}, True),
            ({"include_usage": 1}, True),
            ("nonsense", True),
        ],
    )
    def test_who_wants_usage(self, options: object, wanted: bool) -> None:
        assert parse(stream=True, stream_options=options).wants_usage is wanted

    def test_usage_of_a_whole_answer_is_always_sent(self) -> None:
        assert parse(stream=False).wants_usage
        assert parse(Dialect.MESSAGES, stream=True).wants_usage

    @pytest.mark.parametrize(
        ("value", "is_stream"),
        [(True, True), (False, False), (None, False), (1, True), ("true", True), ("no", False)],
    )
    def test_stream_is_read_as_engines_read_it(self, value: object, is_stream: bool) -> None:
        assert parse(stream=value).is_stream is is_stream
        responses = parse(Dialect.RESPONSES, stream=True, background=value)
        assert responses.is_background is is_stream
        assert not parse(background=value).is_background

    @pytest.mark.parametrize(
        ("value", "tokens"),
        [(5, 5), (5.0, 5), (5.5, None), ("5", None), (None, None), (-1, None), (1e300, None)],
    )
    def test_odd_output_limits_are_the_engines_to_refuse(
        self, value: object, tokens: int | None
    ) -> None:
        assert parse(max_tokens=value).output_tokens_max == tokens

    def test_the_newer_output_limit_wins(self) -> None:
        assert parse(max_tokens=5, max_completion_tokens=6).output_tokens_max == 6

    def test_raw_values_are_views(self) -> None:
        body = json.dumps({"model": "m", **PROMPTS[Dialect.CHAT]}, indent=2).encode()
        request = parse_request(Dialect.CHAT, body)
        assert request.body is body
        assert bytes(request.fields["messages"]) in body

    def test_captured_clients_are_read(self) -> None:
        for indent in (None, 1):
            for unknown in ({}, {"never_heard_of": {"x": [1]}}):
                document = {
                    "model": "gpt",
                    "messages": [{"role": "user", "content": f"{n} é \n"} for n in range(30)],
                    "stream": True,
                    **unknown,
                }
                body = json.dumps(document, indent=indent, ensure_ascii=False).encode()
                request = parse_request(Dialect.CHAT, body)
                assert [decoded(raw) for raw in request.messages] == document["messages"]
                assert {name: decoded(raw) for name, raw in request.fields.items()} == document


class TestOther:
    @pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[1]", b"{", b'{"a":1,"a":2}', b"x=1"])
    def test_what_is_no_object_has_no_fields(self, body: bytes) -> None:
        request = parse_request(Dialect.OTHER, body)
        assert request.body is body
        assert request.fields == {}

    def test_an_object_gives_model_and_fields(self) -> None:
        request = parse_request(Dialect.OTHER, b'{"model":"m","prompt":"x","stream":true}')
        assert request.model == "m"
        assert request.is_stream
        assert list(request.fields) == ["model", "prompt", "stream"]
        assert parse_request(Dialect.OTHER, b'{"model":5}').model == ""

    def test_its_size_is_bounded_too(self) -> None:
        assert refusal(b"12345", dialect=Dialect.OTHER, body_bytes_max=4).status == 413


class TestRefusing:
    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            (b"", "invalid_json", None),
            (b"{", "invalid_json", None),
            (b"nonsense", "invalid_json", None),
            (b"[]", "invalid_json", None),
            (b'"x"', "invalid_json", None),
            (b'{"model":"m","messages":[]} x', "invalid_json", None),
            (b'{"model":"m","messages":[],}', "invalid_json", None),
            (b'{"model":"m","messages":[{"content":"\xff"}]}', "invalid_json", None),
            (b'{"model":"m","\xff":1,"messages":[]}', "invalid_json", None),
            (b'{"model":"m","temperature":NaN,"messages":[]}', "invalid_json", None),
            (b'{"messages":[]}', "missing_required_parameter", "model"),
            (b'{"model":null,"messages":[]}', "missing_required_parameter", "model"),
            (b'{"model":"","messages":[]}', "missing_required_parameter", "model"),
            (b'{"model":5,"messages":[]}', "invalid_type", "model"),
            (b'{"model":"m"}', "missing_required_parameter", "messages"),
            (b'{"model":"m","messages":null}', "missing_required_parameter", "messages"),
            (b'{"model":"m","messages":"hi"}', "invalid_type", "messages"),
            (b'{"model":"m","messages":{}}', "invalid_type", "messages"),
            (b'{"model":"m","messages":[],"model":"n"}', "duplicate_field", "model"),
            (b'{"model":"m","messages":[],"mod\\u0065l":"n"}', "duplicate_field", "model"),
            (b'{"model":"m","x":1,"x":12,"messages":[]}', "duplicate_field", "x"),
        ],
    )
    def test_with_code_and_field(self, body: bytes, code: str, param: str | None) -> None:
        error = refusal(body)
        assert (error.status, error.code, error.param) == (400, code, param)
        assert error.message

    @pytest.mark.parametrize("text", ["\\ud83d", "\\uD83D, cut", "\\ud83d\\ud83d", "x\\udc00 y"])
    def test_half_of_a_character_is_called_so(self, text: str) -> None:
        start = '{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ude00 \\\\ud83d '
        body = f'{start}{text}"}}]}}'.encode()
        place = len(start) + text.index("\\")
        assert f"half of a character (byte {place})" in refusal(body).message

    @pytest.mark.parametrize("body", [b'{"a":"\\ud83d\\ude00', b'{"a":"\\u12', b'{"a":"\\\\ud83d'])
    def test_and_what_is_cut_short_is_called_truncated(self, body: bytes) -> None:
        assert "truncated" in refusal(body).message

    def test_nesting_beyond_the_decoder(self) -> None:
        for depth in (100_000, 1_000_000):
            body = b'{"model":"m","messages":[' + b"[" * depth + b"]" * depth + b"]}"
            assert refusal(body).code == "invalid_json"

    @pytest.mark.parametrize("dialect", [Dialect.RESPONSES, Dialect.COMPLETIONS])
    def test_each_dialect_has_its_prompt(self, dialect: Dialect) -> None:
        (name,) = PROMPTS[dialect]
        assert refusal(b'{"model":"m"}', dialect=dialect).param == name

    def test_limits(self) -> None:
        body = json.dumps({"model": "mmm", "messages": [{}, {}, {}], "x": 1}).encode()
        assert refusal(body, body_bytes_max=20).status == 413
        assert refusal(body, messages_max=2).code == "array_above_max_length"
        assert refusal(body, fields_max=2).code == "object_above_max_length"
        assert refusal(body, model_chars_max=2).code == "string_above_max_length"
        assert refusal(body.replace(b"mmm", b"m" * 5000)).param == "model"
        assert parse_request(Dialect.CHAT, body).model == "mmm"

    @pytest.mark.parametrize(
        ("items", "code"),
        [(b"{}," * 400_000 + b"{}", "array_above_max_length"), (b"1," * 600_000 + b"1", None)],
    )
    def test_a_long_list_is_counted_before_it_is_told_apart(
        self, items: bytes, code: str | None
    ) -> None:
        error = refusal(b'{"model":"m","messages":[' + items + b"]}")
        assert error.code == (code or "invalid_type")

    def test_a_long_body_is_read(self) -> None:
        messages = [{"role": "user", "content": "x" * 3000, "n": n} for n in range(800)]
        body = json.dumps({"model": "m", "messages": messages}).encode()
        request = parse_request(Dialect.CHAT, body)
        assert [decoded(raw) for raw in request.messages] == messages


# Text that is JSON in many spellings, with keys that collide and strings that look like JSON.
spaces = st.sampled_from(["", " ", "\n", "\t ", "\r\n  "])
keys = st.sampled_from(["model", "messages", "stream", "a", "b", "ab", "é", 'q"', "a\\b", ""])
tricky = st.text(alphabet='",:{}[]ab1 \\mé', max_size=12)


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    kinds = ["number", "string", "word"] + (["list", "object"] if depth else [])
    match draw(st.sampled_from(kinds)):
        case "number":
            return draw(st.sampled_from(["0", "1", "12", "-0", "1.50", "1E+2", "123456789012"]))
        case "string":
            return json.dumps(draw(tricky), ensure_ascii=draw(st.booleans()))
        case "word":
            return draw(st.sampled_from(["true", "false", "null"]))
        case "list":
            items = draw(st.lists(values(depth=depth - 1), max_size=3))
            comma = draw(st.sampled_from([",", ", ", " ,\n"]))
            return f"[{draw(spaces)}{comma.join(items)}{draw(spaces)}]"
        case _:
            return draw(objects(depth=depth - 1))


@st.composite
def objects(draw: st.DrawFn, depth: int = 2) -> str:
    pieces = [
        f"{draw(spaces)}{json.dumps(key)}{draw(spaces)}:{draw(spaces)}"
        f"{draw(values(depth=depth))}{draw(spaces)}"
        for key in draw(st.lists(keys, max_size=6))
    ]
    return f"{draw(spaces)}{{{','.join(pieces) or draw(spaces)}}}{draw(spaces)}"


def parsed_or_refused(dialect: Dialect, body: bytes) -> ParsedRequest | None:
    """The request, or None for one that was refused as it should be; anything else is raised."""
    try:
        return parse_request(dialect, body)
    except WireError as error:
        if error.status != 400:
            raise
        return None


@pytest.mark.slow
class TestAgreesWithJson:
    @given(objects(), st.sampled_from(["", '"never_heard_of":1']))
    @settings(max_examples=200, deadline=None)
    def test_fields_and_duplicates(self, text: str, unknown: str) -> None:
        head = '{"model":"m","messages":[{"role":"user"},{"content":"a"}]' + (
            f",{unknown}" if unknown else ""
        )
        inner = text.strip()[1:]
        text = head + ("," if inner.strip() != "}" else "") + inner
        pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            assert refusal(text.encode()).code == "duplicate_field"
            return
        request = parse_request(Dialect.CHAT, text.encode())
        assert list(request.fields) == names
        assert {n: decoded(raw) for n, raw in request.fields.items()} == json.loads(text)
        assert [decoded(raw) for raw in request.messages] == json.loads(text)["messages"]

    @given(st.sampled_from(list(Dialect)), st.binary(max_size=60))
    @settings(max_examples=150, deadline=None)
    def test_any_bytes_are_parsed_or_refused(self, dialect: Dialect, body: bytes) -> None:
        request = parsed_or_refused(dialect, body)
        assert request is None or request.body is body

    @given(objects(), st.data())
    @settings(max_examples=150, deadline=None)
    def test_damaged_objects_too(self, text: str, data: st.DataObject) -> None:
        body = bytearray(text.encode())
        for _ in range(data.draw(st.integers(0, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        request = parsed_or_refused(data.draw(st.sampled_from(list(Dialect))), bytes(body))
        assert request is None or request.body == bytes(body)
