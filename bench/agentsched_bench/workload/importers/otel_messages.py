"""The messages of a call's span: in one attribute, in numbered ones, or in the span's events.

`gen_ai.input.messages` is today's form; before it there were events (`gen_ai.user.message`; at
first `gen_ai.content.prompt` with all messages as JSON), and each instrumentation has its own:
OpenLLMetry numbers `gen_ai.prompt.0.role`, OpenInference `llm.input_messages.0.message.role`,
Vercel's AI SDK has `ai.prompt.messages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentsched_bench.workload.importers.chat import arguments_text, read_tool_calls, said
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_json,
    as_name,
    as_object,
    as_objects,
    as_text,
    first,
)
from agentsched_bench.workload.trace import RecordedMessage, RecordedToolCall

Events = Sequence[tuple[str, Object]]

#: Events that have what others have as attributes: today's, and the two of the first versions.
_DETAILS: Final = frozenset(
    {
        "gen_ai.client.inference.operation.details",
        "gen_ai.content.prompt",
        "gen_ai.content.completion",
    }
)
#: Events of one message each, by what they say its role is.
_EVENTS: Final = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
_CHOICE: Final = "gen_ai.choice"
#: What instrumentations put around a message, a call and a part of a content.
_WRAPPERS: Final = ("message.", "tool_call.", "message_content.", "function.")


def prompt_of(facts: Object, events: Events) -> tuple[RecordedMessage, ...]:
    """The messages that were sent."""
    facts = _with_details(facts, events)
    found: list[RecordedMessage] = []
    system = as_json(
        first(facts.get("gen_ai.system_instructions"), facts.get("gen_ai.system.message"))
    )
    if system:
        found.append(RecordedMessage(role="system", text=as_text(system)))
    told = _told(facts, ("gen_ai.input.messages", "gen_ai.prompt", "ai.prompt.messages"))
    told = told or _numbered(facts, "gen_ai.prompt") or _numbered(facts, "llm.input_messages")
    if not told:
        told = [
            _of_event(event) | {"role": _EVENTS[name]}
            for name, event in [*events, *_in_attribute(facts)]
            if name in _EVENTS
        ]
    found.extend(_message(message, role="user") for message in told)
    return tuple(found)


def answer_of(facts: Object, events: Events) -> RecordedMessage | None:
    """The answer, the first of several."""
    facts = _with_details(facts, events)
    told = _told(facts, ("gen_ai.output.messages", "gen_ai.completion"))
    told = told or _numbered(facts, "gen_ai.completion") or _numbered(facts, "llm.output_messages")
    if not told and ("ai.response.text" in facts or "ai.response.toolCalls" in facts):
        asked = as_objects(as_json(facts.get("ai.response.toolCalls")))
        told = [{"content": facts.get("ai.response.text"), "tool_calls": asked}]
    if not told:
        chosen = [event for name, event in [*events, *_in_attribute(facts)] if name == _CHOICE]
        told = [_of_event(as_object(as_json(c.get("message"))) or c) for c in chosen]
    return _message(told[0], role="assistant") if told else None


def offered_tools(facts: Object) -> Json:
    """Definitions of the tools that the model was offered."""
    whole = as_json(facts.get("gen_ai.tool.definitions"))
    if whole:
        return whole
    schemas = [
        as_json(row.get("tool.json_schema"))
        for row in _rows(facts, "llm.tools")
        if "tool.json_schema" in row
    ]
    return schemas or [
        row | {"parameters": as_json(row.get("parameters"))}
        for row in _rows(facts, "llm.request.functions")
    ]


def _with_details(facts: Object, events: Events) -> Object:
    for name, event in events:
        if name in _DETAILS:
            facts = event | facts
    return facts


def _told(facts: Object, keys: Sequence[str]) -> list[Object]:
    """Messages as JSON in one attribute."""
    return next((found for key in keys if (found := as_objects(as_json(facts.get(key))))), [])


def _in_attribute(facts: Object) -> list[tuple[str, Object]]:
    """Events that an instrumentation wrote into an attribute (Pydantic AI)."""
    rows = as_objects(as_json(facts.get("events")))
    return [(as_name(row.get("event.name")), row) for row in rows]


def _of_event(event: Object) -> Object:
    """What an event says, wherever it says it."""
    body = as_json(first(event.get("gen_ai.event.content"), event.get("event_body")))
    return as_object(body) or event


def _rows(facts: Object, prefix: str) -> list[Object]:
    """`prefix.0.role` and so on as one object for each number."""
    found: dict[int, Object] = {}
    for key, value in facts.items():
        number, _, rest = key.removeprefix(f"{prefix}.").partition(".")
        if key.startswith(f"{prefix}.") and rest and number.isdecimal():
            found.setdefault(int(number), {})[rest] = value
    return [found[number] for number in sorted(found)]


def _numbered(facts: Object, prefix: str) -> list[Object]:
    """Messages of which each fact is an attribute of its own."""
    found: list[Object] = []
    for row in _rows(facts, prefix):
        message = _bare(row)
        calls = [_bare(call) for call in _rows(message, "tool_calls")]
        parts = [_bare(part) for part in _rows(message, "contents")]
        content = first(message.get("content"), parts or None)
        told = as_json(content) if isinstance(content, str) and content[:2] == "[{" else None
        found.append(
            {
                "role": message.get("role"),
                "content": content if told is None else told,
                "tool_calls": [call for call in calls if "name" in call],
                "tool_call_id": message.get("tool_call_id"),
            }
        )
    return found


def _bare(row: Object) -> Object:
    found: Object = {}
    for key, value in row.items():
        name = key
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        found[name] = value
    return found


def _message(message: Object, *, role: str) -> RecordedMessage:
    texts: list[str] = []
    calls: list[RecordedToolCall] = []
    own = as_name(message.get("role"), default=role)
    told = message.get("tool_call_id")
    call_id = as_name(first(told, message.get("id") if own == "tool" else None)) or None
    parts = as_objects(first(message.get("parts"), message.get("content")))
    for part in parts:
        match part.get("type"):
            case "tool_call" | "tool-call":
                calls.append(_asked(part, len(calls)))
            case "tool_call_response" | "tool-result":
                call_id = as_name(first(part.get("id"), part.get("toolCallId"))) or None
                keys = ("response", "result", "output")
                texts.append(as_text(first(*(part.get(key) for key in keys))))
            case "reasoning" | "thinking" | "tool_use":
                continue
            case _:
                texts.append(as_text(part))
    calls.extend(_asked(c, i) for i, c in enumerate(as_objects(as_json(message.get("tool_calls")))))
    if not texts and not calls:
        texts.append(said(message))
    calls.extend(read_tool_calls({"content": message.get("content")}))
    return RecordedMessage(
        role=own,
        text="\n".join(text for text in texts if text),
        tool_calls=tuple(calls),
        call_id=call_id,
    )


def _asked(call: Object, number: int) -> RecordedToolCall:
    """A tool call by any of the names that its facts have."""
    function = as_object(call.get("function")) or call
    keys = ("arguments", "args", "input")
    return RecordedToolCall(
        id=as_name(first(call.get("id"), call.get("toolCallId")), default=f"call_{number}"),
        name=as_name(first(function.get("name"), function.get("toolName")), default="tool"),
        arguments=arguments_text(first(*(function.get(key) for key in keys))),
    )
