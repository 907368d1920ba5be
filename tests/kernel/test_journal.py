from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.kernel import (
    JournalEntry,
    JournalError,
    JournalHeader,
    decode,
    decode_header,
    encode,
    encode_header,
)
from agentsched.kernel.journal import subjects
from agentsched.model import (
    Command,
    Dispatch,
    EngineId,
    Event,
    Instant,
    Limits,
    Nanos,
    StepId,
    StepStarted,
    TimerFired,
)
from agentsched.policy import Choice

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """What fits a wire: 64-bit integers, finite floats, text without lone surrogates."""
    kind = getattr(kind, "__supertype__", kind)
    simple = {int: INTEGERS, float: FLOATS, str: TEXT, bool: st.booleans(), NoneType: st.none()}
    if kind in simple:
        return simple[kind]
    if kind is object:  # a policy's parameter
        return st.one_of(INTEGERS, FLOATS, TEXT, st.booleans())
    if kind is Limits:
        return st.builds(Limits, wait_ns_max=st.integers(1, 2**62), retries_max=st.integers(0, 9))
    if get_origin(kind) is Mapping:
        return st.dictionaries(TEXT, values(get_args(kind)[1]), max_size=3)
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return st.one_of([values(arm) for arm in get_args(kind)])
    if get_origin(kind) is tuple:
        return st.lists(values(get_args(kind)[0]), max_size=3).map(tuple)
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    hints = get_type_hints(kind)
    return st.builds(kind, **{f.name: values(hints[f.name]) for f in fields(kind)})


@pytest.mark.parametrize("cls", [*get_args(Event), *get_args(Command)])
@given(data=st.data())
def test_every_event_and_command_comes_back(cls: type, data: st.DataObject) -> None:
    part = data.draw(values(cls))
    is_event = cls in get_args(Event)
    entry = JournalEntry(
        seq=data.draw(st.integers(0, 2**63 - 1)),
        now=data.draw(INTEGERS),
        event=part if is_event else TimerFired(),
        commands=() if is_event else (part,),
    )
    line = encode(entry)
    assert b"\n" not in line
    assert decode(line) == entry
    assert type(decode(line).event) is type(entry.event)
    assert encode(decode(line)) == line


@given(entries=st.lists(values(Command), max_size=4))
def test_commands_keep_their_order(entries: list[Any]) -> None:
    entry = JournalEntry(seq=1, now=Instant(2), event=TimerFired(), commands=tuple(entries))
    assert decode(encode(entry)) == entry


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"null",
        b"\xff",
        b'{"seq":1,"now":1,"event":["TimerFired",{}],"commands":[],"more":1}',
        b'{"seq":1,"now":1,"event":["Unheard",{}],"commands":[]}',
        b'{"seq":1,"now":1,"event":["Dispatch",{}],"commands":[]}',
        b'{"seq":1,"now":1,"event":["StepStarted",{}],"commands":[]}',
        b'{"seq":1,"now":1,"event":["TimerFired",{}],"commands":[["TimerFired",{}]]}',
        b'{"seq":"1","now":1,"event":["TimerFired",{}],"commands":[]}',
    ],
)
def test_what_is_no_line_of_ours(line: bytes) -> None:
    with pytest.raises(JournalError):
        decode(line)


@given(line=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    for read in (decode, decode_header):
        try:
            read(line)
        except JournalError:
            continue


def test_subjects() -> None:
    dispatch = Dispatch(step=StepId("s2"), engine=EngineId("e1"))
    event = StepStarted(step=StepId("s1"))
    entry = JournalEntry(seq=0, now=Instant(0), event=event, commands=(dispatch,))
    assert list(subjects(entry)) == ["s1", "s2"]


HEADER = JournalHeader(
    profile="fcfs",
    choices={"admit": Choice(name="depth", params={"depth": 4}), "order": Choice(name="fcfs")},
    limits=Limits(programs_max=7, wait_ns_max=Nanos(5)),
    agentsched="1.2.3",
)


def test_header_comes_back() -> None:
    line = encode_header(HEADER)
    assert b"\n" not in line
    assert decode_header(line) == HEADER


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"journal":1', b'"journal":2', "version 2"),
        (b'"programs_max":7', b'"programs_max":0', "programs_max must be positive"),
        (b'"programs_max":7', b'"programmes_max":7', "programmes_max"),
        (b'"profile":"fcfs"', b'"profile":3', "not the header"),
        (b'"profile":"fcfs"', b'"profile":"fcfs","more":1', "more"),
        (b'"name":"fcfs"', b'"name":"fcfs","more":1', "more"),
    ],
)
def test_header_of_another_kind(old: bytes, new: bytes, says: str) -> None:
    line = encode_header(HEADER)
    assert old in line
    with pytest.raises(JournalError, match=says):
        decode_header(line.replace(old, new))


@pytest.mark.parametrize("read", [decode, decode_header])
@pytest.mark.parametrize(
    "line", [b'{"seq":"\xd8"}', b"\xff", b'{"\xc3":1}', b'{"seq":' + b"[" * 100_000]
)
def test_bytes_that_are_no_text_are_no_journal(read: Any, line: bytes) -> None:
    with pytest.raises(JournalError):
        read(line)
