"""Traces as OpenTelemetry GenAI spans (OTLP JSON, one program a line): agents, calls and tools."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from agentsched_bench.workload.exporters.clock import TRUE_SIZE, Clock
from agentsched_bench.workload.shape import pause_after_s
from agentsched_bench.workload.trace import (
    RecordedMessage,
    RecordedProgram,
    RecordedStep,
    RecordedTool,
    Recording,
)

#: Where no instant was recorded, an answer is taken to come at this speed.
_TOKENS_PER_S: Final = 60.0
#: A fixed day: a trace knows how long after its first session the others began, not when.
_EPOCH_NS: Final = 1_700_000_000_000_000_000
_KIND_INTERNAL, _KIND_CLIENT = 1, 3


def otel_lines(programs: Iterable[RecordedProgram], *, keeps_text: bool) -> Iterator[bytes]:
    """One `resourceSpans` object a line."""
    for program in programs:
        spans = list(_Program(program, keeps_text=keeps_text).spans())
        service = _attributes({"service.name": program.main.source})
        scope = {"name": "agentsched"}
        group = {
            "resource": {"attributes": service},
            "scopeSpans": [{"scope": scope, "spans": spans}],
        }
        yield msgspec.json.encode({"resourceSpans": [group]}) + b"\n"


class _Program:
    """The spans of one program."""

    def __init__(self, program: RecordedProgram, *, keeps_text: bool) -> None:
        self._program = program
        self._keeps_text = keeps_text
        self._clock = Clock(program, tokens_per_s=_TOKENS_PER_S)
        self._trace = _id(program.main.session_id, size=16)
        #: For each sub-agent the tool span that it runs under.
        self._under: dict[str, str] = {}

    def spans(self) -> Iterator[dict[str, Any]]:
        for row in (self._program.main, *self._program.children):
            yield from self._conversation(row)

    def _conversation(self, row: Recording) -> Iterator[dict[str, Any]]:
        start_s = self._program.main.start_s or 0.0
        begun_s = ended_s = start_s + self._clock.begun_s(row)
        agent = _id(f"agent/{row.session_id}")
        inner: list[dict[str, Any]] = []
        for index, call in enumerate(self._clock.calls(row)):
            began_s, ended_s = start_s + call[0], start_s + call[1]
            inner.append(self._call(row, index, began_s, ended_s, parent=agent))
            inner.extend(self._tools(row, index, ended_s, parent=agent))
            ended_s += pause_after_s(row.steps[index], TRUE_SIZE)
        facts: dict[str, Any] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": row.agent or "agent",
            "gen_ai.conversation.id": self._program.main.session_id,
        }
        parent = self._under.get(row.session_id) or (
            "" if row is self._program.main else _id(f"agent/{row.parent}")
        )
        yield self._span(
            agent, f"invoke_agent {row.agent or 'agent'}", begun_s, ended_s, facts, parent=parent
        )
        yield from inner

    def _call(
        self, row: Recording, index: int, begun_s: float, ended_s: float, *, parent: str
    ) -> dict[str, Any]:
        step = row.steps[index]
        model = step.model or row.model or "unknown"
        facts: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.conversation.id": self._program.main.session_id,
            "gen_ai.usage.input_tokens": step.input_tokens,
            "gen_ai.usage.output_tokens": step.output_tokens,
        }
        if step.prefix_tokens is not None:
            facts["gen_ai.usage.cache_read.input_tokens"] = step.prefix_tokens
        if step.reasoning_tokens:
            facts["gen_ai.usage.reasoning.output_tokens"] = step.reasoning_tokens
        if step.ttft_s is not None:
            facts["gen_ai.response.time_to_first_chunk"] = step.ttft_s
        if self._keeps_text and step.prompt is not None:
            facts |= _texts(row, step)
        own = _id(f"call/{row.session_id}/{index}")
        span = self._span(own, f"chat {model}", begun_s, ended_s, facts, parent=parent)
        return span | {"kind": _KIND_CLIENT}

    def _tools(
        self, row: Recording, index: int, begun_s: float, *, parent: str
    ) -> Iterator[dict[str, Any]]:
        for place, tool in enumerate(row.steps[index].tools):
            own = _id(f"tool/{row.session_id}/{index}/{place}")
            if tool.child is not None:
                self._under[tool.child] = own
            ended_s = begun_s + (tool.duration_s or 0.0)
            facts = _tool_facts(tool)
            span = self._span(
                own, f"execute_tool {tool.name}", begun_s, ended_s, facts, parent=parent
            )
            yield span | ({"status": {"code": 2}} if tool.is_error else {})

    def _span(
        self,
        own: str,
        name: str,
        begun_s: float,
        ended_s: float,
        facts: Mapping[str, Any],
        *,
        parent: str,
    ) -> dict[str, Any]:
        span: dict[str, Any] = {
            "traceId": self._trace,
            "spanId": own,
            "name": name,
            "kind": _KIND_INTERNAL,
            "startTimeUnixNano": str(_EPOCH_NS + round(begun_s * 1e9)),
            "endTimeUnixNano": str(_EPOCH_NS + round(ended_s * 1e9)),
            "attributes": _attributes(facts),
        }
        return span | ({"parentSpanId": parent} if parent else {})


def _tool_facts(tool: RecordedTool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool.name,
    }
    if tool.duration_s is None:
        facts["agentsched.tool.untimed"] = True
    if tool.call_id is not None:
        facts["gen_ai.tool.call.id"] = tool.call_id
    if tool.result_tokens is not None:
        facts["agentsched.tool.result_tokens"] = tool.result_tokens
    if tool.command is not None:
        facts["agentsched.tool.command"] = tool.command
    return facts


def _texts(row: Recording, step: RecordedStep) -> dict[str, Any]:
    numbers = [n for first, last in step.prompt or () for n in range(first, last + 1)]
    said = [_message(row.messages[number]) for number in numbers]
    facts = {"gen_ai.input.messages": msgspec.json.encode(said).decode()}
    if step.answer is not None:
        answer = [_message(row.messages[step.answer])]
        facts["gen_ai.output.messages"] = msgspec.json.encode(answer).decode()
    return facts


def _message(message: RecordedMessage) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if message.call_id is not None:
        response = {"id": message.call_id, "response": message.text or ""}
        parts.append({"type": "tool_call_response"} | response)
    elif message.text:
        parts.append({"type": "text", "content": message.text})
    parts.extend(
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    )
    return {"role": message.role, "parts": parts}


def _attributes(facts: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in facts.items()]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"stringValue": str(value)}


def _id(name: str, *, size: int = 8) -> str:
    return hashlib.blake2b(name.encode(), digest_size=size).hexdigest()
