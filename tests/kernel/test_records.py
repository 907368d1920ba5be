"""What the scheduler's records keep, and for how long."""

from __future__ import annotations

from agentsched.kernel.records import ConversationRecord
from agentsched.model import CallId, ConversationId, Instant, ProgramId, ToolName


def test_answered_calls_are_remembered_and_bounded() -> None:
    record = ConversationRecord(
        conversation=ConversationId("c"), program=ProgramId("p"), last_at=Instant(0)
    )
    calls = [CallId(f"call-{n}") for n in range(100)]
    record.tools = {call: ToolName(f"bash {call}") for call in calls}
    record.answer([*calls[:3], CallId("unheard-of")])
    assert list(record.tools) == calls[3:]
    assert record.answered == {call: f"bash {call}" for call in calls[:3]}
    record.answer(calls[:99])
    assert list(record.tools) == calls[99:]
    # The latest ones stay.
    assert list(record.answered) == calls[99 - 32 : 99]
