"""Packed entries."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agentsched.kernel import JournalEntry, encode
from agentsched.kernel.story import pack, unpack
from agentsched.model import (
    CallId,
    Command,
    ConversationId,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    HintAnswered,
    HintOutcome,
    Instant,
    Lineage,
    Pin,
    PinId,
    Prefix,
    PrefixId,
    ProgramId,
    Reject,
    RejectReason,
    StepArrived,
    StepClass,
    StepFinished,
    StepId,
    TenantId,
    TimerFired,
    ToolCall,
    ToolName,
    Usage,
)

STEP, PROGRAM = StepId("s1"), ProgramId("p1")
PREFIX = Prefix(prefix=PrefixId("ab" * 16), tokens=12)
ARRIVED = StepArrived(
    step=STEP,
    program=PROGRAM,
    conversation=ConversationId("p1#0"),
    tenant=TenantId("t"),
    prompt_tokens=100,
    prefixes=(PREFIX,) * 7,
    step_class=StepClass.SUBAGENT,
    lineage=Lineage.FORKS,
    answers=(CallId("c1"), CallId("c2")),
    deadline=Instant(7),
    priority=-3,
)
FINISHED = StepFinished(
    step=STEP,
    usage=Usage(prompt_tokens=3, cached_tokens=None, output_tokens=2**40),
    tool_calls=(ToolCall(call_id=CallId("c3"), tool=ToolName("bash")),),
    finish_reason="tool_calls",
    prefix=PREFIX,
)
PINNED = Pin(
    pin=PinId("pin-1"),
    program=PROGRAM,
    conversation=ConversationId("p1#0"),
    engine=EngineId("e"),
    prefix=PREFIX,
    expires_at=Instant(9),
    value=0.25,
)


@pytest.mark.parametrize(
    ("event", "commands"),
    [
        (ARRIVED, (Dispatch(step=STEP, engine=EngineId("e"), order="fcfs"),)),
        (ARRIVED, (Reject(step=STEP, reason=RejectReason.QUEUE_FULL, retry_after=None),)),
        (FINISHED, (PINNED,)),
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
