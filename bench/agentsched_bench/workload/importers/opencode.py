"""OpenCode's sessions: messages of parts, from its database, its files or an export.

An assistant's message is a call (several in old versions, each between `step-start` and
`step-finish`), whose tools run while it is open: the model had spoken when the last of them began.
A sub-agent is a session with a parent, named by the call that started it. A fork begins with copies
that keep their times. A compaction is a user's message with such a part and the summary behind it:
with these, and the newest messages where it says so, the prompt begins anew. Old results that were
cleared say when. Neither system prompt nor tools are in it: a message without text stands for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.chat import arguments_text, recorded_tool
from agentsched_bench.workload.importers.draft import (
    MESSAGE_TOKENS,
    Call,
    Chain,
    Conversation,
    Imported,
)
from agentsched_bench.workload.importers.family import Member, joined, size_unseen
from agentsched_bench.workload.importers.files import InputFile, OnError
from agentsched_bench.workload.importers.loose import (
    Object,
    as_count,
    as_instant,
    as_list,
    as_name,
    as_number,
    as_object,
    as_text,
    first,
)
from agentsched_bench.workload.importers.opencode_store import (
    TABLES,
    Said,
    Session,
    is_part_of_one,
    is_session,
    said_in,
    sessions,
)
from agentsched_bench.workload.trace import RecordedToolCall, TraceError

#: What OpenCode puts in the place of an old result, and of a compaction.
_CLEARED: Final = "[Old tool result content cleared]"
_COMPACTION: Final = "What did we do so far?"


@dataclass(frozen=True, slots=True)
class OpenCode:
    """Reads OpenCode's sessions; those of sub-agents are joined to their parents."""

    name: str = "opencode"
    title: str = "OpenCode sessions (opencode.db, storage/, export)"

    def claims(self, head: Sequence[Any]) -> bool:
        value = as_object(head[0]) if head else {}
        if TABLES.issubset(map(as_name, as_list(value.get("tables")))):
            return True
        if "messages" in value and is_session(as_object(value.get("info"))):
            return True
        return is_session(value) or is_part_of_one(value)

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        told: set[str] = set()
        heard = set()
        for family in _families(sessions(files, on_error=on_error)):
            members: list[Member] = []
            started: dict[str, str] = {}
            for session in family:
                reader = _Reader(told)
                for said in said_in(session, on_error=on_error):
                    reader.read(said)
                reader.end()
                for child, call in reader.started.items():
                    started.setdefault(child, call)
                members.append(_member(session, reader))
                if reader.conversation.calls or reader.is_repeated:
                    heard.add(session.file.path)
            for member in members:
                member.call_id = started.get(member.name)
            yield from joined(members, source="opencode", options=options)
        for file in files:
            if file.is_named and file.path not in heard:
                on_error(TraceError("no session with a model's answer in it", path=file.path))


def _families(found: Sequence[Session]) -> Iterator[list[Session]]:
    """Sessions with their sub-agents: memory is that of one of these."""
    by_id = {session.session_id: session for session in found}
    families: dict[str, list[Session]] = {}
    for session in found:
        root, seen = session, {session.session_id}
        while root.parent_id in by_id and root.parent_id not in seen:
            seen.add(root.parent_id)
            root = by_id[root.parent_id]
        families.setdefault(root.session_id, []).append(session)
    yield from families.values()


def _member(session: Session, reader: _Reader) -> Member:
    kind = f"/{reader.agent or 'sub-agent'}" if session.parent_id else ""
    return Member(
        name=session.session_id,
        conversation=reader.conversation,
        agent=f"opencode{kind}",
        model=reader.model,
        parent=session.parent_id,
        is_cut=session.is_cut,
    )


@dataclass(slots=True)
class _Place:
    """A message of the prompt: whose part it is, and what is there from an instant on."""

    number: int
    owner: str
    cleared_s: float | None = None
    cleared: int | None = None


class _Reader:
    """One session. `told` holds what calls of any session are known by."""

    def __init__(self, told: set[str]) -> None:
        self.conversation = Conversation()
        self.agent = ""
        self.model = ""
        self.is_repeated = False
        #: Which call started which session.
        self.started: dict[str, str] = {}
        self._told = told
        self._system = _Place(self.conversation.add("system", None, tokens=0), "")
        self._prompt = [self._system]
        #: Compactions that were asked for: by the message that asks, where the kept ones begin.
        self._compactions: dict[str, str] = {}
        self._is_compacted = False

    def read(self, said: Said) -> None:
        if said.info.get("role") == "assistant":
            self._answer(said)
        else:
            self._hear(said)

    def _hear(self, said: Said) -> None:
        own = as_name(said.info.get("id"))
        texts: list[str] = []
        for part in said.parts:
            if part.get("type") == "text" and not part.get("ignored"):
                texts.append(as_text(part.get("text")))
            elif part.get("type") == "compaction":
                texts.append(_COMPACTION)
                self._compactions[own] = as_name(part.get("tail_start_id"))
        if any(texts):
            text = "\n".join(text for text in texts if text)
            self._prompt.append(_Place(self.conversation.add("user", text), own))
            if self.conversation.calls and not self.conversation.calls[-1].tools:
                self.conversation.calls[-1].gap_kind = "user"

    def _answer(self, said: Said) -> None:
        info, steps = said.info, _steps(said.parts)
        if info.get("error") and not any(_has_words(part) for part in said.parts):
            return
        self.agent = self.agent or as_name(first(info.get("agent"), info.get("mode")))
        model = as_name(info.get("modelID"))
        self.model = self.model or model
        times = as_object(info.get("time"))
        begun, completed = as_instant(times.get("created")), as_instant(times.get("completed"))
        is_told = self._is_told(said, begun, completed)
        for index, parts in enumerate(steps):
            is_last = index == len(steps) - 1
            call = Call(begun_s=begun, model=model if model != self.model else None)
            tokens = next((p.get("tokens") for p in parts if p.get("type") == "step-finish"), None)
            _take(call, as_object(first(tokens, info.get("tokens") if len(steps) == 1 else None)))
            call.prompt = self._runs(call, begun, is_summary=bool(info.get("summary")))
            call.ended_s, begun = _ended(parts, completed if is_last else None, begun)
            self._say(call, parts, as_name(info.get("id")))
            if not is_told:
                self.conversation.calls.append(call)
                self._note_children(parts)
        if info.get("summary") and not info.get("error"):
            self._compact(as_name(info.get("parentID")), as_name(info.get("id")))

    def _is_told(self, said: Said, begun: float | None, completed: float | None) -> bool:
        """A fork has copies of messages under other ids, with the times of the first ones."""
        if begun is None or completed is None:
            return False
        words = "".join(as_text(part.get("text")) for part in said.parts)
        calls = " ".join(as_name(part.get("callID")) for part in said.parts)
        known_by = f"{begun} {completed} {calls} {hash(words)}"
        is_told = known_by in self._told
        self._told.add(known_by)
        self.is_repeated = self.is_repeated or is_told
        return is_told

    def _runs(
        self, call: Call, begun: float | None, *, is_summary: bool
    ) -> tuple[tuple[int, int], ...]:
        chain = Chain()
        if is_summary:
            # It is asked with the whole conversation in one text of its own.
            size = max(0, (call.input_tokens or MESSAGE_TOKENS) - MESSAGE_TOKENS)
            chain.append(self.conversation.add("user", None, tokens=size))
            return chain.snapshot()
        call.is_compaction, self._is_compacted = self._is_compacted, False
        for place in self._prompt:
            if place.cleared_s is not None and begun is not None and begun >= place.cleared_s:
                place.cleared_s = None
                if place.cleared is not None:
                    place.number = place.cleared
                    call.is_compaction = True
            chain.append(place.number)
        return chain.snapshot()

    def _say(self, call: Call, parts: Sequence[Object], own: str) -> None:
        texts = [as_text(part.get("text")) for part in parts if part.get("type") == "text"]
        tools = [part for part in parts if part.get("type") == "tool"]
        asked = [_tool_call(part, index) for index, part in enumerate(tools)]
        text = "\n".join(text for text in texts if text)
        call.answer = self.conversation.add("assistant", text, tool_calls=asked)
        self._prompt.append(_Place(call.answer, own))
        for part, tool in zip(tools, asked, strict=True):
            state = as_object(part.get("state"))
            is_error = state.get("status") == "error"
            result = as_text(state.get("error" if is_error else "output"))
            place = _Place(self.conversation.add("tool", result, call_id=tool.id), own)
            times = as_object(state.get("time"))
            began, ended = as_instant(times.get("start")), as_instant(times.get("end"))
            code = as_number(as_object(state.get("metadata")).get("exit"))
            call.tools.append(
                recorded_tool(
                    tool,
                    duration_s=None if began is None or ended is None else ended - began,
                    result_tokens=self.conversation.tokens_of(place.number),
                    is_error=is_error or bool(code),
                )
            )
            place.cleared_s = as_instant(times.get("compacted"))
            if place.cleared_s is not None:
                place.cleared = self.conversation.add("tool", _CLEARED, call_id=tool.id)
            self._prompt.append(place)

    def _note_children(self, parts: Sequence[Object]) -> None:
        for index, part in enumerate(p for p in parts if p.get("type") == "tool"):
            facts = as_object(as_object(part.get("state")).get("metadata"))
            child = as_name(facts.get("sessionId"))
            if child:
                self.started.setdefault(child, _tool_call(part, index).id)

    def _compact(self, asker: str, summary: str) -> None:
        """The prompt anew: what asked for the summary, the summary, and the messages kept."""
        tail = self._compactions.get(asker, "")
        owners = [place.owner for place in self._prompt]
        asked = owners.index(asker) if asker in self._compactions and asker in owners else None
        kept: list[_Place] = []
        if asked is not None and tail and tail in owners[:asked]:
            kept = self._prompt[owners.index(tail) : asked]
        heads = {summary} if asked is None else {asker, summary}
        head = [place for place in self._prompt if place.owner in heads]
        self._prompt = [self._system, *head, *kept]
        self._is_compacted = True

    def end(self) -> None:
        """Nothing was said any more."""
        if self.conversation.calls:
            size_unseen(self.conversation, self._system.number, is_told=False)


def _steps(parts: Sequence[Object]) -> list[list[Object]]:
    """The parts of each call of a message."""
    steps: list[list[Object]] = [[]]
    for part in parts:
        if part.get("type") == "step-start" and any(map(_is_of_call, steps[-1])):
            steps.append([])
        steps[-1].append(part)
    return steps


def _is_of_call(part: Object) -> bool:
    return part.get("type") in ("step-finish", "text", "tool", "reasoning")


def _has_words(part: Object) -> bool:
    return part.get("type") in ("text", "tool")


def _take(call: Call, tokens: Object) -> None:
    """A call's counts. What was cached is beside the input; of reasoning the total says it."""
    cache = as_object(tokens.get("cache"))
    read, made = as_count(cache.get("read")) or 0, as_count(cache.get("write")) or 0
    prompt, answer = as_count(tokens.get("input")), as_count(tokens.get("output"))
    if prompt is None or answer is None or not prompt + read + made:
        return
    reasoning, total = as_count(tokens.get("reasoning")) or 0, as_count(tokens.get("total"))
    call.input_tokens, call.cached_tokens = prompt + read + made, read
    is_beside = total == call.input_tokens + answer + reasoning
    call.output_tokens = answer + reasoning if is_beside else answer
    call.reasoning_tokens = reasoning


def _ended(
    parts: Sequence[Object], completed: float | None, begun: float | None
) -> tuple[float | None, float | None]:
    """When the model had spoken, and when the last of its tools was done."""
    spoken: list[float] = []
    done: list[float] = []
    for part in parts:
        is_tool = part.get("type") == "tool"
        times = as_object((as_object(part.get("state")) if is_tool else part).get("time"))
        start, end = as_instant(times.get("start")), as_instant(times.get("end"))
        heard = start if is_tool else end
        spoken += [heard] if heard is not None else []
        done += [end] if end is not None else []
    has_tools = any(part.get("type") == "tool" for part in parts)
    ended = completed if not has_tools and completed is not None else max(spoken, default=completed)
    if ended is not None and begun is not None:
        ended = max(ended, begun)
    return ended, max(done, default=ended)


def _tool_call(part: Object, index: int) -> RecordedToolCall:
    state = as_object(part.get("state"))
    return RecordedToolCall(
        id=as_name(part.get("callID"), default=f"call_{index}"),
        name=as_name(part.get("tool"), default="tool"),
        arguments=arguments_text(state.get("input")),
    )
