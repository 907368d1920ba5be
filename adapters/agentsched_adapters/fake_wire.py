"""The fake engine's bytes: prompts as tokens, and answers in OpenAI's two shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

PRIORITY_HEADER: Final = "X-Vllm-Priority"
_TOKEN_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRequest:
    """What an answer's bytes are made from."""

    fields: Mapping[str, Any]
    is_chat: bool
    tokens: tuple[bytes, ...]
    output_tokens: int
    number: int
    priority: int

    @property
    def is_stream(self) -> bool:
        return bool(self.fields.get("stream"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeReply:
    """What the model says: text, or calls of tools as (name, arguments as JSON text)."""

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()


def priority_of(headers: Iterable[tuple[str, str]], fields: Mapping[str, Any]) -> int:
    """Where a request stands in the queue: vLLM believes the header before the body."""
    for name, value in headers:
        if name.lower() == PRIORITY_HEADER.lower():
            with suppress(ValueError):
                return int(value)
    return int(fields.get("priority") or 0)


def tokens(prompt: object) -> tuple[bytes, ...]:
    """Four bytes of text are a token; a prompt of numbers is taken as tokens."""
    if isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
        return tuple(str(item).encode() for item in prompt)
    parts = prompt if isinstance(prompt, list) else [prompt]
    # One after the other without an end, so that a longer conversation begins with the shorter.
    text = b"".join(encode(part) for part in parts) + b"    "
    return tuple(text[i : i + _TOKEN_BYTES] for i in range(0, len(text), _TOKEN_BYTES))


def noise(request: FakeRequest) -> FakeReply:
    return FakeReply(text=" ".join(f"w{request.number}.{i}" for i in range(request.output_tokens)))


def _finish(reply: FakeReply) -> str:
    return "tool_calls" if reply.calls else "length"


def _calls(request: FakeRequest, reply: FakeReply) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "id": f"call-{request.number}-{index}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (name, arguments) in enumerate(reply.calls)
    ]


def _envelope(request: FakeRequest, *, is_chunk: bool) -> dict[str, Any]:
    kind = "chat.completion" if request.is_chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{request.number}",
        "object": kind + (".chunk" if is_chunk and request.is_chat else ""),
        "created": 0,
        "model": request.fields["model"],
    }


def whole_body(request: FakeRequest, reply: FakeReply, usage: dict[str, Any]) -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": _finish(reply)}
    if request.is_chat:
        choice["message"] = {"role": "assistant", "content": reply.text or None}
        if reply.calls:
            choice["message"]["tool_calls"] = _calls(request, reply)
    else:
        choice["text"] = reply.text
    return encode(_envelope(request, is_chunk=False) | {"choices": [choice], "usage": usage})


def stream_body(request: FakeRequest, reply: FakeReply, usage: dict[str, Any]) -> list[bytes]:
    """The events of a stream: one for each token of the answer, and the ones that end it."""

    def event(content: dict[str, Any], finish: str | None = None) -> bytes:
        inside = {"delta": content} if request.is_chat else {"text": content.get("content", "")}
        choice = {"index": 0, "finish_reason": finish} | inside
        chunk = _envelope(request, is_chunk=True) | {"choices": [choice]}
        return b"data: " + encode(chunk) + b"\n\n"

    words = reply.text.split(" ") if reply.text else []
    share = -(-len(words) // request.output_tokens) or 1
    pieces = [" ".join(words[i : i + share]) for i in range(0, len(words), share)]
    spaced = [piece + (" " if i < len(pieces) - 1 else "") for i, piece in enumerate(pieces)]
    spaced += [""] * (request.output_tokens - len(spaced))
    events = [event({"role": "assistant", "content": piece}) for piece in spaced]
    if reply.calls:
        events.append(event({"tool_calls": _calls(request, reply)}))
    events.append(event({}, finish=_finish(reply)))
    if (request.fields.get("stream_options") or {}).get("include_usage"):
        last = _envelope(request, is_chunk=True) | {"choices": [], "usage": usage}
        events.append(b"data: " + encode(last) + b"\n\n")
    return [*events, b"data: [DONE]\n\n"]


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
