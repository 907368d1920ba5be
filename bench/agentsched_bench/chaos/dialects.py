"""The streaming dialects as simulated agents ask in them and simulated engines answer.

Both ends are written here by the vendors' documents and share no code with the proxy: what it makes
of an answer is judged by what a client of that dialect would read.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

MODEL: Final = "m"


@dataclass(frozen=True, slots=True)
class Said:
    """What the events of a stream come to, for whoever reads them."""

    text: str
    is_done: bool
    has_error: bool
    #: The id of the tool call that it ends in.
    call: str = ""


class Dialect(ABC):
    """One endpoint: what is asked there, what answers look like. `Message`s are roles and texts."""

    name: str
    path: str

    @abstractmethod
    def fields(self, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
        """The body of a request, but for `stream`."""

    @abstractmethod
    def last_text(self, fields: dict[str, Any]) -> str:
        """What a request asks at its end."""

    @abstractmethod
    def opening(self) -> list[bytes]:
        """Events before the first word."""

    @abstractmethod
    def word(self, word: str) -> bytes:
        """One event with a part of the answer."""

    @abstractmethod
    def closing(self, text: str, usage: tuple[int, int], call: str = "") -> list[bytes]:
        """Events after the last word. `usage`: tokens of the prompt and of the answer; `call`: the
        id of a tool call at its end, in dialects that have any here.
        """

    @abstractmethod
    def error(self) -> bytes:
        """The event by which an engine says that it failed."""

    @abstractmethod
    def whole(self, text: str, usage: tuple[int, int], call: str = "") -> bytes:
        """An answer that is no stream."""

    @abstractmethod
    def text_of(self, answer: dict[str, Any]) -> str:
        """Its text. Raises KeyError, IndexError or TypeError where it is none."""

    def call_of(self, answer: dict[str, Any]) -> str:
        """The id of its tool call. Raises as `text_of`."""
        return ""

    def calls_in(self, fields: dict[str, Any]) -> list[str]:
        """Ids of the tool calls that a request answers."""
        return []

    @abstractmethod
    def read(self, body: bytes) -> Said:
        """What a client makes of a stream's bytes."""


class Chat(Dialect):
    """`/v1/chat/completions`, the one here with tool calls."""

    name, path = "chat", "/v1/chat/completions"

    def fields(self, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
        sent: list[dict[str, Any]] = []
        for message in messages:
            call = message.get("call")
            shown = {"role": message["role"], "content": message["content"]}
            if call and message["role"] == "assistant":
                sent.append(shown | {"tool_calls": [_call(call)]})
            elif call:
                sent.append(shown | {"role": "tool", "tool_call_id": call})
            else:
                sent.append(shown)
        return {"model": MODEL, "messages": sent}

    def last_text(self, fields: dict[str, Any]) -> str:
        content = fields["messages"][-1]["content"]
        return content if isinstance(content, str) else str(content[-1].get("text", ""))

    def calls_in(self, fields: dict[str, Any]) -> list[str]:
        messages = fields["messages"]
        return [str(m["tool_call_id"]) for m in messages if "tool_call_id" in m]

    def opening(self) -> list[bytes]:
        return []

    def word(self, word: str) -> bytes:
        return _event(_chat_chunk({"content": word}))

    def closing(self, text: str, usage: tuple[int, int], call: str = "") -> list[bytes]:
        called = [_event(_chat_chunk({"tool_calls": [{"index": 0} | _call(call)]}))] if call else []
        return [
            *called,
            _event(_chat_chunk({}, finish="tool_calls" if call else "stop")),
            _event(_chat_chunk(None) | {"usage": _openai_usage(usage)}),
            b"data: [DONE]\n\n",
        ]

    def error(self) -> bytes:
        return _event({"error": {"message": "as asked", "code": 500}})

    def whole(self, text: str, usage: tuple[int, int], call: str = "") -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if call:
            message["tool_calls"] = [_call(call)]
        end = "tool_calls" if call else "stop"
        choice = {"index": 0, "message": message, "finish_reason": end}
        shown = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL}
        return json.dumps(shown | {"choices": [choice], "usage": _openai_usage(usage)}).encode()

    def text_of(self, answer: dict[str, Any]) -> str:
        return str(answer["choices"][0]["message"]["content"])

    def call_of(self, answer: dict[str, Any]) -> str:
        calls = answer["choices"][0]["message"].get("tool_calls") or [{"id": ""}]
        return str(calls[0]["id"])

    def read(self, body: bytes) -> Said:
        text, call, has_error = "", "", False
        for event in _events(body):
            has_error = has_error or "error" in event
            for choice in event.get("choices", ()):
                delta = choice.get("delta") or {}
                text += delta.get("content", "")
                call += "".join(one.get("id", "") for one in delta.get("tool_calls", ()))
        return Said(text, b"data: [DONE]\n" in body, has_error, call)


class Messages(Dialect):
    """`/v1/messages`, where nothing but `message_stop` ends a stream."""

    name, path = "messages", "/v1/messages"

    def fields(self, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
        system = [m["content"] for m in messages if m["role"] == "system"]
        rest = [m for m in messages if m["role"] != "system"]
        return {"model": MODEL, "max_tokens": 512, "system": system[0], "messages": rest}

    def last_text(self, fields: dict[str, Any]) -> str:
        content = fields["messages"][-1]["content"]
        return content if isinstance(content, str) else str(content[-1].get("text", ""))

    def opening(self) -> list[bytes]:
        usage = {"input_tokens": 8, "output_tokens": 0}
        message = self._message([], None) | {"usage": usage}
        block = {"type": "text", "text": ""}
        return [
            _named({"type": "message_start", "message": message}),
            _named({"type": "content_block_start", "index": 0, "content_block": block}),
        ]

    def word(self, word: str) -> bytes:
        delta = {"type": "text_delta", "text": word}
        return _named({"type": "content_block_delta", "index": 0, "delta": delta})

    def closing(self, text: str, usage: tuple[int, int], call: str = "") -> list[bytes]:
        used = {"input_tokens": usage[0], "output_tokens": usage[1]}
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        return [
            _named({"type": "content_block_stop", "index": 0}),
            _named({"type": "message_delta", "delta": delta, "usage": used}),
            _named({"type": "message_stop"}),
        ]

    def error(self) -> bytes:
        return _named({"type": "error", "error": {"type": "api_error", "message": "as asked"}})

    def whole(self, text: str, usage: tuple[int, int], call: str = "") -> bytes:
        message = self._message([{"type": "text", "text": text}], "end_turn")
        used = {"input_tokens": usage[0], "output_tokens": usage[1]}
        return json.dumps(message | {"usage": used}).encode()

    def text_of(self, answer: dict[str, Any]) -> str:
        return str(answer["content"][0]["text"])

    def read(self, body: bytes) -> Said:
        text, is_done, has_error = "", False, False
        for event in _events(body):
            has_error = has_error or event["type"] == "error"
            is_done = is_done or event["type"] == "message_stop"
            if event["type"] == "content_block_delta":
                text += event["delta"].get("text", "")
        return Said(text, is_done, has_error)

    def _message(self, content: list[Any], stop: str | None) -> dict[str, Any]:
        shown = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL}
        return shown | {"content": content, "stop_reason": stop, "stop_sequence": None}


class Responses(Dialect):
    """`/v1/responses`, the whole answer once more in the last event."""

    name, path = "responses", "/v1/responses"

    def fields(self, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        for message in messages[1:]:
            kind = "output_text" if message["role"] == "assistant" else "input_text"
            content = [{"type": kind, "text": message["content"]}]
            items.append({"type": "message", "role": message["role"], "content": content})
        return {"model": MODEL, "instructions": messages[0]["content"], "input": items}

    def last_text(self, fields: dict[str, Any]) -> str:
        return str(fields["input"][-1]["content"][-1]["text"])

    def opening(self) -> list[bytes]:
        item = self._item("", "in_progress") | {"content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        return [
            _named({"type": "response.created", "response": self._response(None, "in_progress")}),
            _named({"type": "response.output_item.added", "output_index": 0, "item": item}),
            _named({"type": "response.content_part.added", **self._at(), "part": part}),
        ]

    def word(self, word: str) -> bytes:
        return _named({"type": "response.output_text.delta", **self._at(), "delta": word})

    def closing(self, text: str, usage: tuple[int, int], call: str = "") -> list[bytes]:
        item = self._item(text, "completed")
        response = self._response(text, "completed") | {"usage": self._usage(usage)}
        return [
            _named({"type": "response.output_text.done", **self._at(), "text": text}),
            _named({"type": "response.output_item.done", "output_index": 0, "item": item}),
            _named({"type": "response.completed", "response": response}),
        ]

    def error(self) -> bytes:
        said = {"code": "server_error", "message": "as asked"}
        response = self._response(None, "failed") | {"error": said}
        return _named({"type": "response.failed", "response": response})

    def whole(self, text: str, usage: tuple[int, int], call: str = "") -> bytes:
        response = self._response(text, "completed") | {"usage": self._usage(usage)}
        return json.dumps(response).encode()

    def text_of(self, answer: dict[str, Any]) -> str:
        return str(answer["output"][0]["content"][0]["text"])

    def read(self, body: bytes) -> Said:
        text, is_done, has_error = "", False, False
        for event in _events(body):
            kind = event["type"]
            has_error = has_error or kind in ("error", "response.failed")
            if kind == "response.output_text.delta":
                text += event["delta"]
            if kind == "response.completed":
                # Two tellings of one answer: a client may believe either.
                is_done = self.text_of(event["response"]) == text
        return Said(text, is_done, has_error)

    def _at(self) -> dict[str, Any]:
        return {"item_id": "i", "output_index": 0, "content_index": 0}

    def _item(self, text: str, status: str) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        shown = {"id": "i", "type": "message", "role": "assistant", "status": status}
        return shown | {"content": content}

    def _response(self, text: str | None, status: str) -> dict[str, Any]:
        output = [] if text is None else [self._item(text, status)]
        shown = {"id": "resp_1", "object": "response", "created_at": 1, "model": MODEL}
        return shown | {"status": status, "output": output}

    def _usage(self, usage: tuple[int, int]) -> dict[str, Any]:
        details = {"input_tokens_details": {"cached_tokens": 0}}
        used = {"input_tokens": usage[0], "output_tokens": usage[1]}
        return used | details | {"total_tokens": sum(usage)}


DIALECTS: Final[tuple[Dialect, ...]] = (Chat(), Messages(), Responses())
BY_PATH: Final = {dialect.path: dialect for dialect in DIALECTS}


def _call(call: str) -> dict[str, Any]:
    return {"id": call, "type": "function", "function": {"name": "bash", "arguments": "{}"}}


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _named(value: dict[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\n" + _event(value)


def _chat_chunk(delta: dict[str, Any] | None, *, finish: str | None = None) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    shown = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return shown | {"choices": choices}


def _openai_usage(usage: tuple[int, int]) -> dict[str, int]:
    return {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    """The events of a stream that is over. Half an event at its end is no event, as for clients.

    Raises:
        ValueError: one is no JSON: something was put into the middle of another.
    """
    for block in body.decode().split("\n\n")[:-1]:
        data = "".join(
            line.removeprefix("data:").strip()
            for line in block.split("\n")
            if line.startswith("data:")
        )
        if data and data != "[DONE]":
            value = json.loads(data)
            if not isinstance(value, dict):
                raise ValueError("an event is no object")
            yield value
