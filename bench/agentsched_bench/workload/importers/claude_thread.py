"""One conversation of a Claude Code session, line by line: answers, tools' results, compactions.

An answer's lines may stand between the results of its own first tools, which ran while it was still
spoken. A prompt that goes on from an earlier line (`parentUuid`) takes back what came after that.
Some versions write down how much was said when it had only begun; where the text is longer, it is
counted instead. An answer that was tried for again took as long as the last try.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from agentsched_bench.workload.importers.chat import (
    Usage,
    read_tool_calls,
    read_usage,
    recorded_tool,
    said,
)
from agentsched_bench.workload.importers.draft import Call, Chain, Conversation, Runs, common_prefix
from agentsched_bench.workload.importers.loose import (
    Object,
    as_count,
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
from agentsched_bench.workload.trace import RecordedToolCall

#: Answers that Claude Code wrote itself, when no model was asked or none answered.
_SYNTHETIC: Final = "<synthetic>"
#: What stands for a tool's result that was cleared.
_CLEARED: Final = "[Old tool result content cleared]"
#: A count that many times below what was said is one of an answer that had only begun.
_BEGUN: Final = 4
#: Answers that are remembered, to know them where other files repeat them.
_ANSWERS_MAX: Final = 5_000_000


@dataclass(slots=True)
class _Answer:
    """An answer while its lines come in. `is_repeated`: another file has it, too."""

    message_id: str
    call: Call
    is_repeated: bool = False
    texts: list[str] = field(default_factory=list)
    thought_tokens: int = 0
    tool_calls: list[RecordedToolCall] = field(default_factory=list)
    asked_at: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    tried_at: float | None = None


class Thread:
    """One conversation. `told` holds the ids of answers that were read, of any file."""

    def __init__(self, told: set[str]) -> None:
        self.conversation = Conversation()
        self.model = ""
        self.is_repeated = False
        self._told = told
        self._chain = Chain()
        self._answer: _Answer | None = None
        self._answers: dict[str, _Answer] = {}
        #: By the uuid of a line: its messages, and the prompt as it was then.
        self._messages: dict[str, list[int]] = {}
        self._after: dict[str, Runs] = {}
        self._waiting: dict[str, tuple[Call, int, float | None]] = {}
        #: The message of each tool call's result.
        self._results: dict[str, int] = {}
        self._said_at: float | None = None
        #: When it was asked again, since the last that was said to the model.
        self._tried_at: float | None = None
        self._is_compacted = False
        #: What a compaction kept: it stands behind the summary.
        self._kept: list[int] = []
        self._counted = 0
        self._estimated = 0
        self._system = self.conversation.add("system", None, tokens=0)
        self._chain.append(self._system)

    def token_source(self) -> dict[str, str | None]:
        calls = len(self.conversation.calls)
        spoken = self._counted - self._estimated
        return {
            "input": "recorded" if self._counted == calls else "recorded, partly",
            "output": "recorded" if spoken == calls else "recorded, partly",
            "result": "estimated",
        }

    def line(self, line: Object) -> None:
        uuid = as_name(line.get("uuid"))
        if uuid and uuid in self._messages:
            # A resumed session repeats the lines of the one that it goes on from.
            return
        self._messages[uuid] = []
        kind = line.get("type")
        message = as_object(line.get("message"))
        at = as_instant(line.get("timestamp"))
        speaker = message.get("role") if kind is None else kind
        if speaker == "assistant":
            self._assistant(message, at, line)
        else:
            self._close()
        if speaker == "user":
            self._user(message, at, line)
        elif kind == "system":
            self._note_of_system(line, at)
        if self._answer is None:
            self._after[uuid] = self._chain.snapshot()

    def _put(self, number: int, uuid: str) -> None:
        self._chain.append(number)
        self._messages.setdefault(uuid, []).append(number)

    def _note_of_system(self, line: Object, at: float | None) -> None:
        match line.get("subtype"):
            case "compact_boundary" | "compaction":
                self._compact(line)
            case "microcompact_boundary":
                self._clear(as_object(line.get("microcompactMetadata")))
            case "api_error" if at is not None:
                self._tried_at = at + (as_seconds(line.get("retryInMs")) or 0.0) / 1000
            case _:
                pass

    def _clear(self, facts: Object) -> None:
        """Old results are told no more: something short stands in their places."""
        ids = map(as_name, as_list(facts.get("compactedToolIds")))
        gone = {self._results.pop(own): own for own in ids if own in self._results}
        numbers = [n for low, last in self._chain.snapshot() for n in range(low, last + 1)]
        if gone.keys().isdisjoint(numbers):
            return
        self._chain.restart(
            [
                self.conversation.add("tool", _CLEARED, call_id=gone[n]) if n in gone else n
                for n in numbers
            ]
        )
        self._is_compacted = True

    def _compact(self, line: Object) -> None:
        self._chain.restart([self._system])
        self._is_compacted = True
        facts = as_object(line.get("compactMetadata"))
        kept = as_list(as_object(facts.get("preservedMessages")).get("uuids"))
        segment = as_object(facts.get("preservedSegment"))
        if not kept and segment:
            order = list(self._messages)
            ends = [as_name(segment.get(key)) for key in ("headUuid", "tailUuid")]
            if all(end in self._messages for end in ends):
                kept = order[order.index(ends[0]) : order.index(ends[1]) + 1]
        self._kept = [n for own in kept for n in self._messages.get(as_name(own), ())]

    def _user(self, message: Object, at: float | None, line: Object) -> None:
        if line.get("isMeta") and not message.get("content"):
            return
        if line.get("isCompactSummary") and not self._is_compacted:
            self._compact({})
        uuid = as_name(line.get("uuid"))
        blocks = as_objects(message.get("content"))
        results = [block for block in blocks if block.get("type") == "tool_result"]
        if not results:
            self._go_back(as_name(line.get("parentUuid")))
        for block in results:
            self._result(block, at, uuid)
        rest = [block for block in blocks if block.get("type") != "tool_result"]
        text = said({"content": rest}) if blocks else as_text(message.get("content"))
        if text:
            self._put(self.conversation.add("user", text), uuid)
            if self.conversation.calls and not results and not line.get("isMeta"):
                self.conversation.calls[-1].gap_kind = (
                    "tool" if self.conversation.calls[-1].tools else "user"
                )
        if self._kept and line.get("isCompactSummary"):
            for number in self._kept:
                self._chain.append(number)
            self._kept = []
        if at is not None:
            self._said_at = at if self._said_at is None else max(self._said_at, at)
        self._tried_at = None

    def _go_back(self, parent: str) -> None:
        """A prompt behind an earlier line: the answers since then are no part of it."""
        before, now = self._after.get(parent), self._chain.snapshot()
        if not parent or before is None or before == now:
            return
        kept = [number for low, last in before for number in range(low, last + 1)]
        count, _ = common_prefix(before, now)
        gone = {n for low, last in now for n in range(low, last + 1)}.difference(kept)
        # Results of parallel calls hang on their calls: without an answer among them, none is lost.
        if count == len(kept) and any(call.answer in gone for call in self.conversation.calls):
            self._chain.restart(kept)

    def _result(self, block: Object, at: float | None, uuid: str) -> None:
        call_id = as_name(block.get("tool_use_id"))
        text = as_text(block.get("content"))
        number = self._results[call_id] = self.conversation.add("tool", text, call_id=call_id)
        self._put(number, uuid)
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
        known = self._answers.get(own_id)
        if self._answer is None or self._answer is not known:
            self._close()
        answer = known if known is not None else self._begin(own_id, at)
        answer.lines.append(as_name(line.get("uuid")))
        if self._answer is None:
            # More of an answer whose first tools have run already.
            self._add_to(answer, message, at)
            self._rewrite(answer)
        else:
            self._add_to(answer, message, at)

    def _begin(self, own_id: str, at: float | None) -> _Answer:
        call = Call(
            prompt=self._chain.snapshot(),
            begun_s=self._said_at if self._said_at is not None else at,
            model=None,
            is_compaction=self._is_compacted,
        )
        answer = _Answer(own_id, call, is_repeated=own_id in self._told, tried_at=self._tried_at)
        self._tried_at = None
        if len(self._told) < _ANSWERS_MAX:
            self._told.add(own_id)
        self._is_compacted = self._is_compacted and answer.is_repeated
        self._answers[own_id] = self._answer = answer
        return answer

    def _add_to(self, answer: _Answer, message: Object, at: float | None) -> None:
        call = answer.call
        _take_usage(call, _usage(as_object(message.get("usage"))))
        text = said(message)
        if text and text not in answer.texts:
            answer.texts.append(text)
        answer.thought_tokens += _thought_tokens(message)
        known = {asked.id for asked in answer.tool_calls}
        for asked in read_tool_calls(message):
            if asked.id in known:
                continue
            answer.tool_calls.append(asked)
            if at is not None:
                answer.asked_at[asked.id] = at
        if at is not None:
            call.ended_s = at if call.ended_s is None else max(call.ended_s, at)
        self.model = self.model or as_name(message.get("model"))
        if as_name(message.get("model")) not in ("", self.model):
            call.model = as_name(message.get("model"))

    def _close(self) -> None:
        """An answer is told when anything else follows."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        call = answer.call
        call.answer = self.conversation.add(
            "assistant", "\n".join(answer.texts), tool_calls=answer.tool_calls
        )
        self._chain.append(call.answer)
        self._await(answer, answer.tool_calls)
        if answer.is_repeated:
            self.is_repeated = True
        else:
            self.conversation.calls.append(call)
        self._note(answer)

    def _rewrite(self, answer: _Answer) -> None:
        """The answer is in the prompt already; this is what it says now."""
        if answer.call.answer is None:
            return
        self.conversation.rewrite(
            answer.call.answer, text="\n".join(answer.texts), tool_calls=answer.tool_calls
        )
        asked = {tool.call_id for tool in answer.call.tools}
        self._await(answer, [call for call in answer.tool_calls if call.id not in asked])
        self._note(answer)

    def _note(self, answer: _Answer) -> None:
        for uuid in answer.lines:
            self._messages[uuid] = [answer.call.answer] if answer.call.answer is not None else []
            self._after[uuid] = self._chain.snapshot()
        ended = answer.call.ended_s
        if ended is not None:
            self._said_at = ended if self._said_at is None else max(ended, self._said_at)

    def _await(self, answer: _Answer, calls: Iterable[RecordedToolCall]) -> None:
        for asked in calls:
            answer.call.tools.append(recorded_tool(asked))
            place = len(answer.call.tools) - 1
            self._waiting[asked.id] = (answer.call, place, answer.asked_at.get(asked.id))

    def end(self) -> None:
        """No line comes any more."""
        self._close()
        for answer in self._answers.values():
            call = answer.call
            if answer.tried_at is not None and call.ended_s is not None:
                call.llm_s = max(0.0, call.ended_s - answer.tried_at)
            if answer.is_repeated or call.input_tokens is None:
                continue
            self._counted += 1
            heard = self.conversation.tokens_of(call.answer) + answer.thought_tokens
            if call.output_tokens is not None and call.output_tokens * _BEGUN < heard:
                call.output_tokens = heard
                self._estimated += 1

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


def _usage(usage: Object) -> Usage:
    """An answer's usage. Where nothing is left beside the cached parts, `input_tokens` may be all.

    So it is behind vLLM, which counts a prompt whole first and by its parts at the end: of that end
    Claude Code passes over a zero. What the provider's own tools made of one call to several is
    added up: the last of those has the prompt that the next call goes on from.
    """
    counted = read_usage(usage)
    kinds = (None, "message")
    parts = [part for part in as_objects(usage.get("iterations")) if part.get("type") in kinds]
    if len(parts) > 1:
        last = read_usage(parts[-1])
        return replace(last, output_tokens=counted.output_tokens)
    whole = as_count(usage.get("input_tokens"))
    if whole and counted.input_tokens == 2 * whole:
        return replace(counted, input_tokens=whole)
    return counted


def _take_usage(call: Call, usage: Usage) -> None:
    """The last line of an answer has the whole count; earlier ones may have a part."""
    if usage.input_tokens is not None:
        call.input_tokens = max(call.input_tokens or 0, usage.input_tokens)
        call.cached_tokens = usage.cached_tokens
    if usage.output_tokens is not None:
        call.output_tokens = max(call.output_tokens or 0, usage.output_tokens)


def _thought_tokens(message: Object) -> int:
    """What was thought and is written down; newer versions keep a signature only."""
    blocks = as_objects(message.get("content"))
    return sum(estimate_tokens(as_text(b)) for b in blocks if b.get("type") == "thinking")
