"""mini-swe-agent's `.traj.json`, and plain lists of chat messages with or without usage.

Version 1 has text answers with one command in a code block, and the provider's whole response with
whole-second `created` times. Version 2 has tool calls, and `extra.timestamp` on every message (in
fractions of a second: calls and tools are told apart), or items of the Responses API in the list;
an answer of a wrong form is in what complains about it. A line or a document with nothing but
`messages` (and perhaps `usage`) is read in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import (
    Usage,
    fenced_command,
    read_definitions,
    read_tool_calls,
    read_usage,
    recorded_tool,
    said,
)
from agentsched_bench.workload.importers.draft import (
    Call,
    Chain,
    Conversation,
    Imported,
    command_word,
)
from agentsched_bench.workload.importers.files import InputFile, OnError, Value, documents
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_instant,
    as_json,
    as_list,
    as_name,
    as_number,
    as_object,
    as_objects,
    as_text,
    first,
)
from agentsched_bench.workload.trace import (
    RecordedTool,
    RecordedToolCall,
    TraceError,
)

_NOT_SENT = frozenset({"exit"})
#: Who speaks first in a list that is all messages and says nothing else.
_ROLES: Final = ("system", "developer", "user")
_RETURN_CODE: Final = re.compile(r"\s*<returncode>(-?\d{1,9})</returncode>")
#: What names a session, the most particular first.
_NAMES = ("trajectory_id", "traj_id", "instance_id", "session_id", "id")


@dataclass(frozen=True, slots=True)
class MiniSweAgent:
    """Reads mini-swe-agent trajectories and lists of chat messages."""

    name: str = "mini-swe-agent"
    title: str = "mini-swe-agent .traj.json, or chat messages (with usage)"

    def claims(self, head: Sequence[Any]) -> bool:
        value = _whole(head[0]) if head else {}
        if as_name(value.get("trajectory_format")).startswith("mini-swe-agent"):
            return True
        # A call's log has its prompt and the response to it: many of them are one conversation.
        is_log = "response" in value and "messages" in value
        return not is_log and any("role" in message for message in _messages_of(value))

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        for file in files:
            for found in documents(file, on_error=on_error, is_one=_is_conversation):
                imported = self._one(file, found, options)
                if imported is not None:
                    yield imported
                    continue
                text = "no assistant's message in it"
                on_error(TraceError(text, path=file.path, line=found.line))

    def _one(self, file: InputFile, found: Value, options: ImportOptions) -> Imported | None:
        value = _whole(found.value)
        reader = _Messages()
        reader.read(value)
        info = as_object(value.get("info"))
        is_mini = "mini_version" in info or "trajectory_format" in value
        default = file.name + found.mark
        name = first(*(value.get(key) for key in _NAMES))
        recording = reader.conversation.recording(
            session_id=as_name(name, default=default),
            source=options.source or ("mini-swe-agent" if is_mini else "chat-messages"),
            keeps_text=options.keeps_text,
            workload="swe-bench" if is_mini else None,
            agent="mini-swe-agent" if is_mini else as_name(value.get("agent")) or None,
            model=_model(value, reader) or None,
            token_source=reader.token_source(),
            exit_status=as_name(info.get("exit_status")) or None,
            is_cut=found.is_cut,
        )
        if recording is None:
            return None
        return Imported(recording=recording, epoch_s=reader.conversation.calls[0].begun_s)


def _is_conversation(value: Json) -> bool:
    """Whether a list is one of messages, rather than of recordings."""
    head = as_objects(value)[:1]
    return any(item.get("role") in _ROLES and "messages" not in item for item in head)


def _whole(value: Json) -> Object:
    """A recording: itself, one whose messages are all there is, or the first of a list of them."""
    while isinstance(value, list):
        if _is_conversation(value):
            return {"messages": value}
        value = value[0] if value else None
    return as_object(value)


def _messages_of(value: Object) -> list[Object]:
    """The messages, wherever data sets put them; some as JSON in a string."""
    for key in ("messages", "trajectory", "conversation", "conversations"):
        found = as_objects(as_json(value.get(key)))
        if found:
            return found
    return []


def _model(value: Object, reader: _Messages) -> str:
    config = as_object(as_object(as_object(value.get("info")).get("config")).get("model"))
    return as_name(first(reader.model or None, config.get("model_name"), value.get("model")))


@dataclass(slots=True)
class _Messages:
    """A list of chat messages while it is read."""

    conversation: Conversation = field(default_factory=Conversation)
    model: str = ""
    _chain: Chain = field(default_factory=Chain)
    #: Tool calls of the last answer that still wait for their results, by id.
    _open: dict[str, int] = field(default_factory=dict)
    #: When what was last said to the model was there.
    _said_at: float | None = None
    #: Whether that is not known because of an answer without a time, of a wrong form.
    _is_unsure: bool = False
    _usages: Sequence[Json] = ()
    _counted: int = 0

    def token_source(self) -> dict[str, str | None]:
        whole = self._counted == len(self.conversation.calls)
        counted = "recorded" if whole else ("recorded, partly" if self._counted else "estimated")
        return {"input": counted, "output": counted, "result": "estimated"}

    def read(self, value: Object) -> None:
        self._usages = as_list(value.get("usage"))
        self.conversation.tool_definitions = read_definitions(as_json(value.get("tools")))
        messages = _messages_of(value)
        # Anthropic's requests have it beside their messages.
        system = as_text(value.get("system"))
        if system and not any(message.get("role") == "system" for message in messages):
            self._chain.append(self.conversation.add("system", system))
        for message in messages:
            role = as_name(message.get("role"))
            if _is_response(message):
                self._answer(_from_response(message), response=message)
            elif role in ("assistant", "model", "ai"):
                extra = as_object(message.get("extra"))
                self._answer(message, response=as_object(extra.get("response")))
            else:
                failed = _failed_response(message)
                if failed:
                    self._fail(message, failed)
                if role not in _NOT_SENT:
                    self._hear(message, role)
        self._finish()

    def _hear(self, message: Object, role: str) -> None:
        """Something from outside the model: a task, a tool's result, an observation."""
        extra = as_object(message.get("extra"))
        at = as_instant(first(extra.get("timestamp"), message.get("timestamp")))
        if as_name(message.get("type")).endswith("_output"):
            role = "tool"
        text = as_text(message.get("output")) if "output" in message else said(message)
        call_id = as_name(first(message.get("tool_call_id"), message.get("call_id"))) or None
        blocks = as_objects(message.get("content"))
        results = [block for block in blocks if block.get("type") == "tool_result"]
        if not results:
            is_error = _has_failed(text, extra)
            self._result(role or "user", text, call_id=call_id, at=at, is_error=is_error)
            return
        for block in results:
            block_id = as_name(block.get("tool_use_id")) or None
            text, is_error = as_text(block.get("content")), block.get("is_error") is True
            self._result("tool", text, call_id=block_id, at=at, is_error=is_error)
        beside = said({"content": [b for b in blocks if b.get("type") != "tool_result"]})
        if beside:
            self._chain.append(self.conversation.add(role or "user", beside))

    def _result(
        self, role: str, text: str, *, call_id: str | None, at: float | None, is_error: bool
    ) -> None:
        number = self.conversation.add(role, text, call_id=call_id)
        self._chain.append(number)
        if self.conversation.calls:
            last = self.conversation.calls[-1]
            place = self._open.pop(call_id, None) if call_id else None
            if place is None and self._open:
                place = self._open.pop(next(iter(self._open)))
            if place is not None:
                took = None if at is None or last.ended_s is None else at - last.ended_s
                last.tools[place] = msgspec.structs.replace(
                    last.tools[place],
                    result_tokens=self.conversation.tokens_of(number),
                    duration_s=None if took is None else round(max(0.0, took), 6),
                    is_error=is_error,
                )
        if at is not None:
            self._said_at = at

    def _answer(self, message: Object, *, response: Object) -> None:
        extra = as_object(message.get("extra"))
        created = _created(message, response)
        at = as_instant(first(extra.get("timestamp"), message.get("timestamp")))
        begun, ended = (self._said_at, at) if at is not None else (created, None)
        if at is not None and begun is None:
            # Nothing tells when it was asked; `created` is as near as one gets.
            is_near = created is not None and created <= at
            begun = created if is_near else at
            ended = at if is_near or not self._is_unsure else None
        completed = as_instant(response.get("completed_at"))
        if at is None and created is not None and completed is not None:
            ended = max(created, completed)
        self._open = {}
        tools = self._tools(read_tool_calls(message), said(message), extra)
        number = self._call(message, response, begun=begun, ended=ended, tools=tools)
        self._chain.append(number)
        if at is not None:
            self._said_at, self._is_unsure = at, False

    def _fail(self, message: Object, response: Object) -> None:
        """A call whose answer was of a wrong form: it is kept beside what was said of that.

        It is sent to no later call, and nothing tells when it was there.
        """
        choices = as_objects(response.get("choices"))
        answer = as_object(choices[0].get("message")) if choices else _from_response(response)
        begun = first(self._said_at, _created(message, response))
        ended = as_instant(as_object(message.get("extra")).get("timestamp"))
        self._open = {}
        self._call(answer, response, begun=begun, ended=ended, tools=[])
        self._said_at, self._is_unsure = None, True

    def _call(
        self,
        message: Object,
        response: Object,
        *,
        begun: float | None,
        ended: float | None,
        tools: list[RecordedTool],
    ) -> int:
        """Keep an answer and its call; the number of the answer."""
        usage = self._usage(message, response)
        number = self.conversation.add(
            "assistant", said(message), tool_calls=read_tool_calls(message)
        )
        self.model = self.model or as_name(response.get("model"))
        self.conversation.calls.append(
            Call(
                prompt=self._chain.snapshot(),
                answer=number,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                begun_s=begun,
                ended_s=ended,
                tools=tools,
            )
        )
        return number

    def _tools(
        self, calls: Sequence[RecordedToolCall], text: str, extra: Object
    ) -> list[RecordedTool]:
        if calls:
            self._open = {call.id: index for index, call in enumerate(calls)}
            return [recorded_tool(call) for call in calls]
        actions = as_objects(extra.get("actions"))
        commands = [as_text(action.get("command")) for action in actions]
        if not commands:
            found = fenced_command(text)
            commands = [found] if found else []
        self._open = {f"#{index}": index for index in range(len(commands))}
        return [RecordedTool(name="bash", command=command_word(c)) for c in commands]

    def _usage(self, message: Object, response: Object) -> Usage:
        usage = read_usage(first(response.get("usage"), message.get("usage")))
        index = len(self.conversation.calls)
        if usage.input_tokens is None and index < len(self._usages):
            row = self._usages[index]
            if isinstance(row, list) and len(row) >= 2:
                # [prompt, answer, cached], as lists of texts beside recorded traces have it.
                usage = Usage(
                    input_tokens=as_count(row[0]) or None,
                    output_tokens=as_count(row[1]),
                    cached_tokens=as_count(row[2]) if len(row) > 2 else None,
                )
            else:
                usage = read_usage(row)
        self._counted += usage.input_tokens is not None
        return usage

    def _finish(self) -> None:
        """Whole-second times of answers alone give cycles, not calls and pauses."""
        calls = self.conversation.calls
        for call, following in pairwise(calls):
            if call.begun_s is not None and call.ended_s is None and following.begun_s is not None:
                call.cycle_s = max(0.0, following.begun_s - call.begun_s)


def _has_failed(text: str, extra: Object) -> bool:
    """Whether a command did: version 2 keeps its code, version 1 tells it to the model alone."""
    told = _RETURN_CODE.match(text)
    code = as_number(first(extra.get("returncode"), told.group(1) if told else None))
    return bool(code) or bool(extra.get("exception_info"))


def _is_response(message: Object) -> bool:
    """Whether it is a whole answer of the Responses API; results of tools have an `output`, too."""
    is_result = as_name(message.get("type")).endswith("_output")
    has_items = isinstance(message.get("output"), list)
    return message.get("object") == "response" or (has_items and not is_result)


def _failed_response(message: Object) -> Object:
    """The response that this message is the complaint about, as mini-swe-agent 2 keeps it."""
    extra = as_object(message.get("extra"))
    response = as_object(extra.get("response"))
    if any(key in response for key in ("usage", "choices", "output")):
        return response
    # Its first releases kept the text alone.
    text = extra.get("model_response")
    return {"choices": [{"message": {"content": text}}]} if isinstance(text, str) else {}


def _created(message: Object, response: Object) -> float | None:
    return as_instant(
        first(response.get("created"), response.get("created_at"), message.get("created"))
    )


def _from_response(response: Object) -> Object:
    """A Responses API object as a chat message."""
    texts: list[str] = []
    calls: list[Object] = []
    for item in as_objects(response.get("output")):
        if item.get("type") == "message":
            texts.append(as_text(item.get("content")))
        elif item.get("type") in ("function_call", "custom_tool_call"):
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            calls.append({"id": first(item.get("call_id"), item.get("id")), "function": function})
    extra = as_object(response.get("extra"))
    return {"content": "\n".join(texts), "tool_calls": calls, "extra": extra}
