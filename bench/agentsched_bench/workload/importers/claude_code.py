"""Claude Code's transcripts: one JSON line an event, sub-agents in files of their own or mixed in.

An answer is written as several lines with one `message.id`, a content block each; its usage counts
cached tokens beside `input_tokens`. What a call was asked with came in the lines before it, so the
time from the last of those to the answer's last line is the call's, and from the line with a
`tool_use` to the one with its `tool_result` the tool's. A `compact_boundary` (or a summary in its
place) makes the prompt anew. A sub-agent's lines have `isSidechain` and an `agentId`; the tool
result of the call that started it names that agent. The system prompt and the tools' definitions
are not in a transcript: a message without text stands for them, as large as the first recorded
prompt leaves room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import (
    Usage,
    read_tool_calls,
    read_usage,
    recorded_tool,
    said,
)
from agentsched_bench.workload.importers.draft import Call, Chain, Conversation, Imported
from agentsched_bench.workload.importers.files import InputFile, OnError, objects
from agentsched_bench.workload.importers.loose import (
    Object,
    as_instant,
    as_name,
    as_object,
    as_objects,
    as_text,
    first,
)
from agentsched_bench.workload.trace import RecordedToolCall, TraceError

_LINE_TYPES: Final = frozenset(
    {"user", "assistant", "system", "summary", "attachment", "progress", "queue-operation"}
)
_AGENT_TOOLS: Final = frozenset({"Task", "Agent", "agent", "task"})
#: Answers that Claude Code wrote itself, when no model was asked or none answered.
_SYNTHETIC: Final = "<synthetic>"


@dataclass(frozen=True, slots=True)
class ClaudeCode:
    """Reads Claude Code transcripts; those of sub-agents are joined to their sessions."""

    name: str = "claude-code"
    title: str = "Claude Code transcripts (.jsonl)"

    def claims(self, head: Sequence[Any]) -> bool:
        for value in head:
            line = as_object(value)
            is_line = "sessionId" in line or "uuid" in line or "parentUuid" in line
            if is_line and ("message" in line or as_name(line.get("type")) in _LINE_TYPES):
                return True
            if line.get("type") in ("file-history-snapshot", "summary") and len(line) <= 6:
                continue
        return False

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        for group in _groups(files):
            session = _Session()
            for file in group:
                for _, value in objects(file, on_error=on_error):
                    session.line(as_object(value), file)
            session.end()
            found = list(session.imported(options, default=group[0].path.stem))
            if not found:
                text = "no answer of a model in it"
                on_error(TraceError(text, path=group[0].path))
            yield from found


def _groups(files: Sequence[InputFile]) -> Iterator[list[InputFile]]:
    """Files of one session together, main transcript first: memory is that of one session."""
    groups: dict[str, list[InputFile]] = {}
    strays: list[InputFile] = []
    for file in files:
        folder = file.path.parent
        if folder.name == "subagents":
            groups.setdefault(str(folder.parent), []).append(file)
        elif file.path.name.startswith("agent-"):
            strays.append(file)
        else:
            groups.setdefault(str(folder / _stem(file.path)), []).insert(0, file)
    by_folder: dict[str, list[list[InputFile]]] = {}
    for group in groups.values():
        by_folder.setdefault(str(group[0].path.parent), []).append(group)
    # Older versions put agents' files beside their sessions': only their lines say whose they are.
    for stray in strays:
        owner = _owner(stray, by_folder.get(str(stray.path.parent), []))
        if owner is not None:
            owner.append(stray)
        else:
            groups[str(stray.path)] = [stray]
    yield from groups.values()


def _stem(path: Path) -> str:
    return path.name.split(".jsonl")[0].split(".json")[0]


def _owner(stray: InputFile, groups: Sequence[list[InputFile]]) -> list[InputFile] | None:
    for _, value in objects(stray, on_error=lambda _: None):
        session = as_name(as_object(value).get("sessionId"))
        if session:
            return next((g for g in groups if _stem(g[0].path) == session), None)
    return None


class _Session:
    """One session: its main thread, and its sub-agents by agent id."""

    def __init__(self) -> None:
        self.session_id = ""
        self._threads: dict[str, _Thread] = {"": _Thread()}
        #: Which tool call started which agent, and the agents' kinds by tool call.
        self._agent_calls: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        #: Side chains without an agent id: by the uuid of any of their lines.
        self._chains: dict[str, str] = {}

    def line(self, line: Object, file: InputFile) -> None:
        agent = self._agent_of(line, file)
        if not self.session_id:
            self.session_id = as_name(line.get("sessionId"))
        thread = self._threads.setdefault(agent, _Thread())
        result = as_object(line.get("toolUseResult"))
        child = as_name(first(result.get("agentId"), result.get("agent_id")))
        if child:
            for block in as_objects(as_object(line.get("message")).get("content")):
                call_id = as_name(block.get("tool_use_id"))
                if call_id:
                    self._agent_calls[call_id] = child
        for call in read_tool_calls(as_object(line.get("message"))):
            if call.name in _AGENT_TOOLS:
                self._kinds[call.id] = _kind(as_object(line.get("message")), call)
        thread.line(line)

    def end(self) -> None:
        for thread in self._threads.values():
            thread.end()

    def _agent_of(self, line: Object, file: InputFile) -> str:
        agent = as_name(line.get("agentId"))
        if agent and (line.get("isSidechain") or file.path.name.startswith("agent-")):
            return agent
        if not line.get("isSidechain"):
            return ""
        # A side chain inside of the session's own file: known by its first line.
        parent, own = as_name(line.get("parentUuid")), as_name(line.get("uuid"))
        chain = self._chains.get(parent) or f"sidechain-{len(set(self._chains.values())) + 1}"
        if own:
            self._chains[own] = chain
        return chain

    def imported(self, options: ImportOptions, *, default: str) -> Iterator[Imported]:
        main = self._threads[""]
        name = self.session_id or default
        has_main = bool(main.conversation.calls)
        children = {
            agent: f"{name}/{agent}"
            for agent, thread in self._threads.items()
            if agent and thread.conversation.calls
        }
        started = {agent: call for call, agent in self._agent_calls.items() if agent in children}
        self._match_by_time(children, started)
        owners = self._owners(started)
        for agent, thread in self._threads.items():
            if not thread.conversation.calls:
                continue
            thread.finish({c: children[a] for a, c in started.items() if a in children})
            owner = owners.get(agent, "") if agent else None
            parent = None
            if owner is not None and (owner or has_main):
                parent = children.get(owner, name)
            begun = thread.conversation.calls[0].begun_s
            kind = self._kinds.get(started.get(agent, ""), "sub-agent")
            recording = thread.conversation.recording(
                session_id=children.get(agent, name),
                source=options.source or "claude-code",
                keeps_text=options.keeps_text,
                workload="coding",
                agent="claude-code" if not agent else f"claude-code/{kind}",
                model=thread.model or None,
                token_source=thread.token_source(),
                parent=parent,
                parent_t_s=self._offset(owner, begun) if parent is not None else None,
            )
            if recording is not None:
                yield Imported(recording=recording, epoch_s=begun)

    def _owners(self, started: dict[str, str]) -> dict[str, str]:
        """For each agent the thread whose tool call started it."""
        asked = {
            tool.call_id: agent
            for agent, thread in self._threads.items()
            for call in thread.conversation.calls
            for tool in call.tools
            if tool.call_id
        }
        return {agent: asked.get(call, "") for agent, call in started.items()}

    def _match_by_time(self, children: dict[str, str], started: dict[str, str]) -> None:
        """Agents that no result names go to the agent call that was open when they began."""
        open_calls = [
            (call.ended_s, tool)
            for thread in self._threads.values()
            for call in thread.conversation.calls
            for tool in call.tools
            if tool.name in _AGENT_TOOLS and tool.call_id not in started.values()
        ]
        for agent in children:
            if agent in started:
                continue
            begun = self._threads[agent].conversation.calls[0].begun_s
            fitting = [
                (ended, tool)
                for ended, tool in open_calls
                if ended is not None and begun is not None and ended <= begun + 5.0
            ]
            if fitting:
                best = max(fitting, key=lambda pair: (pair[0], pair[1].call_id or ""))
                open_calls.remove(best)
                started[agent] = best[1].call_id or ""

    def _offset(self, owner: str | None, begun: float | None) -> float | None:
        thread = self._threads.get(owner or "")
        if thread is None or not thread.conversation.calls or begun is None:
            return None
        zero = thread.conversation.calls[0].begun_s
        return None if zero is None else max(0.0, begun - zero)


def _kind(message: Object, call: RecordedToolCall) -> str:
    for block in as_objects(message.get("content")):
        if as_name(block.get("id")) == call.id:
            return as_name(as_object(block.get("input")).get("subagent_type"), default="sub-agent")
    return "sub-agent"


@dataclass(slots=True)
class _Answer:
    """An answer while its lines come in."""

    message_id: str
    call: Call
    texts: list[str] = field(default_factory=list)
    tool_calls: list[RecordedToolCall] = field(default_factory=list)
    asked_at: dict[str, float] = field(default_factory=dict)


class _Thread:
    """One conversation of a session, line by line."""

    def __init__(self) -> None:
        self.conversation = Conversation()
        self.model = ""
        self._chain = Chain()
        self._answer: _Answer | None = None
        #: Lines that were read: their uuids.
        self._seen: set[str] = set()
        self._waiting: dict[str, tuple[Call, int, float | None]] = {}
        self._said_at: float | None = None
        self._is_compacted = False
        self._counted = 0
        self._system = self.conversation.add("system", None, tokens=0)
        self._chain.append(self._system)

    def token_source(self) -> dict[str, str | None]:
        whole = self._counted == len(self.conversation.calls)
        return {
            "input": "recorded" if whole else "recorded, partly",
            "output": "recorded" if whole else "recorded, partly",
            "result": "estimated",
        }

    def line(self, line: Object) -> None:
        uuid = as_name(line.get("uuid"))
        if uuid and uuid in self._seen:
            # A resumed session repeats the lines of the one that it goes on from.
            return
        if uuid:
            self._seen.add(uuid)
        kind = line.get("type")
        message = as_object(line.get("message"))
        at = as_instant(line.get("timestamp"))
        if kind == "assistant" or (kind is None and message.get("role") == "assistant"):
            self._assistant(message, at, line)
        elif kind == "user" or (kind is None and message.get("role") == "user"):
            self._close()
            self._user(message, at, line)
        elif kind == "system" and line.get("subtype") in ("compact_boundary", "compaction"):
            self._close()
            self._compact()

    def _compact(self) -> None:
        self._chain.restart([self._system])
        self._is_compacted = True

    def _user(self, message: Object, at: float | None, line: Object) -> None:
        if line.get("isMeta") and not message.get("content"):
            return
        if line.get("isCompactSummary") and not self._is_compacted:
            self._compact()
        blocks = as_objects(message.get("content"))
        results = [block for block in blocks if block.get("type") == "tool_result"]
        for block in results:
            self._result(block, at)
        rest = [block for block in blocks if block.get("type") != "tool_result"]
        text = said({"content": rest}) if blocks else as_text(message.get("content"))
        if text:
            self._chain.append(self.conversation.add("user", text))
            if self.conversation.calls and not results and not line.get("isMeta"):
                self.conversation.calls[-1].gap_kind = (
                    "tool" if self.conversation.calls[-1].tools else "user"
                )
        if at is not None:
            self._said_at = at if self._said_at is None else max(self._said_at, at)

    def _result(self, block: Object, at: float | None) -> None:
        call_id = as_name(block.get("tool_use_id"))
        number = self.conversation.add("tool", as_text(block.get("content")), call_id=call_id)
        self._chain.append(number)
        found = self._waiting.pop(call_id, None)
        if found is None:
            return
        call, place, asked_at = found
        tool = call.tools[place]
        took = None if at is None or asked_at is None else round(max(0.0, at - asked_at), 6)
        call.tools[place] = msgspec.structs.replace(
            tool,
            duration_s=took,
            result_tokens=self.conversation.tokens_of(number),
            is_error=bool(block.get("is_error")),
        )
        call.gap_kind = "tool"

    def _assistant(self, message: Object, at: float | None, line: Object) -> None:
        if message.get("model") == _SYNTHETIC or line.get("isApiErrorMessage"):
            return
        own_id = as_name(first(message.get("id"), line.get("requestId"), line.get("uuid")))
        answer = self._answer
        if answer is None or answer.message_id != own_id:
            self._close()
            begun = self._said_at if self._said_at is not None else at
            call = Call(
                prompt=self._chain.snapshot(),
                begun_s=begun,
                model=None,
                is_compaction=self._is_compacted,
            )
            self._is_compacted = False
            answer = self._answer = _Answer(message_id=own_id, call=call)
        self._take_usage(answer.call, read_usage(message.get("usage")))
        text = said(message)
        if text:
            answer.texts.append(text)
        for asked in read_tool_calls(message):
            answer.tool_calls.append(asked)
            if at is not None:
                answer.asked_at[asked.id] = at
        if at is not None:
            ended = answer.call.ended_s
            answer.call.ended_s = at if ended is None else max(ended, at)
        self.model = self.model or as_name(message.get("model"))
        if as_name(message.get("model")) not in ("", self.model):
            answer.call.model = as_name(message.get("model"))

    def _take_usage(self, call: Call, usage: Usage) -> None:
        """The last line of an answer has the whole count; earlier ones may have a part."""
        if usage.input_tokens is not None:
            call.input_tokens = max(call.input_tokens or 0, usage.input_tokens)
            call.cached_tokens = usage.cached_tokens
        if usage.output_tokens is not None:
            call.output_tokens = max(call.output_tokens or 0, usage.output_tokens)

    def _close(self) -> None:
        """An answer is whole when anything else follows."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        call = answer.call
        call.answer = self.conversation.add(
            "assistant", "\n".join(answer.texts), tool_calls=answer.tool_calls
        )
        self._chain.append(call.answer)
        self._counted += call.input_tokens is not None
        for asked in answer.tool_calls:
            call.tools.append(recorded_tool(asked))
            place = len(call.tools) - 1
            self._waiting[asked.id] = (call, place, answer.asked_at.get(asked.id))
        self.conversation.calls.append(call)
        self._said_at = call.ended_s if call.ended_s is not None else self._said_at

    def finish(self, children: dict[str, str]) -> None:
        """Name the sub-agents that tool calls started; size what no line tells of."""
        for call in self.conversation.calls:
            for place, tool in enumerate(call.tools):
                child = children.get(tool.call_id or "")
                if child is not None:
                    call.tools[place] = msgspec.structs.replace(tool, child=child)
        head = self.conversation.calls[0]
        if head.input_tokens is not None:
            unseen = head.input_tokens - self.conversation.prompt_tokens(head.prompt)
            self.conversation.resize(self._system, max(0, unseen))
            self.conversation.system_tokens = max(0, unseen) or None

    def end(self) -> None:
        self._close()
