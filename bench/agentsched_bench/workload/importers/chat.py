"""What the agents' own formats have in common: chat messages, tool calls, usage objects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentsched_bench.workload.importers.draft import command_word
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_name,
    as_object,
    as_objects,
    as_text,
    clean,
    first,
)
from agentsched_bench.workload.trace import RecordedTool, RecordedToolCall, ToolDefinition

#: Arguments that hold a shell command, and those that hold a sub-command.
_COMMANDS: Final = ("command", "cmd", "script", "bash_command")
_FENCE: Final = re.compile(r"```(?:[\w+-]*)[ \t]*\n(.*?)(?:\n```|```|\Z)", re.DOTALL)
_SUB_COMMAND: Final = re.compile(r"[a-z][a-z_]{0,30}")
_SHELLS: Final = frozenset(
    {
        "bash",
        "shell",
        "sh",
        "execute_bash",
        "terminal",
        "run",
        "exec",
        "local_shell",
        "exec_command",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a provider counted. `output_tokens` includes `reasoning_tokens`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int = 0


def read_usage(value: Json) -> Usage:
    """A usage object of any of the APIs; absent numbers are None.

    Anthropic counts cached and newly cached tokens beside `input_tokens`, the others within.
    """
    usage = as_object(value)
    prompt = as_count(first(usage.get("prompt_tokens"), usage.get("input_tokens")))
    read = as_count(usage.get("cache_read_input_tokens"))
    made = as_count(usage.get("cache_creation_input_tokens"))
    details = as_object(
        first(usage.get("prompt_tokens_details"), usage.get("input_tokens_details"))
    )
    cached = as_count(details.get("cached_tokens"))
    if prompt is not None and "prompt_tokens" in usage:
        prompt = whole_prompt(prompt, read=read, made=made)
    elif prompt is not None:
        prompt += (read or 0) + (made or 0)
    out_details = as_object(
        first(usage.get("completion_tokens_details"), usage.get("output_tokens_details"))
    )
    return Usage(
        input_tokens=prompt or None,
        output_tokens=as_count(first(usage.get("completion_tokens"), usage.get("output_tokens"))),
        cached_tokens=cached if cached is not None else read,
        reasoning_tokens=as_count(out_details.get("reasoning_tokens")) or 0,
    )


def whole_prompt(prompt: int, *, read: int | None, made: int | None) -> int:
    """All of a prompt, of which some count what was read from a cache, or put there, beside it.

    Those do who pass on what Anthropic's API counts: what is more than the prompt is no part of it.
    """
    if read is not None and read > prompt:
        return prompt + read + (made or 0)
    return prompt + made if made is not None and made > prompt else prompt


def read_tool_calls(message: Object) -> list[RecordedToolCall]:
    """The tool calls of an assistant's message, in OpenAI's or Anthropic's form."""
    calls: list[RecordedToolCall] = []
    for index, call in enumerate(as_objects(message.get("tool_calls"))):
        function = as_object(call.get("function")) or call
        calls.append(
            RecordedToolCall(
                id=as_name(first(call.get("id"), call.get("call_id")), default=f"call_{index}"),
                name=as_name(function.get("name"), default="tool"),
                arguments=arguments_text(
                    first(function.get("arguments"), function.get("input"), function.get("args"))
                ),
            )
        )
    for block in as_objects(message.get("content")):
        if block.get("type") == "tool_use":
            calls.append(
                RecordedToolCall(
                    id=as_name(block.get("id"), default=f"call_{len(calls)}"),
                    name=as_name(block.get("name"), default="tool"),
                    arguments=arguments_text(block.get("input")),
                )
            )
    return calls


def arguments_text(value: Json) -> str:
    """Arguments as they go over the wire: JSON in a string."""
    if value is None:
        return ""
    if isinstance(value, str):
        return clean(value)
    try:
        return clean(msgspec.json.encode(value).decode("utf-8", "replace"))
    except (msgspec.MsgspecError, TypeError, ValueError):
        return ""


def said(message: Object) -> str:
    """The text of a message, without the tool calls in it."""
    # In SWE-agent runs as Nebius publishes them a system message has its words elsewhere.
    content = first(message.get("content"), message.get("text")) or message.get("system_prompt")
    if not isinstance(content, list):
        return as_text(content)
    spoken = [
        part
        for part in content
        if not (
            isinstance(part, dict)
            and part.get("type") in ("tool_use", "thinking", "redacted_thinking", "reasoning")
        )
    ]
    return as_text(spoken)


def command_of(call: RecordedToolCall) -> str | None:
    """The first word of a shell call's command, or the sub-command of another tool's."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.MsgspecError, UnicodeError):
        return None
    for key in _COMMANDS:
        value = as_object(arguments).get(key)
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            # Codex: ["bash", "-lc", "ls -l"].
            value = value[-1] if value[0].endswith("sh") and len(value) > 1 else " ".join(value)
        if isinstance(value, str) and value.strip():
            if call.name.lower() not in _SHELLS and _SUB_COMMAND.fullmatch(value.strip()):
                return value.strip()
            return command_word(value)
    return None


def fenced_command(text: str) -> str | None:
    """The command in the last code block of an answer that calls no tool by API."""
    blocks = [block for block in _FENCE.findall(text) if block.strip()]
    return blocks[-1].strip() if blocks else None


def recorded_tool(
    call: RecordedToolCall,
    *,
    duration_s: float | None = None,
    result_tokens: int | None = None,
    is_error: bool = False,
    child: str | None = None,
) -> RecordedTool:
    """A tool call of an answer as a step lists it."""
    return RecordedTool(
        name=call.name,
        duration_s=None if duration_s is None else round(max(0.0, duration_s), 6),
        result_tokens=result_tokens,
        command=command_of(call),
        call_id=call.id or None,
        is_error=is_error,
        child=child,
    )


def read_definitions(value: Json) -> list[ToolDefinition]:
    """Offered tools, in OpenAI's chat, OpenAI's responses or Anthropic's form."""
    found: list[ToolDefinition] = []
    for tool in as_objects(value):
        function = as_object(tool.get("function")) or tool
        name = as_name(function.get("name"))
        if not name:
            continue
        schema: dict[str, Any] = as_object(
            first(function.get("parameters"), function.get("input_schema"))
        )
        description = as_text(function.get("description"))
        found.append(ToolDefinition(name=name, description=description, parameters=schema))
    return found


def definition_texts(definitions: Sequence[ToolDefinition]) -> str:
    """The definitions as a prompt holds them, for an estimate of their size."""
    return msgspec.json.encode(list(definitions)).decode("utf-8", "replace")
