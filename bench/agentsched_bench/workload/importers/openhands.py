"""OpenHands' `output.jsonl`: one evaluated instance a line, its `history` a list of events.

An action of the agent carries the model's response that it came from; several actions of one
response are parallel calls. An observation names its action as `cause`. Latencies are in `metrics`,
by response id; an action is stamped when the response was there, so a call began that long before.
A condensation makes the prompt anew (compaction); a delegate is a sub-agent. Older files have pairs
[action, observation] instead of events. The new SDK's events (`kind`: ActionEvent and so on) are
read as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import (
    Usage,
    arguments_text,
    definition_texts,
    read_definitions,
    read_tool_calls,
    read_usage,
    recorded_tool,
)
from agentsched_bench.workload.importers.draft import Call, Chain, Conversation, Imported
from agentsched_bench.workload.importers.files import (
    InputFile,
    OnError,
    document,
    is_lines,
    objects,
)
from agentsched_bench.workload.importers.loose import (
    Object,
    as_instant,
    as_list,
    as_name,
    as_object,
    as_objects,
    as_seconds,
    as_text,
    first,
)
from agentsched_bench.workload.token_estimate import estimate_tokens
from agentsched_bench.workload.trace import RecordedToolCall, TraceError

#: Actions by which nothing is asked of a tool.
_NO_TOOL: Final = frozenset({"message", "system", "recall", "condensation", "change_agent_state"})
_NO_TOOL_RESULT: Final = frozenset({"agent_state_changed", "null", "recall"})


@dataclass(frozen=True, slots=True)
class OpenHands:
    """Reads OpenHands' evaluation outputs and event lists."""

    name: str = "openhands"
    title: str = "OpenHands output.jsonl"

    def claims(self, head: Sequence[Any]) -> bool:
        value = head[0] if head else None
        if isinstance(value, list):
            return any(_is_event(event) for event in as_objects(value)[:5])
        history = as_list(as_object(value).get("history"))
        flat = [
            part
            for event in history[:5]
            for part in (event if isinstance(event, list) else [event])
        ]
        return any(_is_event(as_object(event)) for event in flat)

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        for file in files:
            if is_lines(file):
                for number, value in objects(file, on_error=on_error):
                    yield from self._one(file, value, options, on_error=on_error, number=number)
                continue
            whole = document(file, on_error=on_error)
            if whole is not None:
                yield from self._one(
                    file, whole.value, options, on_error=on_error, is_cut=whole.is_cut
                )

    def _one(
        self,
        file: InputFile,
        value: Any,
        options: ImportOptions,
        *,
        on_error: OnError,
        number: int | None = None,
        is_cut: bool = False,
    ) -> Iterator[Imported]:
        record = {"history": value} if isinstance(value, list) else as_object(value)
        default = file.path.name.split(".")[0] + (f"/{number}" if number else "")
        name = as_name(record.get("instance_id"), default=default)
        reader = _History(record)
        reader.read()
        metadata = as_object(record.get("metadata"))
        model = first(
            reader.model or None,
            as_object(metadata.get("llm_config")).get("model"),
            as_object(metadata.get("llm")).get("model"),
        )
        is_found = False
        for part in reader.parts:
            parent = None if part.parent is None else part.parent.full_name(name)
            first_call = part.conversation.calls[0] if part.conversation.calls else None
            begun = None if first_call is None else first_call.begun_s
            recording = part.conversation.recording(
                session_id=part.full_name(name),
                source=options.source or "openhands",
                keeps_text=options.keeps_text,
                workload="swe-bench",
                agent="OpenHands" if parent is None else f"OpenHands/{part.agent}",
                model=as_name(model) or None,
                token_source=part.token_source(),
                parent=parent,
                parent_t_s=part.offset_s(begun),
                is_cut=is_cut,
            )
            if recording is not None:
                is_found = True
                yield Imported(recording=recording, epoch_s=begun)
        if not is_found:
            text = f"{name}: no answer of the model in its history"
            on_error(TraceError(text, path=file.path, line=number))


def _is_event(event: Object) -> bool:
    has_source = "source" in event and ("action" in event or "observation" in event)
    return has_source or as_name(event.get("kind")).endswith("Event")


@dataclass(slots=True, kw_only=True)
class _Part:
    """One conversation: the agent's own, or a delegate's."""

    agent: str = ""
    number: int = 0
    parent: _Part | None = None
    conversation: Conversation = field(default_factory=Conversation)
    chain: Chain = field(default_factory=Chain)
    #: By response id: the call; and for each tool call's event, call and place in its tools.
    calls: dict[str, Call] = field(default_factory=dict)
    waiting: dict[str, tuple[Call, int]] = field(default_factory=dict)
    said_at: float | None = None
    counted: int = 0
    is_compacted: bool = False

    def full_name(self, name: str) -> str:
        return name if self.parent is None else f"{name}/delegate-{self.number}"

    def offset_s(self, begun: float | None) -> float | None:
        if self.parent is None or begun is None or not self.parent.conversation.calls:
            return None
        zero = self.parent.conversation.calls[0].begun_s
        return None if zero is None else max(0.0, begun - zero)

    def token_source(self) -> dict[str, str | None]:
        whole = self.counted == len(self.conversation.calls)
        counted = "recorded" if whole else ("recorded, partly" if self.counted else "estimated")
        return {"input": counted, "output": counted, "result": "estimated"}


class _History:
    """The events of one instance while they are read."""

    def __init__(self, record: Object) -> None:
        self._record = record
        self.model = ""
        self.parts: list[_Part] = [_Part()]
        self._part = self.parts[0]
        metrics = as_object(record.get("metrics"))
        self._latencies = {
            as_name(row.get("response_id")): as_seconds(row.get("latency"))
            for row in as_objects(metrics.get("response_latencies"))
        }
        self._usages = {
            as_name(row.get("response_id")): _metrics_usage(row)
            for row in as_objects(metrics.get("token_usages"))
        }

    def read(self) -> None:
        history = as_list(self._record.get("history"))
        for entry in history:
            # Older versions: [action, observation].
            for event in as_objects(entry) if isinstance(entry, list) else [as_object(entry)]:
                self._event(_modern(event))

    def _event(self, event: Object) -> None:
        at = as_instant(event.get("timestamp"))
        if event.get("observation"):
            self._observe(event, at)
        elif event.get("action"):
            self._act(event, at)

    def _act(self, event: Object, at: float | None) -> None:
        action = as_name(event.get("action"))
        arguments = as_object(event.get("args"))
        if action == "system":
            self._system(arguments)
        elif action == "condensation":
            self._condense(arguments)
        elif action in ("recall", "change_agent_state", "pause", "resume"):
            return
        elif event.get("source") == "user" or (
            action == "message" and event.get("source") != "agent"
        ):
            text = as_text(first(arguments.get("content"), event.get("message")))
            self._part.chain.append(self._part.conversation.add("user", text))
            self._part.said_at = at if at is not None else self._part.said_at
        else:
            self._answer(event, action, arguments, at)

    def _system(self, arguments: Object) -> None:
        conversation = self._part.conversation
        conversation.tool_definitions = read_definitions(arguments.get("tools"))
        if conversation.tool_definitions:
            definitions = definition_texts(conversation.tool_definitions)
            conversation.tool_tokens = estimate_tokens(definitions)
        number = conversation.add("system", as_text(arguments.get("content")))
        conversation.system_tokens = conversation.tokens_of(number)
        self._part.chain.append(number)

    def _condense(self, arguments: Object) -> None:
        """The prompt begins anew: what stood before the first answer, and a summary if any."""
        summary = as_text(arguments.get("summary"))
        runs = self._part.chain.snapshot()
        calls = self._part.conversation.calls
        head = calls[0].prompt if calls else runs
        kept = [number for low, high in head for number in range(low, high + 1)]
        if summary:
            kept.append(self._part.conversation.add("user", summary))
        self._part.chain.restart(kept)
        self._part.is_compacted = True

    def _answer(self, event: Object, action: str, arguments: Object, at: float | None) -> None:
        part = self._part
        metadata = as_object(event.get("tool_call_metadata"))
        response = as_object(metadata.get("model_response"))
        choice = (as_objects(response.get("choices")) or [{}])[0]
        message = as_object(choice.get("message"))
        call_id = as_name(metadata.get("tool_call_id"), default=f"event-{event.get('id')}")
        response_id = as_name(
            first(response.get("id"), event.get("llm_response_id")), default=call_id
        )
        asked = RecordedToolCall(
            id=call_id,
            name=as_name(metadata.get("function_name"), default=action),
            arguments=_arguments(message, call_id, arguments),
        )
        call = part.calls.get(response_id)
        if call is None:
            spoken = read_tool_calls(message)
            is_tool = action not in _NO_TOOL
            asks = spoken or ([asked] if is_tool else [])
            text = as_text(first(message.get("content"), arguments.get("thought"), ""))
            if action == "message" and not text:
                text = as_text(first(arguments.get("content"), event.get("message")))
            call = self._call(response_id, response, asks, text=text, at=at, event=event)
        if action in _NO_TOOL:
            return
        place = next((i for i, tool in enumerate(call.tools) if tool.call_id == call_id), None)
        if place is None:
            call.tools.append(recorded_tool(asked))
            place = len(call.tools) - 1
        for key in (str(event.get("id")), call_id):
            part.waiting[key] = (call, place)
        if at is not None:
            call.ended_s = at if call.ended_s is None else min(call.ended_s, at)
        if action == "delegate":
            self._delegate(arguments, at)

    def _call(
        self,
        response_id: str,
        response: Object,
        asks: Sequence[RecordedToolCall],
        *,
        text: str,
        at: float | None,
        event: Object,
    ) -> Call:
        part = self._part
        prompt = part.chain.snapshot()
        number = part.conversation.add("assistant", text, tool_calls=asks)
        part.chain.append(number)
        usage = read_usage(response.get("usage"))
        if usage.input_tokens is None:
            usage = self._usages.get(response_id, usage)
        part.counted += usage.input_tokens is not None
        latency_s = self._latencies.get(response_id)
        begun = part.said_at
        if at is not None and latency_s is not None:
            begun = max(at - latency_s, part.said_at or 0.0)
        call = Call(
            prompt=prompt,
            answer=number,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens or None,
            reasoning_tokens=usage.reasoning_tokens,
            begun_s=begun if begun is not None else at,
            ended_s=at,
            tools=[recorded_tool(asked) for asked in asks],
            is_compaction=part.is_compacted,
        )
        part.is_compacted = False
        part.calls[response_id] = call
        part.conversation.calls.append(call)
        self.model = self.model or as_name(response.get("model"))
        part.said_at = at if at is not None else part.said_at
        return call

    def _observe(self, event: Object, at: float | None) -> None:
        kind = as_name(event.get("observation"))
        if kind in _NO_TOOL_RESULT:
            return
        if kind == "delegate" and self._part.parent is not None:
            self._part = self._part.parent
        part = self._part
        metadata = as_object(event.get("tool_call_metadata"))
        call_id = as_name(metadata.get("tool_call_id"))
        found = part.waiting.pop(str(event.get("cause")), None) or part.waiting.pop(call_id, None)
        text = as_text(event.get("content")) or as_text(event.get("message"))
        tool = found[0].tools[found[1]] if found is not None else None
        number = part.conversation.add(
            "tool" if tool is not None else "user",
            text,
            call_id=None if tool is None else tool.call_id,
        )
        part.chain.append(number)
        if found is not None and tool is not None:
            ended = found[0].ended_s
            took = None if at is None or ended is None else round(max(0.0, at - ended), 6)
            extras = as_object(event.get("extras"))
            code = as_object(extras.get("metadata")).get("exit_code")
            found[0].tools[found[1]] = msgspec.structs.replace(
                tool,
                duration_s=took,
                result_tokens=part.conversation.tokens_of(number),
                is_error=kind == "error" or (isinstance(code, int) and code != 0),
            )
        part.said_at = at if at is not None else part.said_at

    def _delegate(self, arguments: Object, at: float | None) -> None:
        agent = as_name(arguments.get("agent"), default="delegate")
        part = _Part(agent=agent, number=len(self.parts), parent=self._part, said_at=at)
        part.chain.append(part.conversation.add("user", arguments_text(arguments.get("inputs"))))
        self.parts.append(part)
        self._part = part


def _arguments(message: Object, call_id: str, arguments: Object) -> str:
    for call in read_tool_calls(message):
        if call.id == call_id:
            return call.arguments
    hidden = ("thought", "is_input", "blocking", "hidden", "confirmation_state", "is_static", "cwd")
    return arguments_text({k: v for k, v in arguments.items() if k not in hidden})


def _metrics_usage(row: Object) -> Usage:
    usage = read_usage(row)
    cached = row.get("cache_read_tokens")
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=cached if isinstance(cached, int) and cached > 0 else None,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _modern(event: Object) -> Object:
    """An event of the new SDK in the words of the old one; others as they are."""
    kind = as_name(event.get("kind"))
    if not kind.endswith("Event"):
        return event
    common = {key: event.get(key) for key in ("id", "timestamp", "source")}
    if kind == "SystemPromptEvent":
        args = {"content": as_text(event.get("system_prompt")), "tools": event.get("tools")}
        return common | {"action": "system", "args": args}
    if kind == "MessageEvent":
        message = as_object(event.get("llm_message"))
        source = "user" if message.get("role") == "user" else "agent"
        text = as_text(message.get("content"))
        return common | {"action": "message", "source": source, "args": {"content": text}}
    if kind == "ActionEvent":
        metadata = {
            "function_name": event.get("tool_name"),
            "tool_call_id": event.get("tool_call_id"),
            "model_response": {"id": event.get("llm_response_id")},
        }
        args = dict(as_object(event.get("action"))) | {"thought": as_text(event.get("thought"))}
        name = as_name(event.get("tool_name"), default="tool")
        return common | {"action": name, "args": args, "tool_call_metadata": metadata}
    if kind in ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation"):
        observation = as_object(event.get("observation"))
        text = as_text(
            first(observation.get("content"), observation.get("output"), event.get("error"))
        )
        return common | {
            "observation": "error" if kind == "AgentErrorEvent" else "run",
            "content": text,
            "cause": event.get("action_id"),
            "tool_call_metadata": {"tool_call_id": event.get("tool_call_id")},
        }
    if kind == "Condensation" or kind == "CondensationEvent":
        return common | {"action": "condensation", "args": {"summary": event.get("summary")}}
    return {}
