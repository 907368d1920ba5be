"""One conversation of Qwen Code's, line by line: answers, tools' results, compressions.

Each line names the one before it, so that a line behind an earlier one takes back what came since.
What the program reports of its calls (`ui_telemetry`) stands in front of the answer that it is of.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from agentsched_bench.workload.importers.chat import recorded_tool
from agentsched_bench.workload.importers.draft import Call, Chain, Conversation, Runs
from agentsched_bench.workload.importers.family import size_unseen
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_instant,
    as_name,
    as_object,
    as_objects,
    as_seconds,
    as_text,
)
from agentsched_bench.workload.importers.parts import calls_in, results_in, said_in, usage_of
from agentsched_bench.workload.trace import RecordedMessage, RecordedToolCall

#: How a call that sums the conversation up is named.
_COMPRESSION = "compress-"


@dataclass(slots=True)
class _Answer:
    """An answer while its lines come in: text and calls may have one each."""

    call: Call
    has_usage: bool
    texts: list[str] = field(default_factory=list)
    tool_calls: list[RecordedToolCall] = field(default_factory=list)


class Thread:
    """One conversation. `told` holds the ids of answers that were read, of any file.

    `took_s` is how long tools ran, by their calls, as far as any file of the session says so.
    """

    def __init__(self, told: set[str], took_s: dict[str, float]) -> None:
        self.conversation = Conversation()
        self.model = ""
        self.is_repeated = False
        self._told = told
        self._took_s = took_s
        self._chain = Chain()
        self._answer: _Answer | None = None
        #: By the uuid of a line: the prompt as it was then.
        self._after: dict[str, Runs] = {}
        self._last = ""
        self._waiting: dict[str, tuple[Call, int, float | None]] = {}
        self._known: dict[RecordedMessage, int] = {}
        self._said_at: float | None = None
        self._reported: Object = {}
        self._is_compacted = False
        self._system = self.conversation.add("system", None, tokens=0)
        self._chain.append(self._system)

    def line(self, line: Object) -> None:
        uuid, parent = as_name(line.get("uuid")), as_name(line.get("parentUuid"))
        if uuid and uuid in self._after:
            return
        before = self._after.get(parent)
        if before is not None and parent != self._last:
            self._answer = None
            self._chain.restart(_members(before))
        at = as_instant(line.get("timestamp"))
        parts = as_object(line.get("message")).get("parts")
        match as_name(line.get("type")):
            case "assistant":
                self._says(line, parts, at, uuid)
            case "user":
                self._hear(parts, at)
            case "tool_result":
                self._results(line, parts, at)
            case "system":
                self._report(line, at, uuid)
            case _:
                pass
        self._after[uuid] = self._chain.snapshot()
        self._last = uuid

    def _heard(self, at: float | None) -> None:
        if at is not None:
            self._said_at = at if self._said_at is None else max(self._said_at, at)

    def _hear(self, parts: Json, at: float | None) -> None:
        self._answer = None
        text = said_in(parts)
        if text:
            self._chain.append(self._add("user", text))
            if self.conversation.calls and not self.conversation.calls[-1].tools:
                self.conversation.calls[-1].gap_kind = "user"
        self._heard(at)

    def _add(self, role: str, text: str, *, call_id: str | None = None) -> int:
        number = self.conversation.add(role, text, call_id=call_id)
        self._known[RecordedMessage(role=role, text=text, call_id=call_id)] = number
        return number

    def _says(self, line: Object, parts: Json, at: float | None, uuid: str) -> None:
        usage = usage_of(line.get("usageMetadata"))
        has_usage = usage.input_tokens is not None
        if self._answer is None or (self._answer.has_usage and has_usage):
            self._answer = self._begin(at, uuid)
        answer, call = self._answer, self._answer.call
        if has_usage:
            answer.has_usage = True
            call.input_tokens, call.output_tokens = usage.input_tokens, usage.output_tokens
            call.cached_tokens = usage.cached_tokens
            call.reasoning_tokens = usage.reasoning_tokens
        text = said_in(parts)
        if text:
            answer.texts.append(text)
        for asked in calls_in(parts):
            answer.tool_calls.append(asked)
            call.tools.append(recorded_tool(asked))
            self._waiting[asked.id] = (call, len(call.tools) - 1, at)
        if at is not None:
            call.ended_s = at if call.ended_s is None else max(call.ended_s, at)
        text = "\n".join(answer.texts)
        assert call.answer is not None
        self.conversation.rewrite(call.answer, text=text, tool_calls=answer.tool_calls)
        self._known[RecordedMessage(role="assistant", text=text)] = call.answer
        self.model = self.model or as_name(line.get("model"))
        if as_name(line.get("model")) not in ("", self.model):
            call.model = as_name(line.get("model"))
        self._heard(at)

    def _begin(self, at: float | None, uuid: str) -> _Answer:
        call = Call(
            prompt=self._chain.snapshot(),
            begun_s=self._said_at if self._said_at is not None else at,
            is_compaction=self._is_compacted,
        )
        self._is_compacted = False
        call.answer = self.conversation.add("assistant", "")
        self._chain.append(call.answer)
        timed(call, self._reported)
        self._reported = {}
        if not self._is_told(uuid):
            self.conversation.calls.append(call)
        return _Answer(call, has_usage=False)

    def _is_told(self, uuid: str) -> bool:
        """A fork has the lines of the session that it begins with, ids and all."""
        is_told = bool(uuid) and uuid in self._told
        self._told.add(uuid)
        self.is_repeated = self.is_repeated or is_told
        return is_told

    def _results(self, line: Object, parts: Json, at: float | None) -> None:
        self._answer = None
        facts = as_object(line.get("toolCallResult"))
        for result in results_in(parts):
            call_id = result.call_id or as_name(facts.get("callId"))
            number = self._add("tool", result.text, call_id=call_id or None)
            self._chain.append(number)
            found = self._waiting.pop(call_id, None)
            if found is None:
                continue
            call, place, asked_at = found
            took_s = self._took_s.get(call_id)
            if took_s is None and facts.get("durationMs") is not None:
                took_s = (as_seconds(facts.get("durationMs")) or 0.0) / 1000
            if took_s is None and at is not None and asked_at is not None:
                took_s = max(0.0, at - asked_at)
            call.tools[place] = msgspec.structs.replace(
                call.tools[place],
                duration_s=None if took_s is None else round(took_s, 6),
                result_tokens=self.conversation.tokens_of(number),
                is_error=result.is_error or facts.get("status") == "error",
            )
            call.gap_kind = "tool"
        self._heard(at)

    def _report(self, line: Object, at: float | None, uuid: str) -> None:
        payload = as_object(line.get("systemPayload"))
        if line.get("subtype") == "chat_compression":
            self._compress(payload)
            return
        event = as_object(payload.get("uiEvent"))
        if not is_response(event) or as_name(event.get("subagent_id")):
            return
        if not as_name(event.get("prompt_id")).startswith(_COMPRESSION):
            self._reported = event
        elif not self._is_told(uuid):
            answer = self.conversation.add("assistant", as_text(event.get("response_text")))
            call = Call(prompt=self._chain.snapshot(), answer=answer, ended_s=at, begun_s=at)
            counts_of(call, event)
            timed(call, event)
            self.conversation.calls.append(call)

    def _compress(self, payload: Object) -> None:
        """The prompt anew: what the line says of it, known messages among it."""
        self._answer = None
        self._chain.restart([self._system])
        for content in as_objects(payload.get("compressedHistory")):
            parts = content.get("parts")
            role = "assistant" if content.get("role") == "model" else "user"
            calls, text = calls_in(parts), said_in(parts)
            if calls or text:
                number = self._known.get(RecordedMessage(role=role, text=text))
                if number is None:
                    number = self.conversation.add(role, text, tool_calls=calls)
                self._chain.append(number)
            for result in results_in(parts):
                own_id = result.call_id or None
                number = self._known.get(
                    RecordedMessage(role="tool", text=result.text, call_id=own_id)
                )
                if number is None:
                    number = self._add("tool", result.text, call_id=own_id)
                self._chain.append(number)
        self._is_compacted = True

    def end(self) -> None:
        """No line comes any more."""
        if self.conversation.calls:
            size_unseen(self.conversation, self._system, is_told=False)


def is_response(event: Object) -> bool:
    """Whether a report is of a model's answer."""
    return as_name(event.get("event.name")).endswith(".api_response")


def timed(call: Call, event: Object) -> None:
    """How long a call and its first token took, where the program reported it."""
    took = as_seconds(event.get("duration_ms"))
    told_at = as_instant(event.get("event.timestamp"))
    ttft = as_seconds(event.get("ttft_ms"))
    if took is not None and told_at is not None:
        begun = told_at - took / 1000
        # A prompt was there before it was sent; a call that only a report tells of has no prompt.
        is_reported = call.begun_s is not None and call.begun_s == call.ended_s
        call.begun_s = begun if call.begun_s is None or is_reported else max(begun, call.begun_s)
    call.ttft_s = None if ttft is None else ttft / 1000


def counts_of(call: Call, event: Object) -> None:
    """A call's counts from a report."""
    call.input_tokens = as_count(event.get("input_token_count")) or None
    call.output_tokens = as_count(event.get("output_token_count"))
    call.cached_tokens = as_count(event.get("cached_content_token_count"))
    call.reasoning_tokens = as_count(event.get("thoughts_token_count")) or 0


def _members(runs: Runs) -> list[int]:
    return [number for low, high in runs for number in range(low, high + 1)]
