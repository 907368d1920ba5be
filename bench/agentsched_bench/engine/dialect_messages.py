"""`/v1/messages`: Anthropic's answers, whole and streamed, as vLLM gives them."""

from __future__ import annotations

from typing import Any

from agentsched_bench.engine.answers import Answer, Token, arguments_object
from agentsched_bench.engine.ask import Ask
from agentsched_bench.engine.dialects import Counts, named_event


def anthropic_usage(counts: Counts) -> dict[str, int]:
    """Anthropic counts the cached part of the prompt apart from the rest."""
    return {
        "input_tokens": counts.prompt - counts.cached - counts.created,
        "output_tokens": counts.output,
        "cache_creation_input_tokens": counts.created,
        "cache_read_input_tokens": counts.cached,
    }


def anthropic_error(message: str, *, kind: str) -> dict[str, Any]:
    """Anthropic's error shape; vLLM puts its own error types into it."""
    return {"type": "error", "error": {"type": kind, "message": message}}


def stop_of(answer: Answer) -> tuple[str, str | None]:
    """Anthropic's stop reason and stop sequence."""
    if answer.finish == "length":
        return "max_tokens", None
    if answer.finish == "tool_calls":
        return "tool_use", None
    if answer.stop_reason is not None:
        return "stop_sequence", answer.stop_reason
    return "end_turn", None


class MessagesWriter:
    """One answer as content blocks: text first, then one block for each tool call."""

    def __init__(self, ask: Ask, *, key: str) -> None:
        self._id = f"msg_{key}"
        self._model = ask.model
        #: The open content block's index; absent when none is open.
        self._open: int | None = None
        self._blocks = 0

    def announcement(self) -> bytes:
        return b""

    def opening(self, counts: Counts) -> bytes:
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._model,
            "stop_reason": None,
            "stop_sequence": None,
            # vLLM does not tell yet what was cached.
            "usage": {"input_tokens": counts.prompt, "output_tokens": 0},
        }
        return named_event({"type": "message_start", "message": message})

    def token(self, token: Token, counts: Counts, *, last: bool, answer: Answer) -> bytes:
        if token.start is not None:
            block = {
                "type": "tool_use",
                "id": token.start.id,
                "name": token.start.name,
                "input": {},
            }
            return self._close() + self._start(block)
        if token.arguments:
            return self._delta({"type": "input_json_delta", "partial_json": token.arguments})
        if not token.text:
            return b""
        begin = self._start({"type": "text", "text": ""}) if self._open is None else b""
        return begin + self._delta({"type": "text_delta", "text": token.text})

    def closing(self, answer: Answer, counts: Counts) -> bytes:
        reason, sequence = stop_of(answer)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        ended = {"type": "message_delta", "delta": delta, "usage": anthropic_usage(counts)}
        return self._close() + named_event(ended) + named_event({"type": "message_stop"})

    def whole(self, answer: Answer, counts: Counts) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if answer.text or not answer.calls:
            content.append({"type": "text", "text": answer.text})
        content += [
            {
                "type": "tool_use",
                "id": call.id,
                "name": call.name,
                "input": arguments_object(call.arguments),
            }
            for call in answer.calls
        ]
        reason, sequence = stop_of(answer)
        whole: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self._model,
            "stop_reason": reason,
            "usage": anthropic_usage(counts),
        }
        return whole if sequence is None else {**whole, "stop_sequence": sequence}

    def failure(self, message: str) -> bytes:
        return named_event(anthropic_error(message, kind="internal_error"))

    def _start(self, block: dict[str, Any]) -> bytes:
        self._open = self._blocks
        self._blocks += 1
        event = {"type": "content_block_start", "index": self._open, "content_block": block}
        return named_event(event)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        assert self._open is not None
        return named_event({"type": "content_block_delta", "index": self._open, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        event = named_event({"type": "content_block_stop", "index": self._open})
        self._open = None
        return event
