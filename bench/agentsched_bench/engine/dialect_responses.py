"""`/v1/responses`: OpenAI's Responses API, whole and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentsched_bench.engine.answers import Answer, CallStart, Token
from agentsched_bench.engine.ask import Ask
from agentsched_bench.engine.dialects import Counts, named_event


def namespaces(tools: Sequence[Any]) -> dict[str, str]:
    """Which namespace a function belongs to, for those that a request offers inside of one."""
    return {
        str(tool.get("name")): str(space.get("name"))
        for space in tools
        if isinstance(space, dict) and space.get("type") == "namespace"
        for tool in space.get("tools") or ()
        if isinstance(tool, dict)
    }


class ResponsesWriter:
    """One answer as output items: a message when there is text, and one item a tool call."""

    def __init__(self, ask: Ask, *, key: str, created: int) -> None:
        self._ask = ask
        self._key = key
        self._created = created
        self._sequence = 0
        self._namespaces = namespaces(ask.echo.get("tools") or [])
        #: Finished items, and the one that is being written: its kind, id and content so far.
        self._items: list[dict[str, Any]] = []
        self._text: str | None = None
        self._call: CallStart | None = None
        self._arguments = ""

    def opening(self, counts: Counts) -> bytes:
        return b""

    def announcement(self) -> bytes:
        # As vLLM, which says this before it queues anything.
        response = self._response("in_progress", [], usage=None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def token(self, token: Token, counts: Counts, *, last: bool, answer: Answer) -> bytes:
        if token.start is not None:
            return self._end_item() + self._begin_call(token.start)
        if token.arguments:
            self._arguments += token.arguments
            return self._event(
                "response.function_call_arguments.delta",
                item_id=self._item_id("fc"),
                output_index=len(self._items),
                delta=token.arguments,
            )
        if not token.text:
            return b""
        begin = b"" if self._text is not None else self._begin_message()
        self._text = (self._text or "") + token.text
        return begin + self._event(
            "response.output_text.delta",
            item_id=self._item_id("msg"),
            output_index=len(self._items),
            content_index=0,
            delta=token.text,
            logprobs=[],
        )

    def closing(self, answer: Answer, counts: Counts) -> bytes:
        ended = self._end_item()
        status = "incomplete" if answer.finish == "length" else "completed"
        response = self._response(status, self._items, usage=counts)
        # vLLM ends an answer that was cut short with this event too; the status inside tells.
        return ended + self._event("response.completed", response=response)

    def whole(self, answer: Answer, counts: Counts) -> dict[str, Any]:
        if answer.text or not answer.calls:
            self._items.append(self._message(answer.text))
        for index, call in enumerate(answer.calls):
            start = CallStart(index=index, id=call.id, name=call.name)
            self._items.append(self._function_call(start, call.arguments, status="completed"))
        status = "incomplete" if answer.finish == "length" else "completed"
        return self._response(status, self._items, usage=counts)

    def failure(self, message: str) -> bytes:
        return self._event("error", code="server_error", message=message, param=None)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = named_event({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return event

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._key}{len(self._items):02}"

    def _begin_message(self) -> bytes:
        item = {**self._message(""), "content": [], "status": "in_progress"}
        part: dict[str, Any] = {
            "type": "output_text",
            "text": "",
            "annotations": [],
            "logprobs": None,
        }
        return self._event(
            "response.output_item.added", output_index=len(self._items), item=item
        ) + self._event(
            "response.content_part.added",
            item_id=item["id"],
            output_index=len(self._items),
            content_index=0,
            part=part,
        )

    def _begin_call(self, start: CallStart) -> bytes:
        self._call = start
        self._arguments = ""
        item = self._function_call(start, "", status="in_progress")
        return self._event("response.output_item.added", output_index=len(self._items), item=item)

    def _end_item(self) -> bytes:
        if self._text is not None:
            return self._end_message(self._text)
        if self._call is not None:
            return self._end_call(self._call)
        return b""

    def _end_message(self, text: str) -> bytes:
        item = self._message(text)
        place = {
            "item_id": item["id"],
            "output_index": len(self._items),
            "content_index": 0,
        }
        events = self._event("response.output_text.done", **place, text=text, logprobs=[])
        events += self._event("response.content_part.done", **place, part=item["content"][0])
        events += self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._text = None
        return events

    def _end_call(self, start: CallStart) -> bytes:
        item = self._function_call(start, self._arguments, status="completed")
        events = self._event(
            "response.function_call_arguments.done",
            item_id=item["id"],
            output_index=len(self._items),
            name=start.name,
            arguments=self._arguments,
        )
        events += self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._call = None
        return events

    def _message(self, text: str) -> dict[str, Any]:
        part: dict[str, Any] = {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": None,
        }
        return {
            "id": self._item_id("msg"),
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }

    def _function_call(self, start: CallStart, arguments: str, *, status: str) -> dict[str, Any]:
        item = {
            "id": self._item_id("fc"),
            "type": "function_call",
            "call_id": start.id,
            "name": start.name,
            "arguments": arguments,
            "status": status,
        }
        namespace = self._namespaces.get(start.name)
        return item if namespace is None else {**item, "namespace": namespace}

    def _response(
        self, status: str, output: list[dict[str, Any]], *, usage: Counts | None
    ) -> dict[str, Any]:
        counted = None
        if usage is not None:
            counted = {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
                "output_tokens": usage.output,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.output,
            }
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{self._key}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._ask.model,
            "output": list(output),
            "incomplete_details": cut,
            "background": False,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "max_tool_calls": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "user": None,
            "previous_response_id": None,
            "usage": counted,
            **self._ask.echo,
        }
