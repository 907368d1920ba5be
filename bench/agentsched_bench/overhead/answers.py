"""What the upstream of this benchmark answers: in vLLM's shapes, and always the same to a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import xxhash

MODEL: Final = "tiny"
#: Events of one stream: 32 chunks, usage, `[DONE]`.
STREAM_EVENTS: Final = 34
_TEXT_CHUNKS: Final = 24
_ARGUMENT_CHUNKS: Final = 5
_CREATED: Final = 1_790_000_000
_USAGE: Final = {
    "prompt_tokens": 30_000,
    "total_tokens": 30_030,
    "completion_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 29_000},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer: a sentence and a tool call."""

    id: str
    text: str
    call: str
    arguments: str

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, as it comes and as the client sends it back."""
        function = {"name": "bash", "arguments": self.arguments}
        calls = [{"id": self.call, "type": "function", "function": function}]
        return {"role": "assistant", "content": self.text, "tool_calls": calls}


def answer(seed: int) -> Said:
    """The answer to a request with this seed."""
    token = xxhash.xxh3_128_hexdigest(seed.to_bytes(16))
    words = " ".join(f"word{token[i]}" for i in range(_TEXT_CHUNKS - 6))
    return Said(
        id=f"chatcmpl-{token}",
        text=f"I look at step {seed} now: {words}",
        call=f"chatcmpl-tool-{token}",
        arguments=f'{{"command": "sed -n 1,80p src/module_{token[:8]}.py"}}',
    )


def whole(said: Said) -> bytes:
    """The body of an answer that is not streamed."""
    choice = {
        "index": 0,
        "message": said.message | {"refusal": None, "reasoning": None},
        "logprobs": None,
        "finish_reason": "tool_calls",
        "stop_reason": None,
    }
    body = _frame(said, "chat.completion") | {"choices": [choice], "usage": _USAGE}
    return msgspec.json.encode(body)


def stream(said: Said) -> list[bytes]:
    """The events of a streamed answer, one block of bytes each."""
    function = {"name": "bash", "arguments": ""}
    call = {"id": said.call, "type": "function", "index": 0, "function": function}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": part} for part in _cut(said.text, _TEXT_CHUNKS)]
    deltas.append({"tool_calls": [call]})
    for part in _cut(said.arguments, _ARGUMENT_CHUNKS):
        deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
    events = [_event(said, delta, None) for delta in deltas]
    events.append(_event(said, {"content": ""}, "tool_calls"))
    usage = _frame(said, "chat.completion.chunk") | {"choices": [], "usage": _USAGE}
    events += [b"data: " + msgspec.json.encode(usage) + b"\n\n", b"data: [DONE]\n\n"]
    assert len(events) == STREAM_EVENTS
    return events


def _event(said: Said, delta: dict[str, Any], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = _frame(said, "chat.completion.chunk") | {"choices": [choice]}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _frame(said: Said, kind: str) -> dict[str, Any]:
    return {"id": said.id, "object": kind, "created": _CREATED, "model": MODEL}


def _cut(text: str, parts: int) -> list[str]:
    size = -(-len(text) // parts)
    # The last pieces may be empty where the length is not a multiple; so are some of vLLM's.
    return [text[i * size : (i + 1) * size] for i in range(parts)]
