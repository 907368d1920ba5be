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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import read_tool_calls
from agentsched_bench.workload.importers.claude_thread import Thread
from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.family import Sessions
from agentsched_bench.workload.importers.files import InputFile, OnError, values
from agentsched_bench.workload.importers.loose import (
    Object,
    as_name,
    as_object,
    as_objects,
    first,
    flat,
)
from agentsched_bench.workload.trace import RecordedTool, RecordedToolCall, TraceError

_LINE_TYPES: Final = frozenset(
    {"user", "assistant", "system", "summary", "attachment", "progress", "queue-operation"}
)
_AGENT_TOOLS: Final = frozenset({"Task", "Agent", "agent", "task"})
_SUB_AGENTS: Final = "subagents"
#: Lines of two files are stamped in their order this well.
_SLACK_S: Final = 5.0
#: Agents that no tool call starts, by how their ids begin, and what they are for.
_UNASKED: Final = {
    "acompact-": "compaction",
    "aside_question-": "side question",
    "aprompt_suggestion-": "prompt suggestion",
}


@dataclass(frozen=True, slots=True)
class ClaudeCode:
    """Reads Claude Code transcripts; those of sub-agents are joined to their sessions."""

    name: str = "claude-code"
    title: str = "Claude Code transcripts (.jsonl)"

    def claims(self, head: Sequence[Any]) -> bool:
        return any(_is_line(as_object(value)) for value in flat(head))

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        told: set[str] = set()
        for group in _groups(files):
            sessions = Sessions(partial(_Session, told))
            for file in group:
                for found in values(file, on_error=on_error):
                    for value in flat([found.value]):
                        line = as_object(value)
                        sessions.of(line).line(line, file)
            is_heard = False
            for session in sessions.all:
                session.end()
                is_heard = is_heard or session.is_repeated
                for imported in session.imported(options, default=_stem(group[0].path)):
                    is_heard = True
                    yield imported
            # Folders of sessions hold some in which nothing was asked, and copies of others.
            if group[0].is_named and not is_heard:
                on_error(TraceError("no answer of a model in it", path=group[0].path))


def _is_line(line: Object) -> bool:
    kind = as_name(line.get("type"))
    if kind == "summary" and "leafUuid" in line:
        return True
    if kind == "file-history-snapshot" and "snapshot" in line:
        return True
    has_id = any(key in line for key in ("sessionId", "session_id", "uuid", "parentUuid"))
    if "parts" in as_object(line.get("message")):
        return False  # Qwen Code's, which are alike but for the messages
    return has_id and (
        kind in _LINE_TYPES or (kind in ("", "user", "assistant") and "message" in line)
    )


def _groups(files: Sequence[InputFile]) -> Iterator[list[InputFile]]:
    """Files of one session together, main transcript first: memory is that of one session."""
    groups: dict[str, list[InputFile]] = {}
    strays: list[InputFile] = []
    for file in files:
        folder = file.path.parent
        above = next((p for p in file.path.parents if p.name == _SUB_AGENTS), None)
        if above is not None:
            groups.setdefault(str(above.parent), []).append(file)
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
    for found in values(stray, on_error=lambda _: None):
        session = as_name(as_object(found.value).get("sessionId"))
        if session:
            return next((g for g in groups if _stem(g[0].path) == session), None)
    return None


class _Session:
    """One session: its main thread, and its sub-agents by agent id."""

    def __init__(self, told: set[str]) -> None:
        self.session_id = ""
        self._told = told
        self._threads: dict[str, Thread] = {"": Thread(told)}
        #: Which tool call started which agent or workflow, and the agents' kinds by tool call.
        self._started: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        #: Side chains without an agent id: by the uuid of any of their lines.
        self._chains: dict[str, str] = {}
        #: Workflows by the agents whose files lie in their folders.
        self._workflows: dict[str, str] = {}
        #: Lines of agents as their parent was told of them, for agents without a file.
        self._heard: dict[str, list[Object]] = {}

    @property
    def is_repeated(self) -> bool:
        """Whether it has answers, all of which other files have, too."""
        return any(thread.is_repeated for thread in self._threads.values())

    def line(self, line: Object, file: InputFile) -> None:
        if not self.session_id:
            self.session_id = as_name(first(line.get("sessionId"), line.get("session_id")))
        if line.get("type") == "progress":
            self._hear(line)
        agent = self._agent_of(line, file)
        thread = self._threads.get(agent)
        if thread is None:
            thread = self._threads[agent] = Thread(self._told)
        result = as_object(line.get("toolUseResult"))
        child = as_name(first(result.get("agentId"), result.get("agent_id"), result.get("runId")))
        if child:
            for block in as_objects(as_object(line.get("message")).get("content")):
                call_id = as_name(block.get("tool_use_id"))
                if call_id:
                    self._started.setdefault(child, call_id)
        for call in read_tool_calls(as_object(line.get("message"))):
            if call.name in _AGENT_TOOLS:
                self._kinds[call.id] = _kind(as_object(line.get("message")), call)
        thread.line(line)

    def _hear(self, line: Object) -> None:
        """What an agent's parent was shown of it while it worked."""
        facts = as_object(line.get("data"))
        agent, told = as_name(facts.get("agentId")), as_object(facts.get("message"))
        call_id = as_name(line.get("parentToolUseID"))
        if not agent or facts.get("type") != "agent_progress":
            return
        if call_id:
            self._started.setdefault(agent, call_id)
        if told:
            own = {"uuid": told.get("uuid"), "timestamp": line.get("timestamp")}
            self._heard.setdefault(agent, []).append(own | told)

    def end(self) -> None:
        """No line comes any more: agents that have no lines of their own have those heard."""
        for agent, told in self._heard.items():
            if agent not in self._threads:
                thread = self._threads[agent] = Thread(self._told)
                for line in told:
                    thread.line(line)
        for thread in self._threads.values():
            thread.end()

    def _agent_of(self, line: Object, file: InputFile) -> str:
        agent = as_name(line.get("agentId"))
        if agent and (line.get("isSidechain") or file.path.name.startswith("agent-")):
            folder = file.path.parent.name
            if folder != _SUB_AGENTS and _SUB_AGENTS in file.path.parts:
                self._workflows[agent] = folder
            return agent
        called = as_name(line.get("parent_tool_use_id"))
        if called:
            # A print of the session: its sub-agents are known by their calls alone.
            self._started.setdefault(called, called)
            return called
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
        started = {agent: call for agent in children if (call := self._call_of(agent))}
        self._match_by_time(children, started)
        owners = self._owners(started)
        for agent, thread in self._threads.items():
            if not thread.conversation.calls:
                continue
            thread.finish({started[a]: children[a] for a in reversed(started) if a in children})
            owner = owners.get(agent, "") if agent else None
            parent = None
            if owner is not None and (owner or has_main):
                parent = children.get(owner, name)
            begun = thread.conversation.calls[0].begun_s
            kind = self._kinds.get(started.get(agent, ""), _unasked(agent) or "sub-agent")
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

    def _call_of(self, agent: str) -> str:
        """The tool call that started an agent, or the workflow that it is a part of."""
        return self._started.get(agent) or self._started.get(self._workflows.get(agent, ""), "")

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
            if agent in started or _unasked(agent):
                continue
            begun = self._threads[agent].conversation.calls[0].begun_s
            fitting = [
                (ended, tool)
                for ended, tool in open_calls
                if ended is not None and begun is not None and _was_open(ended, tool, begun)
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


def _unasked(agent: str) -> str:
    return next((kind for start, kind in _UNASKED.items() if agent.startswith(start)), "")


def _was_open(asked_s: float, tool: RecordedTool, at: float) -> bool:
    """Whether a tool call had been made by then and had no result yet."""
    ended_s = None if tool.duration_s is None else asked_s + tool.duration_s
    return asked_s <= at + _SLACK_S and (ended_s is None or at <= ended_s + _SLACK_S)


def _kind(message: Object, call: RecordedToolCall) -> str:
    for block in as_objects(message.get("content")):
        if as_name(block.get("id")) == call.id:
            return as_name(as_object(block.get("input")).get("subagent_type"), default="sub-agent")
    return "sub-agent"
