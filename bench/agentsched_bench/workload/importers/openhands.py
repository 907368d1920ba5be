"""OpenHands' `output.jsonl`: one evaluated instance a line, its `history` a list of events.

An action of the agent carries the model's response that it came from; several actions of one
response are parallel calls. An observation names its action as `cause`. Latencies are in `metrics`,
by response id; an action is stamped when the response was there, so a call began that long before.
A condensation leaves events out of the prompt (compaction); a delegate is a sub-agent. Older files
have pairs [action, observation] instead of events. The new SDK's events (`kind`: ActionEvent and so
on) are read as well, also from a file an event, as it keeps its conversations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import (
    arguments_text,
    definition_texts,
    read_definitions,
    read_tool_calls,
    read_usage,
    recorded_tool,
)
from agentsched_bench.workload.importers.draft import Call, Chain, Conversation, Imported
from agentsched_bench.workload.importers.files import InputFile, OnError, Value, documents
from agentsched_bench.workload.importers.loose import (
    Object,
    as_count,
    as_instant,
    as_list,
    as_name,
    as_object,
    as_objects,
    as_text,
    first,
)
from agentsched_bench.workload.importers.openhands_events import (
    Metrics,
    groups_of,
    history_of,
    is_event,
    modern,
)
from agentsched_bench.workload.token_estimate import estimate_tokens
from agentsched_bench.workload.trace import RecordedToolCall, TraceError

#: More events than this no condensation forgets.
_FORGOTTEN_MAX: Final = 1_000_000
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
        if isinstance(value, list) and history_of(value) is None:
            value = next(iter(value), None)
        return is_event(value) or history_of(value) is not None

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        #: By its folder: a conversation's name, and when it began.
        kept: dict[Path, tuple[str, float | None]] = {}
        for group in groups_of(files):
            events: list[Object] = []
            for file in group.files:
                for found in documents(file, on_error=on_error, is_one=_is_history):
                    if is_event(found.value):
                        events.append(found.value)
                        continue
                    yield from self._one(group.name, file, found, options, on_error=on_error)
            if events:
                whole = Value(value=group.state() | {"history": events})
                owner = kept.get(group.owner) if group.owner is not None else None
                for imported in self._one(
                    group.name, group.files[0], whole, options, on_error=on_error, owner=owner
                ):
                    own = (imported.recording.session_id, imported.epoch_s)
                    kept.setdefault(group.folder, own)
                    yield imported

    def _one(
        self,
        default: str,
        file: InputFile,
        found: Value,
        options: ImportOptions,
        *,
        on_error: OnError,
        owner: tuple[str, float | None] | None = None,
    ) -> Iterator[Imported]:
        record = as_object(found.value)
        default += found.mark
        name = as_name(record.get("instance_id"), default=default)
        if owner is not None:
            name = f"{owner[0]}/{name}"
        reader = _History(record, history_of(found.value) or [])
        reader.read()
        metadata = as_object(record.get("metadata"))
        model = first(
            reader.model or None,
            as_object(metadata.get("llm_config")).get("model"),
            as_object(metadata.get("llm")).get("model"),
            as_object(as_object(record.get("agent")).get("llm")).get("model"),
        )
        is_found = False
        for part in reader.parts:
            first_call = part.conversation.calls[0] if part.conversation.calls else None
            begun = None if first_call is None else first_call.begun_s
            parent, offset_s, agent = None, part.offset_s(begun), part.agent
            if part.parent is not None:
                parent = part.parent.full_name(name)
            elif owner is not None:
                parent, agent = owner[0], "sub-agent"
                if begun is not None and owner[1] is not None:
                    offset_s = max(0.0, begun - owner[1])
            recording = part.conversation.recording(
                session_id=part.full_name(name),
                source=options.source or "openhands",
                keeps_text=options.keeps_text,
                workload="swe-bench",
                agent="OpenHands" if parent is None else f"OpenHands/{agent}",
                model=as_name(model) or None,
                token_source=part.token_source(),
                parent=parent,
                parent_t_s=offset_s,
                is_cut=found.is_cut,
            )
            if recording is not None:
                is_found = True
                yield Imported(recording=recording, epoch_s=begun)
        if not is_found:
            text = f"{name}: no answer of the model in its history"
            on_error(TraceError(text, path=file.path, line=found.line))


@dataclass(slots=True, kw_only=True)
class _Part:
    """One conversation: the agent's own, or a delegate's."""

    agent: str = ""
    number: int = 0
    parent: _Part | None = None
    conversation: Conversation = field(default_factory=Conversation)
    chain: Chain = field(default_factory=Chain)
    #: By response id: the call; and for each tool call's event, call, place in its tools, and when.
    calls: dict[str, Call] = field(default_factory=dict)
    waiting: dict[str, tuple[Call, int, float | None]] = field(default_factory=dict)
    #: By response id, where events alone say what an answer was: its text and its calls so far.
    spoken: dict[str, tuple[str, list[RecordedToolCall]]] = field(default_factory=dict)
    said_at: float | None = None
    counted: int = 0
    is_compacted: bool = False
    #: The event that brought a message into the prompt, by the message's number.
    told_by: dict[int, str] = field(default_factory=dict)

    def tell(self, number: int, event: Object) -> None:
        """Put a message at the end of the prompt."""
        self.chain.append(number)
        self.told_by[number] = str(event.get("id"))

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

    def __init__(self, record: Object, history: Sequence[Any]) -> None:
        # Older versions: [action, observation].
        raw = [
            event
            for entry in history
            for event in (as_objects(entry) if isinstance(entry, list) else [as_object(entry)])
        ]
        self._events = [modern(event) for event in raw]
        self._metrics = Metrics(record, raw)
        self.model = ""
        self.parts: list[_Part] = [_Part()]
        self._part = self.parts[0]
        #: The task, where no event tells it.
        self._task = as_text(record.get("instruction"))

    def read(self) -> None:
        for event in self._events:
            self._event(event)

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
            self._system(arguments, event)
        elif action == "condensation":
            self._condense(arguments)
        elif action in ("recall", "change_agent_state", "pause", "resume"):
            return
        elif event.get("source") == "user" or (
            action == "message" and event.get("source") != "agent"
        ):
            text = as_text(first(arguments.get("content"), event.get("message")))
            self._part.tell(self._part.conversation.add("user", text), event)
            self._task = ""
            self._part.said_at = at if at is not None else self._part.said_at
        else:
            self._answer(event, action, arguments, at)

    def _system(self, arguments: Object, event: Object) -> None:
        conversation = self._part.conversation
        conversation.tool_definitions = read_definitions(arguments.get("tools"))
        if conversation.tool_definitions:
            definitions = definition_texts(conversation.tool_definitions)
            conversation.tool_tokens = estimate_tokens(definitions)
        number = conversation.add("system", as_text(arguments.get("content")))
        conversation.system_tokens = conversation.tokens_of(number)
        self._part.tell(number, event)

    def _condense(self, arguments: Object) -> None:
        """The prompt loses what was forgotten, and a summary stands where that began.

        Where nothing says what was: what stood before the first answer is kept.
        """
        part = self._part
        numbers = [n for low, high in part.chain.snapshot() for n in range(low, high + 1)]
        forgotten = _forgotten(arguments)
        kept = [n for n in numbers if part.told_by.get(n) not in forgotten]
        if len(kept) == len(numbers):
            head = part.conversation.calls[0].prompt if part.conversation.calls else ()
            kept = [n for low, high in head for n in range(low, high + 1)] if head else numbers
        left = set(kept)
        begins = next((i for i, n in enumerate(numbers) if n not in left), len(kept))
        summary = as_text(arguments.get("summary"))
        if summary:
            kept.insert(begins, part.conversation.add("user", summary))
        part.chain.restart(kept)
        part.is_compacted = True

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
            arguments=_arguments(message, metadata, call_id, arguments),
        )
        call = part.calls.get(response_id)
        if call is None:
            spoken = read_tool_calls(message)
            is_tool = action not in _NO_TOOL
            asks = spoken or ([asked] if is_tool else [])
            text = as_text(first(message.get("content"), arguments.get("thought"), ""))
            if action == "message" and not text:
                text = as_text(first(arguments.get("content"), event.get("message")))
            if not spoken:
                part.spoken[response_id] = (text, asks)
            call = self._call(response_id, response, asks, text=text, at=at, event=event)
        if action in _NO_TOOL:
            return
        place = next((i for i, tool in enumerate(call.tools) if tool.call_id == call_id), None)
        if place is None:
            call.tools.append(recorded_tool(asked))
            place = len(call.tools) - 1
            self._add_to(response_id, call, asked)
        for key in (str(event.get("id")), call_id):
            part.waiting[key] = (call, place, at)
        if at is not None:
            call.ended_s = at if call.ended_s is None else min(call.ended_s, at)
        if action == "delegate":
            self._delegate(arguments, at)

    def _add_to(self, response_id: str, call: Call, asked: RecordedToolCall) -> None:
        """One answer asked for this as well."""
        text, asks = self._part.spoken.get(response_id, ("", None))
        if asks is not None and call.answer is not None:
            asks.append(asked)
            self._part.conversation.rewrite(call.answer, text=text, tool_calls=asks)

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
        if self._task and not part.conversation.calls:
            part.chain.append(part.conversation.add("user", self._task))
        self._task = ""
        prompt = part.chain.snapshot()
        number = part.conversation.add("assistant", text, tool_calls=asks)
        part.tell(number, event)
        usage = read_usage(response.get("usage"))
        if usage.input_tokens is None:
            usage = self._metrics.usages.get(response_id, usage)
        part.counted += usage.input_tokens is not None
        latency_s = self._metrics.latencies.get(response_id)
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
        part.tell(number, event)
        if found is not None and tool is not None:
            # Some versions put the second action there when the first one's observation is.
            since = first(found[2], found[0].ended_s)
            took = None if at is None or since is None else round(max(0.0, at - since), 6)
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


def _is_history(value: Any) -> bool:
    """Whether a list is one of events, rather than of instances."""
    return history_of(value) is not None


def _forgotten(arguments: Object) -> frozenset[str]:
    """The events that a condensation leaves out: by their ids, or from one number to another."""
    ids = {str(own) for own in as_list(arguments.get("forgotten_event_ids"))}
    low = as_count(arguments.get("forgotten_events_start_id"))
    high = as_count(arguments.get("forgotten_events_end_id"))
    if low is not None and high is not None and high - low < _FORGOTTEN_MAX:
        ids.update(map(str, range(low, high + 1)))
    return frozenset(ids)


def _arguments(message: Object, metadata: Object, call_id: str, arguments: Object) -> str:
    told = as_object(metadata.get("tool_call"))
    for call in read_tool_calls(message) + read_tool_calls({"tool_calls": [told] if told else []}):
        if call.id == call_id:
            return call.arguments
    hidden = ("thought", "is_input", "blocking", "hidden", "confirmation_state", "is_static", "cwd")
    return arguments_text({k: v for k, v in arguments.items() if k not in hidden})
