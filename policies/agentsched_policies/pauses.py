"""Gaps between a conversation's answer and its next request, as they come about.

What a TTL must outlast is this gap, not the tool's own run time: the client needs time of its own,
and a tool that ran in 10 ms may be asked about a minute later.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from agentsched.model import (
    ConversationId,
    Event,
    Instant,
    Nanos,
    ProgramId,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    ToolName,
    between,
)

#: The tool that a pause without any tool call is counted under: somebody reads the answer.
USER_TURN: Final = ToolName("user_turn")
#: And one with several calls at once.
MULTI_TOOL: Final = ToolName("multi_tool")
_WATCHED_MAX: Final = 20_000


def tool_of(tools: tuple[ToolName, ...]) -> ToolName:
    """The one tool that a pause is counted under."""
    if not tools:
        return USER_TURN
    return tools[0] if len(tools) == 1 else MULTI_TOOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A conversation came back `span` after its answer, having paused for `tool`."""

    step: StepId
    program: ProgramId
    conversation: ConversationId
    tool: ToolName
    since: Instant
    span: Nanos
    grown_tokens: int
    context_tokens: int


@dataclass(slots=True)
class _Pause:
    tool: ToolName
    since: Instant
    tokens: int


class PauseWatch:
    """Joins each answer to the request that follows it. Bounded: the oldest are forgotten."""

    def __init__(self, *, watched_max: int = _WATCHED_MAX) -> None:
        self._watched_max = watched_max
        #: Conversation of each live working step.
        self._steps: OrderedDict[StepId, ConversationId] = OrderedDict()
        self._paused: OrderedDict[ConversationId, _Pause] = OrderedDict()

    def observe(self, event: Event, *, now: Instant) -> Gap | None:
        """Take in an event; the gap that it ends, where it ends one."""
        match event:
            case StepArrived() if event.step_class.is_work:
                self._steps[event.step] = event.conversation
                if len(self._steps) > self._watched_max:
                    self._steps.popitem(last=False)
                return self._resume(event, now=now)
            case StepFinished():
                conversation = self._steps.pop(event.step, None)
                if conversation is not None:
                    tools = tuple(call.tool for call in event.tool_calls)
                    tokens = event.usage.prompt_tokens + event.usage.output_tokens
                    self._paused[conversation] = _Pause(tool_of(tools), now, tokens)
                    self._paused.move_to_end(conversation)
                    if len(self._paused) > self._watched_max:
                        self._paused.popitem(last=False)
            case StepFailed() if not event.is_retryable:
                self._steps.pop(event.step, None)
            case StepCancelled():
                self._steps.pop(event.step, None)
            case _:
                pass
        return None

    def _resume(self, event: StepArrived, *, now: Instant) -> Gap | None:
        paused = self._paused.pop(event.conversation, None)
        if paused is None:
            return None
        return Gap(
            step=event.step,
            program=event.program,
            conversation=event.conversation,
            tool=paused.tool,
            since=paused.since,
            span=between(paused.since, now),
            grown_tokens=max(0, event.prompt_tokens - paused.tokens),
            context_tokens=paused.tokens,
        )
