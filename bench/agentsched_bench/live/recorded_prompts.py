"""Prompts of recorded messages: real words and real tool calls, with the engine's own answers.

A message is worded once and then stays as it is, so that a prompt that was extended begins exactly
as it did before. What the recorded model said is replaced by what the engine under test says; the
recorded tool calls go with it, so that every result that follows has its call. Lengths are those of
the plan: a new text is cut (scaled tokens, another tokenizer) or filled up with words, by the
server's own count of the prompt before it. An agent's system prompt is sized by itself alone, so
that all of its programs begin alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from agentsched.proxy.request import Dialect
from agentsched_bench.live.calibrate import Calibration
from agentsched_bench.live.client import Outcome
from agentsched_bench.live.dialects import Message, chat_body
from agentsched_bench.workload.shape import Piece, PlannedConversation, RecordedText
from agentsched_bench.workload.text import words
from agentsched_bench.workload.token_estimate import estimate_tokens
from agentsched_bench.workload.trace import RecordedToolCall, ToolDefinition

#: Recorded arguments are sent if they take at most this share of the answer that they were in.
_ARGUMENTS_SHARE_MAX: Final = 0.9
#: How far one count of the server's may change what we take a text to cost.
_CORRECTION: Final = (0.25, 4.0)


class RecordedPrompts:
    """The prompts of one conversation whose messages were recorded."""

    def __init__(
        self,
        plan: PlannedConversation,
        text: RecordedText,
        *,
        dialect: Dialect,
        calibration: Calibration,
        salt: str,
    ) -> None:
        self._plan = plan
        self._text = text
        self._dialect = dialect
        self._calibration = calibration
        self._salt = salt
        #: Tokens of the target for one of our estimate's.
        self._rate = calibration.text_rate
        #: Messages as they were first sent, by number.
        self._made: dict[int, Message] = {}
        self._numbers: list[list[int]] = []
        self._estimates: list[float] = []
        self._counted: list[float] = []
        # Definitions cannot be made shorter: only a replay at true size offers the tools.
        self._tools: tuple[ToolDefinition, ...] = (
            text.tool_definitions if text.scale_tokens <= 1.0 else ()
        )
        definitions = msgspec.json.encode(list(self._tools)).decode() if self._tools else ""
        self._tool_tokens = estimate_tokens(definitions) * self._rate if definitions else 0.0

    def body(self, index: int, *, model: str) -> dict[str, object]:
        assert len(self._numbers) == index
        call = self._plan.calls[index]
        numbers = [n for first, last in call.prompt for n in range(first, last + 1)]
        new = [number for number in numbers if number not in self._made]
        self._make(new, room=call.prompt_tokens - self._used(numbers, index))
        prompt = _paired([self._made[number] for number in numbers])
        self._numbers.append(numbers)
        fixed = self._calibration.fixed_tokens + self._tool_tokens
        self._estimates.append(fixed + sum(message.tokens for message in prompt))
        return chat_body(
            self._dialect,
            prompt,
            model=model,
            output_tokens=call.output_tokens,
            tools=self._tools,
        )

    def answered(self, index: int, outcome: Outcome) -> None:
        assert len(self._counted) == index
        call, estimate = self._plan.calls[index], self._estimates[index]
        counted = float(estimate if outcome.prompt_tokens is None else outcome.prompt_tokens)
        self._counted.append(counted)
        low, high = _CORRECTION
        self._rate *= min(max(counted / max(estimate, 1.0), low), high)
        # Recordings whose messages are kept once have one for answers of the same words: what was
        # sent of it stays, or all behind it were written anew.
        if call.answer is not None and call.answer not in self._made:
            self._made[call.answer] = self._answer(call.answer, call.output_tokens, outcome)

    def _used(self, numbers: Sequence[int], index: int) -> float:
        """Tokens that a prompt has without its new messages: counted by the server if it can be."""
        known = [number for number in numbers if number in self._made]
        for base in range(index - 1, max(-1, index - 4), -1):
            before = self._numbers[base]
            if known[: len(before)] == before:
                rest = sum(self._made[number].tokens for number in known[len(before) :])
                return self._counted[base] + rest
        fixed = self._calibration.fixed_tokens + self._tool_tokens
        return fixed + sum(self._made[number].tokens for number in known)

    def _make(self, numbers: Sequence[int], *, room: float) -> None:
        """Word new messages so that together they take `room` tokens; at least a word each."""
        recorded = self._text.messages
        sized = [number for number in numbers if recorded[number].role == "system"]
        for number in sized:
            self._made[number] = self._system(number)
            room -= self._made[number].tokens
        rest = [number for number in numbers if number not in self._made]
        overhead = self._calibration.message_tokens
        left = room - overhead * len(rest)
        whole = sum(recorded[number].tokens or 1 for number in rest)
        for place, number in enumerate(rest):
            size = recorded[number].tokens or 1
            share = left * size / max(whole, 1)
            is_last = place == len(rest) - 1
            made = self._worded(number, max(1.0, share), fills=is_last)
            self._made[number] = made
            left -= made.tokens - overhead
            whole -= size

    def _system(self, number: int) -> Message:
        """A system prompt: so much of its text as the scale leaves, whatever the server counts."""
        recorded, scale = self._text.messages[number], max(1.0, self._text.scale_tokens)
        overhead = self._calibration.message_tokens
        if recorded.text is None:
            text, cost = self._filler(self._stream(number), (recorded.tokens or 1) / scale)
        else:
            text = f"[{self._salt}]\n{recorded.text}"
            text = text[: max(1, int(len(text) / scale))]
            cost = estimate_tokens(text) * self._rate
        return Message(role="system", text=text if text.strip() else "...", tokens=cost + overhead)

    def _worded(self, number: int, tokens: float, *, fills: bool) -> Message:
        """A message of at most about `tokens` tokens; with `fills` of just so many."""
        recorded = self._text.messages[number]
        overhead = self._calibration.message_tokens
        if recorded.text is None:
            text, cost = self._filler(self._stream(number), tokens)
        else:
            text = recorded.text
            if number == 0:
                # Other runs must not find this one's prompts in a cache.
                text = f"[{self._salt}]\n{text}"
            cost = estimate_tokens(text) * self._rate
            if cost > tokens:
                text = text[: max(1, int(len(text) * tokens / cost))]
                cost = min(cost, tokens)
            elif fills and tokens - cost >= self._calibration.word_tokens:
                more, added = self._filler(self._stream(number), tokens - cost)
                text, cost = f"{text} {more}" if text else more, cost + added
        # No API takes a message without anything in it.
        text = text if text.strip() else "..."
        return Message(
            role=recorded.role,
            text=text,
            tokens=cost + overhead,
            tool_calls=tuple(self._call(call, shortens=True) for call in recorded.tool_calls),
            call_id=None if recorded.call_id is None else self._named(recorded.call_id),
        )

    def _stream(self, number: int) -> str:
        if self._text.messages[number].role == "system":
            return self._text.shared_stream
        return f"own/{self._plan.conversation}/message-{number}"

    def _filler(self, stream: str, tokens: float) -> tuple[str, float]:
        calibration = self._calibration
        count = calibration.words_for(tokens)
        piece = Piece(stream=stream, tokens=count)
        drawn = words([piece], salt=self._salt, vocabulary=calibration.vocabulary)
        return " ".join(drawn), count * calibration.word_tokens

    def _answer(self, number: int, planned: int, outcome: Outcome) -> Message:
        """What the engine said, with the recorded tool calls where it might have had its own."""
        recorded = self._text.messages[number]
        output = planned if outcome.output_tokens is None else outcome.output_tokens
        text = outcome.text
        calls = [self._call(call, shortens=False) for call in recorded.tool_calls]
        taken = sum(estimate_tokens(call.name + call.arguments) * self._rate for call in calls)
        if calls and taken > _ARGUMENTS_SHARE_MAX * output:
            calls = [self._call(call, shortens=True) for call in recorded.tool_calls]
            taken = sum(estimate_tokens(call.name + call.arguments) * self._rate for call in calls)
        if calls and output:
            # Calls are part of an answer: text and calls together are as long as it was.
            cut = text[: round(len(text) * max(0.0, 1.0 - taken / output))]
            # Between two words, so that what is echoed are tokens that the engine generated.
            text = cut.rpartition(" ")[0] or cut
        return Message(
            role="assistant",
            text=text if text.strip() else "...",
            tokens=max(float(output), taken) + self._calibration.message_tokens,
            tool_calls=tuple(calls),
        )

    def _call(self, call: RecordedToolCall, *, shortens: bool) -> RecordedToolCall:
        arguments = "{}" if shortens else (call.arguments or "{}")
        return RecordedToolCall(id=self._named(call.id), name=call.name, arguments=arguments)

    def _named(self, call_id: str) -> str:
        """A tool call's id in this run: two programs never have the same, whatever was recorded."""
        name = f"{self._salt}/{self._plan.conversation}/{call_id}"
        return f"call_{hashlib.sha256(name.encode()).hexdigest()[:24]}"


def _paired(prompt: Sequence[Message]) -> list[Message]:
    """The prompt with results whose call is not in it, after a cut, as the user's words."""
    known: set[str] = set()
    paired: list[Message] = []
    for message in prompt:
        known.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.call_id not in known:
            message = Message(role="user", text=message.text, tokens=message.tokens)
        paired.append(message)
    return paired
