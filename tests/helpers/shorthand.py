"""Events, hints and engines in short words: what a test leaves out is not what it is about.

Names are plain strings. All that is not said is the same every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentsched.kernel.records import StepRecord
from agentsched.model import (
    SECOND,
    CallId,
    Capabilities,
    ConversationId,
    EngineId,
    EngineLoad,
    EngineReported,
    Instant,
    Pin,
    PinId,
    Prefetch,
    Prefix,
    PrefixId,
    ProgramId,
    StepArrived,
    StepFinished,
    StepId,
    TenantId,
    ToolCall,
    ToolName,
    Unpin,
    UnpinReason,
    Usage,
)

#: Later than any test ends.
NEVER = Instant(10**18)


def at(time_s: float) -> Instant:
    return Instant(round(time_s * SECOND))


@dataclass
class Still:
    """A clock that stands until the test moves it."""

    at: Instant

    def now(self) -> Instant:
        return self.at

    def move(self, time_s: float) -> None:
        self.at = Instant(self.at + round(time_s * SECOND))


def reported(engine: str = "e", **capabilities: Any) -> EngineReported:
    """An engine of which no more is known than these capabilities, and nothing of its load."""
    return EngineReported(
        engine=EngineId(engine), capabilities=Capabilities(**capabilities), load=EngineLoad()
    )


def prefix(name: str, tokens: int) -> Prefix:
    return Prefix(prefix=PrefixId(name), tokens=tokens)


def arrived(
    step: str,
    program: str = "p",
    *,
    conversation: str = "",
    tenant: str = "t",
    tokens: int = 10,
    **more: Any,
) -> StepArrived:
    """A prompt of so many tokens; a program's only conversation is called as the program is."""
    return StepArrived(
        step=StepId(step),
        program=ProgramId(program),
        conversation=ConversationId(conversation or program),
        tenant=TenantId(tenant),
        prompt_tokens=tokens,
        **more,
    )


def waiting(step: StepArrived, *, since: int = 0) -> StepRecord:
    """What the scheduler keeps of a step that arrived at this instant and waits."""
    return StepRecord(
        arrived=step,
        tenant=step.tenant,
        arrived_at=Instant(since),
        waiting_since=Instant(since),
    )


def tool_call(call: str, tool: str = "bash") -> ToolCall:
    return ToolCall(call_id=CallId(call), tool=ToolName(tool))


def finished(
    step: str,
    *calls: ToolCall,
    prompt: int = 0,
    cached: int | None = None,
    output: int = 0,
    **more: Any,
) -> StepFinished:
    usage = Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)
    return StepFinished(step=StepId(step), usage=usage, tool_calls=calls, **more)


def answered(step: str, *, is_last: bool = False, **usage: int) -> StepFinished:
    """As agents are answered: a call of `bash` that is named as the step, or the last word."""
    if is_last:
        return finished(step, finish_reason="stop", **usage)
    return finished(step, tool_call(step), finish_reason="tool_calls", **usage)


def pin(
    name: str = "pin",
    program: str = "p",
    *,
    conversation: str = "",
    engine: str = "e",
    of: str = "x",
    tokens: int = 10,
    until: int = NEVER,
    value: float = 0.0,
) -> Pin:
    """So many tokens, the prefix `of`, until this instant."""
    return Pin(
        pin=PinId(name),
        program=ProgramId(program),
        conversation=ConversationId(conversation or program),
        engine=EngineId(engine),
        prefix=prefix(of, tokens),
        expires_at=Instant(until),
        value=value,
    )


def unpin(
    name: str = "pin", *, engine: str = "e", reason: UnpinReason = UnpinReason.RELEASED
) -> Unpin:
    return Unpin(pin=PinId(name), engine=EngineId(engine), reason=reason)


def prefetch(
    name: str = "warm-up",
    program: str = "p",
    *,
    conversation: str = "",
    engine: str = "e",
    tokens: int = 10,
    wanted_by: int = 0,
) -> Prefetch:
    return Prefetch(
        pin=PinId(name),
        program=ProgramId(program),
        conversation=ConversationId(conversation or program),
        engine=EngineId(engine),
        prefix=prefix("x", tokens),
        wanted_by=Instant(wanted_by),
    )
