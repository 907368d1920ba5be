"""Packed entries."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from shorthand import arrived, finished, pin, prefix, tool_call

from agentsched.kernel import JournalEntry, encode
from agentsched.kernel.story import pack, unpack
from agentsched.model import (
    CallId,
    Command,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    HintAnswered,
    HintOutcome,
    Instant,
    Lineage,
    PinId,
    Reject,
    RejectReason,
    StepArrived,
    StepClass,
    StepId,
    TimerFired,
)

STEP = StepId("s1")
HASH = "ab" * 16
PREFIX = prefix(HASH, 12)
ARRIVED = arrived(
    STEP,
    "p1",
    conversation="p1#0",
    tokens=100,
    prefixes=(PREFIX,) * 7,
    step_class=StepClass.SUBAGENT,
    lineage=Lineage.FORKS,
    answers=(CallId("c1"), CallId("c2")),
    deadline=Instant(7),
    priority=-3,
)
FINISHED = finished(
    STEP,
    tool_call("c3"),
    prompt=3,
    output=2**40,
    finish_reason="tool_calls",
    prefix=PREFIX,
)
PINNED = pin("pin-1", "p1", conversation="p1#0", of=HASH, tokens=12, until=9, value=0.25)


@pytest.mark.parametrize(
    ("event", "commands"),
    [
        (ARRIVED, (Dispatch(step=STEP, engine=EngineId("e"), order="fcfs"),)),
        (ARRIVED, (Reject(step=STEP, reason=RejectReason.QUEUE_FULL, retry_after=None),)),
        (FINISHED, (PINNED,)),
        (finished(STEP), ()),
        (EngineLost(engine=EngineId("e"), reason="gone"), ()),
        (HintAnswered(pin=PinId("pin-1"), outcome=HintOutcome.ACCEPTED), ()),
        (TimerFired(), ()),
    ],
)
def test_all_but_the_prefixes_comes_back(event: Event, commands: tuple[Command, ...]) -> None:
    entry = JournalEntry(seq=5, now=Instant(2**62), event=event, commands=commands)
    changes: dict[str, Any] = {"prefixes": ()} if isinstance(event, StepArrived) else {}
    expected = dataclasses.replace(entry, event=dataclasses.replace(event, **changes))
    assert unpack(pack(entry)) == expected


def test_it_is_small() -> None:
    entry = JournalEntry(seq=5, now=Instant(2**62), event=ARRIVED, commands=())
    assert len(pack(entry)) < len(encode(entry)) / 4


def test_an_end_is_small() -> None:
    entry = JournalEntry(seq=5, now=Instant(2**62), event=FINISHED, commands=(PINNED,))
    assert len(pack(entry)) < len(encode(entry)) / 3
