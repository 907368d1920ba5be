"""Qwen Code's chats: `projects/PROJECT/chats/SESSION.jsonl`, sub-agents in `subagents/SESSION/`.

A session that is resumed goes on in its file; a fork begins with a copy of another's lines. Neither
system prompt nor tools are in them: a message without text stands for both. What the program
reports of calls tells of sub-agents, too; some of its own (that keep its memory) have no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.draft import Call, Conversation, Imported
from agentsched_bench.workload.importers.family import Member, Sessions, joined
from agentsched_bench.workload.importers.files import InputFile, OnError, values
from agentsched_bench.workload.importers.loose import (
    Object,
    as_instant,
    as_name,
    as_object,
    as_seconds,
)
from agentsched_bench.workload.importers.qwen_thread import Thread, counts_of, is_response, timed
from agentsched_bench.workload.trace import RecordedTool, TraceError

_CHATS: Final = "chats"
_SUB_AGENTS: Final = "subagents"


@dataclass(frozen=True, slots=True)
class QwenCode:
    """Reads Qwen Code's chats; those of sub-agents are joined to their sessions."""

    name: str = "qwen-code"
    title: str = "Qwen Code chats (.jsonl)"

    def claims(self, head: Sequence[Any]) -> bool:
        return any(_is_line(as_object(value)) for value in head)

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        told: set[str] = set()
        for group in _groups(files):
            sessions = Sessions(partial(_Session, told))
            for file in group:
                for found in values(file, on_error=on_error):
                    line = as_object(found.value)
                    sessions.of(line).line(line)
            is_heard = False
            for session in sessions.all:
                members = session.members(default=group[0].name)
                heard = any(one.conversation.calls for one in members)
                is_heard = is_heard or heard or session.is_repeated
                yield from joined(members, source="qwen-code", options=options)
            # Folders of sessions hold some in which nothing was asked, and copies of others.
            if group[0].is_named and not is_heard:
                on_error(TraceError("no answer of a model in it", path=group[0].path))


def _is_line(line: Object) -> bool:
    has_ids = "uuid" in line and "sessionId" in line
    return has_ids and ("systemPayload" in line or "parts" in as_object(line.get("message")))


def _groups(files: Sequence[InputFile]) -> Iterator[list[InputFile]]:
    """Files of one session together, its own first, and forks behind what they begin with."""
    groups: dict[str, list[InputFile]] = {}
    for file in files:
        folder = file.path.parent
        if folder.parent.name == _SUB_AGENTS:
            groups.setdefault(str(folder.parent.parent / folder.name), []).append(file)
        else:
            above = folder.parent if folder.name == _CHATS else folder
            groups.setdefault(str(above / file.path.name.split(".jsonl")[0]), []).insert(0, file)
    by_session = {Path(key).name: group for key, group in groups.items()}
    origins = {name: _origin(group[0]) for name, group in by_session.items()}

    def forks(key: str) -> int:
        name, count = Path(key).name, 0
        while (name := origins.get(name, "")) and count < len(origins):
            count += 1
        return count

    yield from (groups[key] for key in sorted(groups, key=forks))


def _origin(file: InputFile) -> str:
    """The session that a file begins with a copy of."""
    found = next(values(file, on_error=lambda _: None), None)
    line = as_object(None if found is None else found.value)
    return as_name(as_object(line.get("forkedFrom")).get("sessionId"))


class _Session:
    """One session: its main conversation, and its sub-agents by their ids."""

    def __init__(self, told: set[str]) -> None:
        self.session_id = ""
        self._told = told
        self._took_s: dict[str, float] = {}
        self._threads: dict[str, Thread] = {"": Thread(told, self._took_s)}
        self._kinds: dict[str, str] = {}
        #: What was reported of sub-agents' calls, by agent; and of tools, by the answer's id.
        self._reports: dict[str, list[Object]] = {}
        self._tools: dict[str, list[RecordedTool]] = {}

    @property
    def is_repeated(self) -> bool:
        """Whether it has answers that other files have, too."""
        return any(thread.is_repeated for thread in self._threads.values())

    def line(self, line: Object) -> None:
        self.session_id = self.session_id or as_name(line.get("sessionId"))
        agent = as_name(line.get("agentId")) if line.get("isSidechain") else ""
        thread = self._threads.get(agent)
        if thread is None:
            thread = self._threads[agent] = Thread(self._told, self._took_s)
            self._kinds[agent] = as_name(line.get("agentName"))
        event = as_object(as_object(line.get("systemPayload")).get("uiEvent"))
        if event:
            self._hear(event, as_name(line.get("uuid")))
        thread.line(line)

    def _hear(self, event: Object, uuid: str) -> None:
        agent = as_name(event.get("subagent_id"))
        if agent and is_response(event) and uuid not in self._told:
            self._told.add(uuid)
            self._kinds.setdefault(agent, as_name(event.get("subagent_name")))
            self._reports.setdefault(agent, []).append(event)
        if not as_name(event.get("event.name")).endswith(".tool_call"):
            return
        call_id, took = as_name(event.get("call_id")), as_seconds(event.get("duration_ms"))
        if took is not None and call_id:
            self._took_s[call_id] = took / 1000
        tool = RecordedTool(
            name=as_name(event.get("function_name"), default="tool"),
            duration_s=None if took is None else took / 1000,
            call_id=call_id or None,
            is_error=event.get("success") is False,
        )
        self._tools.setdefault(as_name(event.get("response_id")), []).append(tool)

    def members(self, *, default: str) -> list[Member]:
        """The session's conversations, the main one first. No line comes any more."""
        name = self.session_id or default
        for agent, thread in self._threads.items():
            thread.end()
            _time(thread.conversation.calls, self._reports.get(agent, ()))
        found = [
            Member(
                name=f"{name}/{agent}" if agent else name,
                conversation=thread.conversation,
                agent=self._kind(agent),
                model=thread.model or self._threads[""].model,
                parent=name if agent else None,
                call_id=self._call_of(agent),
            )
            for agent, thread in self._threads.items()
        ]
        for agent, reports in self._reports.items():
            if agent not in self._threads:
                found.append(
                    Member(
                        name=f"{name}/{agent}",
                        conversation=self._reported(reports),
                        agent=self._kind(agent),
                        model=as_name(reports[0].get("model")),
                        parent=name,
                        call_id=self._call_of(agent),
                    )
                )
        return found

    def _kind(self, agent: str) -> str:
        return f"qwen-code/{self._kinds.get(agent) or 'sub-agent'}" if agent else "qwen-code"

    def _call_of(self, agent: str) -> str | None:
        """The tool call that started an agent: its id ends with the call's."""
        asked = (
            tool.call_id
            for thread in self._threads.values()
            for call in thread.conversation.calls
            for tool in call.tools
            if tool.call_id and agent.endswith(tool.call_id)
        )
        return max(asked, key=len, default=None)

    def _reported(self, reports: Sequence[Object]) -> Conversation:
        """The calls of an agent of which there are reports alone: no messages, but counts."""
        conversation = Conversation()
        for event in reports:
            at = as_instant(event.get("event.timestamp"))
            tools = self._tools.get(as_name(event.get("response_id")), [])
            call = Call(begun_s=at, ended_s=at, tools=list(tools))
            counts_of(call, event)
            timed(call, event)
            if call.input_tokens is not None:
                conversation.calls.append(call)
        return conversation


def _time(calls: Sequence[Call], reports: Sequence[Object]) -> None:
    """Times of a sub-agent's calls, from the reports that stand in its parent's file."""
    left = list(reports)
    for call in calls:
        while left:
            told = Call()
            counts_of(told, left[0])
            if told.input_tokens == call.input_tokens:
                timed(call, left.pop(0))
                break
            left.pop(0)
