"""Tool calls as events name them: the tool, and the first command word where there is one.

`Bash` alone predicts nothing (the same tool varies 13.7 times between commands); `Bash git` does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec

from agentsched.model import (
    CallId,
    Prefix,
    StepFinished,
    StepId,
    ToolCall,
    ToolFinished,
    ToolName,
    Usage,
    seconds,
)
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.fields import BROKEN
from agentsched.proxy.identity import Identity
from agentsched.proxy.identity.atoms import call_ref

_ARGUMENTS_CHARS_MAX: Final = 65_536
_NAME_CHARS_MAX: Final = 64


class _Command(msgspec.Struct):
    command: str | list[str] = ""
    cmd: str | list[str] = ""


_COMMAND: Final = msgspec.json.Decoder(_Command)
# Skips `cd somewhere &&`, assignments and wrappers, which say nothing about the time it takes.
_SKIPPED: Final = re.compile(
    r"^(?:\s|cd\s+\S+\s*(?:&&|;)|[A-Za-z_][A-Za-z0-9_]*=\S*\s|sudo\s|time\s|timeout\s+\S+\s)+"
)
_WORD: Final = re.compile(r"[A-Za-z0-9_./+-]{1,64}")


def tool_call(call: AnsweredCall) -> ToolCall:
    """The call as the scheduler knows it."""
    return ToolCall(
        call_id=CallId(call_ref(call.call_id)), tool=tool_name(call.name, call.arguments)
    )


def clean_name(name: str) -> str:
    """A tool's name as a model or client said it, safe to keep and show: without control
    characters, bounded in length.
    """
    name = name[:_NAME_CHARS_MAX]
    return name if name.isprintable() else "".join(c for c in name if c.isprintable())


def tool_name(name: str, arguments: str) -> ToolName:
    """`Bash git` from a call of Bash with `{"command": "cd x && git status"}`."""
    name = clean_name(name)
    word = _first_word(arguments) if len(arguments) <= _ARGUMENTS_CHARS_MAX else ""
    # Few names, and each is kept with every call of that tool.
    return ToolName(sys.intern(f"{name} {word}" if word else name))


def _first_word(arguments: str) -> str:
    try:
        found = _COMMAND.decode(arguments)
    except (*BROKEN, UnicodeEncodeError):
        return ""
    command = found.command or found.cmd
    if not command:
        return ""
    if isinstance(command, list):
        # `["bash", "-lc", "git status"]`: what the shell is told to run comes last.
        command = command[-1] if len(command) > 2 and command[1].startswith("-") else command[0]
    start = _SKIPPED.match(command)
    word = _WORD.match(command, start.end() if start else 0)
    return word[0].rsplit("/", 1)[-1] if word else ""


def finished_tools(identity: Identity) -> Iterator[ToolFinished]:
    """Tool times that the client declared with its next request."""
    durations = identity.declared.tool_ms
    # Durations have no call ids; they are told apart only where there is one for each answer.
    calls = identity.answers if len(identity.answers) == len(durations) else ()
    for i, (tool, milliseconds) in enumerate(durations):
        yield ToolFinished(
            program=identity.program,
            call_id=calls[i] if calls else CallId(""),
            tool=ToolName(clean_name(tool)),
            conversation=identity.conversation,
            took=seconds(milliseconds / 1e3),
        )


def finished_step(
    step: StepId, identity: Identity, answer: Answer, *, prefix: Prefix | None
) -> StepFinished:
    """A step's end as the scheduler knows it.

    Who says that nothing follows in a conversation waits for no tool, whatever the answer asks for.
    """
    ended = StepFinished(
        step=step,
        usage=answer.usage or Usage(),
        tool_calls=tuple(map(tool_call, answer.calls)),
        finish_reason=answer.finish_reason,
        prefix=prefix,
    )
    if identity.declared.is_last_word and not ended.is_last_word:
        return replace(ended, tool_calls=(), finish_reason="stop")
    return ended
