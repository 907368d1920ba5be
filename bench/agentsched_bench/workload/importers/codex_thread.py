"""One thread of Codex's, item by item: answers, tools' results, token counts, compactions.

An answer is what the model's items in a row make together. Its count comes behind it (a
`token_usage_record`, or a `token_count` whose total has grown), or in front of it: versions of 2025
wrote an answer's items, each with its result, only when its tools had run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from agentsched_bench.workload.importers.chat import arguments_text, recorded_tool
from agentsched_bench.workload.importers.draft import Call, Chain, Conversation, Runs
from agentsched_bench.workload.importers.family import size_unseen
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
    as_seconds,
    as_text,
    first,
)
from agentsched_bench.workload.trace import RecordedToolCall

#: Items that a tool of ours answers; what a provider runs itself (a search) is part of its answer.
_CALLS: Final = ("function_call", "custom_tool_call", "local_shell_call")
_ANSWERED: Final = (*_CALLS, "reasoning", "web_search_call", "image_generation_call")
_EXIT_CODE: Final = re.compile(r"^(?:Process exited with code|Exit code:) (-?\d+)", re.MULTILINE)
#: User messages that begin so are the harness' own, no turn of a user's.
_OWN_WORDS: Final = ("<", "# AGENTS.md")


@dataclass(slots=True)
class _Answer:
    """An answer while its items come in. `is_counted_first`: its count stood in front of it."""

    call: Call
    is_borrowed: bool
    is_counted_first: bool = False
    texts: list[str] = field(default_factory=list)
    tool_calls: list[RecordedToolCall] = field(default_factory=list)
    #: What other files would call it by, and the thread's total where its items have no ids.
    names: set[str] = field(default_factory=set)
    total_tokens: int | None = None


class Thread:
    """One thread. `told` holds the names of answers that were read, of any file."""

    def __init__(self, told: set[str]) -> None:
        self.conversation = Conversation()
        self.thread_id = ""
        self.parent_id: str | None = None
        self.kind = ""
        self.model = ""
        #: Which tool call started which thread.
        self.started: dict[str, str] = {}
        self.is_repeated = False
        self._told = told
        self._chain = Chain()
        self._answers: list[_Answer] = []
        self._open: _Answer | None = None
        #: Calls that wait for results: the answer, the place among its tools, when it was asked.
        self._waiting: dict[str, tuple[_Answer, int, float | None]] = {}
        #: When a tool was done, by its call: results of calls at once are written together.
        self._done_at: dict[str, float] = {}
        self._failed: set[str] = set()
        #: What was said to the model, by its words: a compaction keeps some of it.
        self._known: dict[tuple[str, str], int] = {}
        self._in_prompt: set[int] = set()
        self._turns: list[Runs] = []
        self._said_at: float | None = None
        self._total: int | None = None
        #: A count that stands in front of its answer, and when it came.
        self._count: tuple[Object, float | None] | None = None
        self._is_borrowing = False
        self._is_fork = False
        #: Its name, and those of the threads that it was forked from.
        self._names: set[str] = set()
        self._is_compacted = False
        self._model_now = ""
        self._system = self.conversation.add("system", None, tokens=0)
        self._is_system_told = False
        self._put(self._system)

    def line(self, line: Object, *, is_borrowed: bool = False) -> None:
        """A line of the thread's file, or (`is_borrowed`) of the one that it was forked from."""
        self._is_borrowing = is_borrowed
        kind, payload = unwrapped(line)
        at = as_instant(line.get("timestamp"))
        match kind:
            case "session_meta":
                self._meta(payload)
            case "turn_context":
                self._model_now = as_name(payload.get("model")) or self._model_now
            case "response_item":
                self._item(payload, at)
            case "event_msg":
                self._event(payload, at)
            case "token_usage_record":
                total = as_object(payload.get("thread_token_usage")).get("total_tokens")
                self._counts(as_object(payload.get("usage")), total, at, is_record=True)
                if self._answers:
                    self._answers[-1].names.add(as_name(payload.get("response_id")))
            case "compacted":
                self._compact(payload)
            case _:
                pass

    def is_another(self, line: Object) -> bool:
        """Whether a line of the thread's file begins another thread: several were put in one file.

        A fork has first lines of those before it, too, but begins with one each.
        """
        kind, payload = unwrapped(line)
        own = as_name(first(payload.get("id"), payload.get("session_id")))
        if kind != "session_meta" or not own or not self._names or own in self._names:
            return False
        is_fork = payload.get("forked_from_id") or payload.get("history_base")
        return not is_fork and any(not answer.is_borrowed for answer in self._answers)

    def _meta(self, payload: Object) -> None:
        own = as_name(first(payload.get("id"), payload.get("session_id")))
        self._names.add(own)
        if self._is_borrowing or (self.thread_id and own != self.thread_id):
            self._is_fork = True
            return
        self.thread_id = own
        self._is_fork = self._is_fork or bool(payload.get("forked_from_id"))
        self.parent_id, self.kind = _origin(payload)
        text = as_text(as_object(payload.get("base_instructions")).get("text"))
        if text and not self._is_system_told:
            self._is_system_told = True
            self.conversation.rewrite(self._system, text=text, tool_calls=())

    def _item(self, item: Object, at: float | None) -> None:
        kind = as_name(item.get("type"), default="message")
        if kind == "message" and item.get("role") == "assistant":
            answer = self._answering(at)
            answer.texts.append(as_text(item.get("content")))
            answer.names.add(as_name(item.get("id")))
        elif kind == "message":
            self._hear(item, at)
        elif kind in _CALLS:
            self._asked(self._answering(at), _tool_call(item), at)
        elif kind in _ANSWERED:
            self._answering(at)
        elif kind.endswith("_output"):
            self._result(item, at)

    def _hear(self, item: Object, at: float | None) -> None:
        self._close()
        role, text = as_name(item.get("role"), default="user"), as_text(item.get("content"))
        if role == "user" and not text.startswith(_OWN_WORDS):
            self._turns.append(self._chain.snapshot())
            self._pauses()
        self._known[role, text] = number = self.conversation.add(role, text)
        self._put(number)
        self._heard(at)

    def _pauses(self) -> None:
        """The user speaks next."""
        if self.conversation.calls and not self.conversation.calls[-1].tools:
            self.conversation.calls[-1].gap_kind = "user"

    def _put(self, number: int) -> None:
        self._chain.append(number)
        self._in_prompt.add(number)

    def _restart(self, numbers: Sequence[int]) -> None:
        self._chain.restart(numbers)
        self._in_prompt = set(numbers)

    def _heard(self, at: float | None) -> None:
        if at is not None and not self._is_borrowing:
            self._said_at = at if self._said_at is None else max(self._said_at, at)

    def _answering(self, at: float | None) -> _Answer:
        """The answer that an item is a part of; it ends no sooner than that item."""
        if self._open is None:
            call = Call(
                prompt=self._chain.snapshot(),
                begun_s=self._said_at if self._said_at is not None else at,
                model=self._model_now or None,
                is_compaction=self._is_compacted,
            )
            self._is_compacted = False
            self._open = _Answer(call, is_borrowed=self._is_borrowing)
            self._answers.append(self._open)
            self._appear(self._open)
            if self._count is not None:
                usage, counted_at = self._count
                self._open.is_counted_first = True
                self._open.total_tokens = self._total
                self._count = None
                _take(call, usage)
                call.ended_s = counted_at
        call = self._open.call
        if at is not None and not self._open.is_counted_first:
            call.ended_s = at if call.ended_s is None else max(call.ended_s, at)
        return self._open

    def _appear(self, answer: _Answer) -> None:
        answer.call.answer = self.conversation.add("assistant", "")
        if not answer.is_borrowed:
            self.conversation.calls.append(answer.call)

    def _asked(self, answer: _Answer, asked: RecordedToolCall, at: float | None) -> None:
        answer.tool_calls.append(asked)
        answer.names.add(asked.id)
        answer.call.tools.append(recorded_tool(asked))
        self._waiting[asked.id] = (answer, len(answer.call.tools) - 1, at)

    def _result(self, item: Object, at: float | None) -> None:
        if self._open is not None and not self._open.is_counted_first:
            self._close()
        call_id = as_name(item.get("call_id"))
        text, took_s, code = _output(item.get("output"))
        number = self.conversation.add("tool", text, call_id=call_id or None)
        if self._open is not None:
            self._put_answer(self._open)
        self._put(number)
        self._heard(at)
        found = self._waiting.pop(call_id, None)
        if found is None:
            return
        answer, place, asked_at = found
        done_at = self._done_at.get(call_id, at)
        if done_at is not None and asked_at is not None:
            took_s = max(took_s or 0.0, done_at - asked_at)
        answer.call.tools[place] = msgspec.structs.replace(
            answer.call.tools[place],
            duration_s=None if took_s is None else round(took_s, 6),
            result_tokens=self.conversation.tokens_of(number),
            is_error=bool(code) or call_id in self._failed,
        )
        answer.call.gap_kind = "tool"
        child = as_name(as_object(as_json(text)).get("agent_id"))
        if child and "agent" in answer.call.tools[place].name:
            self.started.setdefault(child, call_id)

    def _put_answer(self, answer: _Answer) -> None:
        """The answer is in the prompt from here on, and says what is known of it now."""
        number = answer.call.answer
        if number is None:
            return
        text = "\n".join(answer.texts)
        self.conversation.rewrite(number, text=text, tool_calls=answer.tool_calls)
        if number not in self._in_prompt:
            self._put(number)

    def _close(self) -> None:
        """An answer is told when anything else follows."""
        answer, self._open = self._open, None
        if answer is not None:
            self._put_answer(answer)
            self._heard(answer.call.ended_s)

    def _event(self, event: Object, at: float | None) -> None:
        kind, item = as_name(event.get("type")), as_object(event.get("item"))
        if kind == "token_count":
            info = as_object(event.get("info"))
            total = as_object(info.get("total_token_usage")).get("total_tokens")
            self._counts(as_object(info.get("last_token_usage")), total, at, is_record=False)
        elif kind == "task_started":
            self._close()
            self._heard(at)
            self._pauses()
        elif kind == "thread_rolled_back":
            self._roll_back(as_count(event.get("num_turns")) or 0)
        elif kind == "item_completed" or kind.endswith("_end"):
            call_id = as_name(first(event.get("call_id"), item.get("id")))
            done_at = first(as_instant(event.get("completed_at_ms")), at)
            if done_at is not None and call_id:
                self._done_at[call_id] = done_at
            code = first(item.get("exit_code"), event.get("exit_code"))
            if code or first(item.get("status"), event.get("status")) == "failed":
                self._failed.add(call_id)
            self._started_by(event, item, call_id)

    def _started_by(self, event: Object, item: Object, call_id: str) -> None:
        threads = as_list(item.get("receiver_thread_ids"))
        is_start = item.get("tool") == "spawn_agent"
        for child in [event.get("new_thread_id"), *(threads if is_start else ())]:
            if as_name(child):
                self.started.setdefault(as_name(child), call_id)

    def _counts(self, usage: Object, total: Json, at: float | None, *, is_record: bool) -> None:
        """What an answer took. The same total again is no answer's, but a reminder."""
        known, self._total = self._total, first(as_count(total), self._total)
        if not as_count(usage.get("input_tokens")) or (known is not None and known == self._total):
            return
        self._close()
        last = self._answers[-1] if self._answers else None
        if last is not None and last.call.input_tokens is None:
            _take(last.call, usage)
            last.total_tokens = self._total
        elif not is_record:
            self._count = (usage, at)

    def _roll_back(self, turns: int) -> None:
        """The user takes back the last turns."""
        self._close()
        if 0 < turns <= len(self._turns):
            before = self._turns[-turns]
            del self._turns[-turns:]
            self._restart(_members(before))

    def _compact(self, payload: Object) -> None:
        """The prompt anew: what the file says of it, or the users' words and the summary."""
        self._close()
        history = payload.get("replacement_history")
        kept = [self._system]
        if isinstance(history, list):
            for item in as_objects(history):
                if as_name(item.get("type"), default="message") == "message":
                    role = as_name(item.get("role"), default="user")
                    kept.append(self._said(role, as_text(item.get("content"))))
        else:
            spoken = set(self._known.values())
            kept += [n for n in _members(self._chain.snapshot()) if n in spoken]
            kept.append(self._said("user", as_text(payload.get("message"))))
        self._restart(list(dict.fromkeys(kept)))
        self._turns = []
        self._is_compacted = True

    def _said(self, role: str, text: str) -> int:
        number = self._known.get((role, text))
        return self.conversation.add(role, text) if number is None else number

    def end(self) -> None:
        """No line comes any more: what a fork has of other files is theirs."""
        self._close()
        repeated: set[int] = set()
        for answer in self._answers:
            names = answer.names - {""}
            if answer.total_tokens is not None:
                names.add(f"{answer.total_tokens} {' '.join(answer.texts)}")
            if answer.is_borrowed or (self._is_fork and names & self._told):
                self.is_repeated = True
                repeated.add(id(answer.call))
            self._told |= names
        calls = [call for call in self.conversation.calls if id(call) not in repeated]
        self.conversation.calls = calls
        if not calls:
            return
        self.model = next((call.model for call in calls if call.model), "")
        for call in calls:
            call.model = None if call.model == self.model else call.model
        size_unseen(self.conversation, self._system, is_told=self._is_system_told)


def unwrapped(line: Object) -> tuple[str, Object]:
    """A line's kind and what it holds. Files of early 2025 hold the items themselves."""
    if "payload" in line:
        return as_name(line.get("type")), as_object(line.get("payload"))
    if "instructions" in line and "timestamp" in line:
        return "session_meta", line
    return ("response_item", line) if "type" in line else ("", line)


def _origin(payload: Object) -> tuple[str | None, str]:
    """The thread that a session was started by, and what for."""
    source = as_object(payload.get("source")).get("subagent")
    if source is None:
        return as_name(payload.get("parent_thread_id")) or None, ""
    spawned = as_object(as_object(source).get("thread_spawn"))
    parent = as_name(first(payload.get("parent_thread_id"), spawned.get("parent_thread_id")))
    role = as_name(first(spawned.get("agent_role"), as_object(source).get("other"), source))
    return parent or None, role or "sub-agent"


def _tool_call(item: Object) -> RecordedToolCall:
    call_id = as_name(first(item.get("call_id"), item.get("id")), default="call")
    if item.get("type") == "local_shell_call":
        name, arguments = "local_shell", as_object(item.get("action"))
        return RecordedToolCall(id=call_id, name=name, arguments=arguments_text(arguments))
    return RecordedToolCall(
        id=call_id,
        name=as_name(item.get("name"), default="tool"),
        arguments=arguments_text(first(item.get("arguments"), item.get("input"))),
    )


def _output(value: Json) -> tuple[str, float | None, float | None]:
    """A result's text, how long it took and its exit code, where it says so."""
    inner = as_object(as_json(value)) if isinstance(value, str) else as_object(value)
    facts = as_object(inner.get("metadata"))
    if facts:
        code = as_number(facts.get("exit_code"))
        return as_text(inner.get("output")), as_seconds(facts.get("duration_seconds")), code
    text = as_text(value)
    found = _EXIT_CODE.search(text[:500])
    return text, None, as_number(found.group(1)) if found else None


def _take(call: Call, usage: Object) -> None:
    call.input_tokens = as_count(usage.get("input_tokens"))
    call.output_tokens = as_count(usage.get("output_tokens"))
    call.cached_tokens = as_count(usage.get("cached_input_tokens"))
    call.reasoning_tokens = as_count(usage.get("reasoning_output_tokens")) or 0


def _members(runs: Runs) -> list[int]:
    return [number for low, high in runs for number in range(low, high + 1)]
