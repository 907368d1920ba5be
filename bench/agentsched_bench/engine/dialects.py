"""Answers in the wire formats of vLLM's four text APIs: whole, and as server-sent events.

One writer serves one request. A stream is `announcement`, `opening`, then `token` for every token,
then `closing`; an unstreamed answer is `whole`. Nothing here waits or knows of time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from agentsched_bench.engine.answers import Answer, Token
from agentsched_bench.engine.ask import Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What usage reports."""

    prompt: int
    output: int
    cached: int
    #: Prompt tokens that were put into the cache: those of full blocks that were not found there.
    created: int


class Writer(Protocol):
    """Turns one answer into bytes."""

    def announcement(self) -> bytes:
        """What a stream begins with before anything is computed; empty in most dialects."""
        ...

    def opening(self, counts: Counts) -> bytes:
        """What is sent ahead of the first token, together with it."""
        ...

    def token(self, token: Token, counts: Counts, *, last: bool, answer: Answer) -> bytes:
        """The events of one token; empty when the client sees nothing of it."""
        ...

    def closing(self, answer: Answer, counts: Counts) -> bytes:
        """What a stream ends with."""
        ...

    def whole(self, answer: Answer, counts: Counts) -> dict[str, Any]:
        """The answer as one object."""
        ...

    def failure(self, message: str) -> bytes:
        """An error in the middle of a stream."""
        ...


def data_event(value: Any) -> bytes:
    """A server-sent event with only data, as OpenAI's older APIs send."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event(value: dict[str, Any]) -> bytes:
    """A server-sent event under the name that its `type` says."""
    name = str(value["type"]).encode()
    return b"event: " + name + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
FINGERPRINT = "agentsched-sim"


def usage(counts: Counts, *, details: bool = True) -> dict[str, Any]:
    """OpenAI's usage object."""
    value: dict[str, Any] = {
        "prompt_tokens": counts.prompt,
        "total_tokens": counts.prompt + counts.output,
        "completion_tokens": counts.output,
    }
    if details:
        value["prompt_tokens_details"] = {
            "cached_tokens": counts.cached,
            "created_cache_tokens": counts.created,
        }
    return value


def error_object(message: str, *, status: int, kind: str, param: str | None) -> dict[str, Any]:
    """vLLM's error shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


class ChatWriter:
    """`/v1/chat/completions`."""

    def __init__(self, ask: Ask, *, key: str, created: int) -> None:
        self._ask = ask
        self._head = {"id": f"chatcmpl-{key}", "created": created, "model": ask.model}

    def announcement(self) -> bytes:
        return b""

    def opening(self, counts: Counts) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self._chunk(delta, replace(counts, output=0), opening=True)

    def token(self, token: Token, counts: Counts, *, last: bool, answer: Answer) -> bytes:
        delta: dict[str, Any] = {}
        if token.start is not None:
            function = {"name": token.start.name, "arguments": ""}
            call = {"id": token.start.id, "type": "function", "index": token.start.index}
            delta["tool_calls"] = [{**call, "function": function}]
        elif token.arguments:
            piece = {"index": token.call, "function": {"arguments": token.arguments}}
            delta["tool_calls"] = [piece]
        elif token.text or (last and not answer.calls):
            delta["content"] = token.text
        elif not last:
            return b""
        if not last:
            return self._chunk(delta, counts)
        return self._chunk(
            delta, counts, finish=answer.finish, stop_reason=answer.stop_reason, ended=True
        )

    def closing(self, answer: Answer, counts: Counts) -> bytes:
        if not self._ask.include_usage:
            return DONE
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": []}
        final = {**chunk, "usage": usage(counts), "system_fingerprint": FINGERPRINT}
        return data_event(final) + DONE

    def whole(self, answer: Answer, counts: Counts) -> dict[str, Any]:
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.text or not calls else None,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": answer.finish,
            "stop_reason": answer.stop_reason,
            "token_ids": None,
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage(counts),
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def failure(self, message: str) -> bytes:
        value = error_object(message, status=500, kind="InternalServerError", param=None)
        return data_event(value) + DONE

    def _chunk(
        self,
        delta: dict[str, Any],
        counts: Counts,
        *,
        finish: str | None = None,
        stop_reason: str | None = None,
        ended: bool = False,
        opening: bool = False,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if ended:
            choice["stop_reason"] = stop_reason
        if not opening:
            choice["token_ids"] = None
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        if self._ask.continuous_usage:
            chunk["usage"] = usage(counts, details=False)
        if opening:
            chunk |= {"prompt_token_ids": None, "prompt_text": None}
        return data_event(chunk)


class CompletionWriter:
    """`/v1/completions`."""

    def __init__(self, ask: Ask, *, key: str, created: int) -> None:
        self._ask = ask
        self._is_first = True
        self._head = {
            "id": f"cmpl-{key}",
            "object": "text_completion",
            "created": created,
            "model": ask.model,
        }

    def announcement(self) -> bytes:
        return b""

    def opening(self, counts: Counts) -> bytes:
        return b""

    def token(self, token: Token, counts: Counts, *, last: bool, answer: Answer) -> bytes:
        choice = {
            "index": 0,
            "text": token.text,
            "logprobs": None,
            "finish_reason": answer.finish if last else None,
            "stop_reason": answer.stop_reason if last else None,
        }
        if self._ask.return_token_ids:
            prompt = list(self._ask.prompt) if self._is_first else None
            choice |= {"prompt_token_ids": prompt, "token_ids": [token.id]}
            self._is_first = False
        chunk = {**self._head, "choices": [choice]}
        if self._ask.continuous_usage:
            chunk["usage"] = usage(counts, details=False)
        return data_event(chunk)

    def closing(self, answer: Answer, counts: Counts) -> bytes:
        if not self._ask.include_usage:
            return DONE
        return data_event({**self._head, "choices": [], "usage": usage(counts)}) + DONE

    def whole(self, answer: Answer, counts: Counts) -> dict[str, Any]:
        is_asked = self._ask.return_token_ids
        choice = {
            "index": 0,
            "text": answer.text,
            "logprobs": None,
            "finish_reason": answer.finish,
            "stop_reason": answer.stop_reason,
            "token_ids": [token.id for token in answer.tokens] if is_asked else None,
            "prompt_logprobs": None,
            "prompt_token_ids": list(self._ask.prompt) if is_asked else None,
        }
        return {
            **self._head,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage(counts),
            "kv_transfer_params": None,
        }

    def failure(self, message: str) -> bytes:
        value = error_object(message, status=500, kind="InternalServerError", param=None)
        return data_event(value) + DONE
