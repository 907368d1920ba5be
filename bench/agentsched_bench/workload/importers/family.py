"""A session's conversations joined: sub-agents named by the tool calls that started them.

What agents' own session files have in common once their lines are read: one main conversation,
sub-agents that name their parent or the tool call, and a system prompt that nobody wrote down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.draft import Conversation, Imported
from agentsched_bench.workload.importers.loose import Object, as_name, first

SessionT = TypeVar("SessionT")


@dataclass(slots=True, kw_only=True)
class Member:
    """One conversation. `parent` is the name of the one that started it, `call_id` its tool call.

    A call's id goes before a parent's name where both are known and do not agree.
    """

    name: str
    conversation: Conversation
    agent: str
    model: str = ""
    parent: str | None = None
    call_id: str | None = None
    is_cut: bool = False


class Sessions(Generic[SessionT]):
    """The sessions of files that belong together: one, or several that were put in one file.

    Lines name their session (`sessionId`) and the line before them (`parentUuid`). A file that was
    resumed or forked has lines of two names that go on from each other: those are one session. A
    name that is new, on a line that goes on from none that is known, begins another.
    """

    def __init__(self, make: Callable[[], SessionT]) -> None:
        self._make = make
        self.all: list[SessionT] = [make()]
        self._now = self.all[0]
        self._by_name: dict[str, SessionT] = {}
        self._by_line: dict[str, SessionT] = {}

    def of(self, line: Object) -> SessionT:
        """Whose line it is. One that names no session is the last one's."""
        name = as_name(first(line.get("sessionId"), line.get("session_id")))
        own = as_name(line.get("uuid"))
        known = self._by_name.get(name)
        if known is None:
            known = self._before(line)
        # Notes beside the conversation begin no session, and neither does a sub-agent.
        is_agent = bool(line.get("isSidechain") or line.get("agentId"))
        is_said = bool(own or "message" in line) and not is_agent
        if known is None and name and is_said and self._by_name:
            known = self._make()
            self.all.append(known)
        known = self._now if known is None else known
        if name and is_said:
            self._by_name.setdefault(name, known)
        if own:
            self._by_line.setdefault(own, known)
        self._now = known
        return known

    def _before(self, line: Object) -> SessionT | None:
        # A compaction has no line before it, but for the one that it names so.
        for key in ("parentUuid", "logicalParentUuid"):
            found = self._by_line.get(as_name(line.get(key)))
            if found is not None:
                return found
        return None


def size_unseen(conversation: Conversation, system: int, *, is_told: bool) -> None:
    """Give what no line tells of the room that the first recorded prompt leaves.

    `system` is the system prompt's message. `is_told`: its text is known, so what is unseen are the
    tools' definitions; else it stands for both.
    """
    head = conversation.calls[0]
    if head.input_tokens is None:
        return
    unseen = max(0, head.input_tokens - conversation.prompt_tokens(head.prompt))
    if is_told:
        conversation.tool_tokens = unseen or None
        conversation.system_tokens = conversation.tokens_of(system) or None
    else:
        conversation.resize(system, unseen)
        conversation.system_tokens = unseen or None


def counted(conversation: Conversation) -> dict[str, str | None]:
    """Where the numbers of a conversation are from, as `Recording.token_source` says it."""
    whole = len(conversation.calls)
    told = sum(call.input_tokens is not None for call in conversation.calls)
    said = "recorded" if told == whole else ("recorded, partly" if told else "estimated")
    return {"input": said, "output": said, "result": "estimated"}


def joined(members: Sequence[Member], *, source: str, options: ImportOptions) -> Iterator[Imported]:
    """The recordings of a session's conversations, parents before their sub-agents.

    Conversations without calls are left out; what they started hangs on the next one above.
    """
    by_name = {member.name: member for member in members}
    asked = {
        tool.call_id: member.name
        for member in members
        for call in member.conversation.calls
        for tool in call.tools
        if tool.call_id
    }
    owners = {member.name: _owner(member, by_name, asked) for member in members}
    started = {m.call_id: m.name for m in reversed(members) if m.call_id in asked}
    for member in sorted(members, key=lambda one: _depth(one.name, owners)):
        conversation = member.conversation
        if not conversation.calls:
            continue
        for call in conversation.calls:
            for place, tool in enumerate(call.tools):
                child = by_name.get(started.get(tool.call_id or "", ""))
                if child is not None and child.conversation.calls:
                    call.tools[place] = msgspec.structs.replace(tool, child=child.name)
        parent, begun = owners[member.name], conversation.calls[0].begun_s
        recording = conversation.recording(
            session_id=member.name,
            source=options.source or source,
            keeps_text=options.keeps_text,
            workload="coding",
            agent=member.agent,
            model=member.model or None,
            token_source=counted(conversation),
            parent=parent,
            parent_t_s=None if parent is None else _offset(by_name[parent], begun),
            is_cut=member.is_cut,
        )
        if recording is not None:
            yield Imported(recording=recording, epoch_s=begun)


def _owner(member: Member, by_name: dict[str, Member], asked: dict[str, str]) -> str | None:
    """The nearest conversation above one that has calls."""
    name = asked.get(member.call_id or "", member.parent)
    seen = {member.name}
    while name is not None and name in by_name and name not in seen:
        if by_name[name].conversation.calls:
            return name
        seen.add(name)
        name = by_name[name].parent
    return None


def _depth(name: str, owners: dict[str, str | None]) -> int:
    depth, above = 0, owners[name]
    while above is not None and depth <= len(owners):
        depth, above = depth + 1, owners[above]
    return depth


def _offset(parent: Member, begun: float | None) -> float | None:
    zero = parent.conversation.calls[0].begun_s
    return None if zero is None or begun is None else round(max(0.0, begun - zero), 6)
