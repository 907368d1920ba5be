"""What a replay sends and reads in each dialect: bodies out, streamed answers in.

Only what is measured is decoded: the load generator shares the machine with what it loads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from agentsched.proxy.request import Dialect
from agentsched_bench.workload.trace import RecordedToolCall, ToolDefinition

REPLAYED: Final = (Dialect.CHAT, Dialect.COMPLETIONS, Dialect.RESPONSES, Dialect.MESSAGES)
PATHS: Final[Mapping[Dialect, str]] = {
    Dialect.CHAT: "/v1/chat/completions",
    Dialect.COMPLETIONS: "/v1/completions",
    Dialect.RESPONSES: "/v1/responses",
    Dialect.MESSAGES: "/v1/messages",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a prompt; `tokens` is what it is counted as.

    `tool_calls` are those of an assistant's message; `call_id` is the one that a tool's result
    (role `tool`) answers.
    """

    role: str
    text: str
    tokens: float = 0.0
    tool_calls: tuple[RecordedToolCall, ...] = ()
    call_id: str | None = None


def chat_body(
    dialect: Dialect,
    prompt: Sequence[Message],
    *,
    model: str,
    output_tokens: int,
    tools: Sequence[ToolDefinition] = (),
) -> dict[str, object]:
    """A streamed request of exactly `output_tokens` where the dialect can say so.

    `/v1/messages` has no way to forbid an early end: there `output_tokens` is an upper bound.
    `tools` are offered and may not be called: what the model writes is no call that anybody runs.
    """
    common: dict[str, object] = {"model": model, "stream": True, "temperature": 0}
    exact = {"ignore_eos": True, "min_tokens": output_tokens}
    offered = _offered(dialect, tools)
    # What a system says later on has its place there: before all else it would change each prompt.
    lead = next((at for at, m in enumerate(prompt) if m.role != "system"), len(prompt))
    system, rest = "\n".join(m.text for m in prompt[:lead]), prompt[lead:]
    match dialect:
        case Dialect.CHAT:
            messages = [_chat_message(message) for message in prompt]
            usage = {"stream_options": {"include_usage": True}}
            body = common | exact | usage | offered
            return body | {"messages": messages, "max_tokens": output_tokens}
        case Dialect.RESPONSES:
            items = [item for message in rest for item in _response_items(message)]
            body = common | {"input": items, "max_output_tokens": output_tokens, "store": False}
            body = body | {"ignore_eos": True} | offered
            return body | ({"instructions": system} if system else {})
        case Dialect.MESSAGES:
            turns = _anthropic_turns(rest)
            body = common | {"messages": turns, "max_tokens": output_tokens} | offered
            return body | ({"system": system} if system else {})
        case _:
            raise AssertionError(f"{dialect} has no messages")


def _offered(dialect: Dialect, tools: Sequence[ToolDefinition]) -> dict[str, object]:
    if not tools:
        return {}
    if dialect is Dialect.MESSAGES:
        found = [
            {"name": t.name, "description": t.description, "input_schema": _schema(t)}
            for t in tools
        ]
        return {"tools": found, "tool_choice": {"type": "none"}}
    functions: list[dict[str, object]] = [
        {"name": t.name, "description": t.description, "parameters": _schema(t)} for t in tools
    ]
    if dialect is Dialect.RESPONSES:
        return {"tools": [{"type": "function"} | f for f in functions], "tool_choice": "none"}
    wrapped = [{"type": "function", "function": f} for f in functions]
    return {"tools": wrapped, "tool_choice": "none"}


def _schema(tool: ToolDefinition) -> dict[str, object]:
    return tool.parameters or {"type": "object", "properties": {}}


def _chat_message(message: Message) -> dict[str, object]:
    if message.role == "tool" and message.call_id is not None:
        return {"role": "tool", "tool_call_id": message.call_id, "content": message.text}
    role = "user" if message.role == "tool" else message.role
    if not message.tool_calls:
        return {"role": role, "content": message.text}
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    return {"role": role, "content": message.text, "tool_calls": calls}


def _response_items(message: Message) -> list[dict[str, object]]:
    if message.role == "tool" and message.call_id is not None:
        output = message.text
        return [{"type": "function_call_output", "call_id": message.call_id, "output": output}]
    role = "user" if message.role == "tool" else message.role
    items: list[dict[str, object]] = [{"role": role, "content": message.text}]
    items.extend(
        {
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        for call in message.tool_calls
    )
    return items


def _anthropic_turns(prompt: Sequence[Message]) -> list[dict[str, object]]:
    """Turns as Anthropic takes them: the user's and the assistant's alone.

    Results are the user's, and those of one answer together.
    """
    turns: list[dict[str, object]] = []
    results: list[dict[str, object]] | None = None
    for message in prompt:
        if message.role == "tool" and message.call_id is not None:
            block: dict[str, object] = {
                "type": "tool_result",
                "tool_use_id": message.call_id,
                "content": message.text,
            }
            if results is None:
                results = []
                turns.append({"role": "user", "content": results})
            results.append(block)
            continue
        results = None
        role = "assistant" if message.role == "assistant" else "user"
        if not message.tool_calls:
            turns.append({"role": role, "content": message.text})
            continue
        blocks: list[dict[str, object]] = [{"type": "text", "text": message.text}]
        blocks.extend(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call)}
            for call in message.tool_calls
        )
        turns.append({"role": role, "content": blocks})
    return turns


def _input(call: RecordedToolCall) -> dict[str, object]:
    """The arguments as an object; what is none is one argument."""
    try:
        found = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.MsgspecError, UnicodeError):
        return {"input": call.arguments}
    return found if isinstance(found, dict) else {"input": found}


def completions_body(prompt: Sequence[int], *, model: str, output_tokens: int) -> dict[str, object]:
    """A streamed request with token ids for a prompt, answered with token ids where possible."""
    return {
        "model": model,
        "prompt": prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "ignore_eos": True,
        "return_token_ids": True,
    }


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """The usage objects of all dialects at once; absent fields are None."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    text: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Inner(msgspec.Struct):
    usage: _Usage | None = None
    status: str | None = None
    error: object = None


class _Event(msgspec.Struct):
    """Any streamed event of any dialect, as far as we read it."""

    type: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    delta: str | _Delta | None = None
    response: _Inner | None = None
    message: _Inner | str | None = None
    error: object = None


_EVENTS: Final = msgspec.json.Decoder(_Event)


@dataclass(slots=True, kw_only=True)
class StreamReader:
    """Reads one streamed answer as it comes.

    `has_token` turns true with the first generated token, `is_complete` with a proper end; `error`
    is the text of an error inside the stream.
    """

    dialect: Dialect
    has_token: bool = False
    is_complete: bool = False
    error: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    _parts: list[str] = field(default_factory=list)
    _rest: bytes = b""

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def feed(self, chunk: bytes) -> None:
        """Take bytes as they arrived; broken JSON is kept as `error`."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.is_complete = True
            elif data:
                self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            event = _EVENTS.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.error = f"unreadable event in the stream: {error}"
            return
        if event.error is not None or event.type == "error":
            self.error = f"error in the stream: {data[:500].decode(errors='replace')}"
            return
        match self.dialect:
            case Dialect.RESPONSES:
                self._read_responses(event)
            case Dialect.MESSAGES:
                self._read_messages(event)
            case _:
                self._read_choices(event)

    def _read_choices(self, event: _Event) -> None:
        for choice in event.choices:
            if choice.token_ids:
                self.token_ids.extend(choice.token_ids)
            delta = choice.delta
            text = choice.text if delta is None else delta.content
            if text:
                self._parts.append(text)
            # A first chunk with a role and no text comes before any token.
            is_opening = delta is not None and delta.role is not None and not text
            if not is_opening or choice.token_ids:
                self.has_token = True
        if event.usage is not None:
            usage = event.usage
            self.prompt_tokens = usage.prompt_tokens
            self.output_tokens = usage.completion_tokens
            details = usage.prompt_tokens_details
            self.cached_tokens = None if details is None else details.cached_tokens

    def _read_responses(self, event: _Event) -> None:
        if event.type.endswith("_text.delta") and isinstance(event.delta, str):
            self._parts.append(event.delta)
            self.has_token = True
        elif event.type == "response.failed":
            self.error = f"the response failed: {event.response and event.response.error}"
        elif event.type in ("response.completed", "response.incomplete"):
            self.is_complete = True
            usage = None if event.response is None else event.response.usage
            if usage is not None:
                self.prompt_tokens, self.output_tokens = usage.input_tokens, usage.output_tokens
                details = usage.input_tokens_details
                self.cached_tokens = None if details is None else details.cached_tokens

    def _read_messages(self, event: _Event) -> None:
        if event.type == "content_block_delta" and isinstance(event.delta, _Delta):
            self._parts.append(event.delta.text or "")
            self.has_token = True
        elif event.type == "message_stop":
            self.is_complete = True
        usage = event.usage
        if event.type == "message_start" and isinstance(event.message, _Inner):
            usage = event.message.usage
        if usage is not None:
            self._take_anthropic(usage)

    def _take_anthropic(self, usage: _Usage) -> None:
        # Anthropic counts cached tokens beside `input_tokens`, not within.
        if usage.input_tokens is not None:
            cached = usage.cache_read_input_tokens
            beside = (cached or 0) + (usage.cache_creation_input_tokens or 0)
            self.prompt_tokens = usage.input_tokens + beside
            self.cached_tokens = cached
        if usage.output_tokens is not None:
            self.output_tokens = usage.output_tokens
