"""Where fields lie in their bytes: exactly there, or not at all."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.proxy.spans import SpanMismatch, array_end, walk_fields

Fields = dict[str, msgspec.Raw]
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
indents = st.sampled_from([None, 0, 2])


def read(body: bytes) -> Fields:
    return msgspec.json.decode(body, type=Fields)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=6), values, max_size=5), indents, st.booleans())
def test_every_field_lies_where_it_is_said_to(
    value: dict[str, object], indent: int | None, is_ascii: bool
) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode()
    spans = walk_fields(body, read(body))
    assert {s.name: json.loads(body[s.value : s.end]) for s in spans} == value
    assert [json.loads(b"{" + body[s.start : s.end] + b"}") for s in spans] == [
        {name: field} for name, field in value.items()
    ]


@pytest.mark.parametrize(
    ("body", "known", "at_fault"),
    [
        (b'{"a":1,"a":2}', b'{"a":2}', "a"),  # the decoder knows the last one only
        (b'{"a":1,"b":2,"a":1}', b'{"a":1,"b":2}', "a"),
        (b'{"a":1,"\\u0061":1}', b'{"a":1}', "a"),  # the same key, spelled otherwise
        (b'{"a":1,"b":2}', b'{"a":1}', "b"),
        (b'{"a":12}', b'{"a":1}', ""),  # what is known ends in the middle of a value
        (b'{"a":1', b'{"a":1}', ""),
        (b"[1]", b"{}", ""),
        (b"", b"{}", ""),
    ],
)
def test_bytes_that_hold_something_else_are_no_ground(
    body: bytes, known: bytes, at_fault: str
) -> None:
    with pytest.raises(SpanMismatch) as caught:
        walk_fields(body, read(known))
    assert caught.value.name == at_fault


@settings(max_examples=50)
@given(st.lists(values, max_size=4), indents)
def test_an_array_ends_where_it_does(items: list[object], indent: int | None) -> None:
    array = json.dumps(items, indent=indent).encode()
    raws = msgspec.json.decode(array, type=list[msgspec.Raw])
    assert array_end(b'{"a": ' + array + b', "b": 1}', raws, 6) == 6 + len(array)


@pytest.mark.parametrize(
    "body",
    [
        b"[1,2, 3]",  # items set apart in two ways: where they lie would have to be searched
        b"[1;2,3]",
        b"[1,2,4]",
        b"[1,2,3",
        b"{1,2,3}",
        b"",
    ],
)
def test_an_array_that_cannot_be_told_has_no_end(body: bytes) -> None:
    items = [msgspec.Raw(b"1"), msgspec.Raw(b"2"), msgspec.Raw(b"3")]
    assert array_end(body, items, 0) is None
