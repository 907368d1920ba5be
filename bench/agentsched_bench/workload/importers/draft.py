"""A conversation while it is read: messages, and calls that have some of them as their prompt.

Every importer that sees messages fills one of these; `Conversation.recording` then works out the
token counts, what was appended and what was cut, and the pauses, alike for all formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agentsched_bench.workload.importers.blocks import first_of
from agentsched_bench.workload.token_estimate import estimate_tokens
from agentsched_bench.workload.trace import (
    RecordedMessage,
    RecordedStep,
    RecordedTool,
    RecordedToolCall,
    Recording,
    ToolDefinition,
)

Runs = tuple[tuple[int, int], ...]
#: What a chat template adds to a message, about.
MESSAGE_TOKENS = 4


@dataclass(slots=True, kw_only=True)
class Call:
    """One LLM call as it was found. Times are seconds on any clock that the conversation shares.

    `gap_s` and `cycle_s` only where the source gives them instead of times.
    """

    prompt: Runs = ()
    answer: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int = 0
    begun_s: float | None = None
    ended_s: float | None = None
    ttft_s: float | None = None
    llm_s: float | None = None
    gap_s: float | None = None
    cycle_s: float | None = None
    gap_kind: str = ""
    tools: list[RecordedTool] = field(default_factory=list)
    model: str | None = None
    is_compaction: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A recording, and when it began on the clock that all of its source's recordings share.

    Seconds since 1970 are one clock for all sources. Where a source counts from its own beginning
    instead, `clock` names whose it is; that is for the import to say.
    """

    recording: Recording
    epoch_s: float | None = None
    clock: str = ""


class Chain:
    """The prompt as it grows: runs of message numbers, so that a long one costs little."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []

    def append(self, message: int) -> None:
        if self._runs and self._runs[-1][1] + 1 == message:
            self._runs[-1] = (self._runs[-1][0], message)
        else:
            self._runs.append((message, message))

    def restart(self, messages: Sequence[int] = ()) -> None:
        """Begin again with `messages` alone, as a compaction does."""
        self._runs = []
        for message in messages:
            self.append(message)

    def snapshot(self) -> Runs:
        return tuple(self._runs)


class Conversation:
    """Messages, calls and offered tools of one conversation."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.tool_definitions: list[ToolDefinition] = []
        #: Tokens of the tools' definitions, of which no message speaks.
        self.tool_tokens: int | None = None
        self.system_tokens: int | None = None
        self._messages: list[RecordedMessage] = []
        #: `_sums[i]`: tokens of all messages before number i.
        self._sums: list[int] = [0]
        self._known: dict[RecordedMessage, int] = {}

    def add(
        self,
        role: str,
        text: str | None,
        *,
        tokens: int | None = None,
        tool_calls: Sequence[RecordedToolCall] = (),
        call_id: str | None = None,
    ) -> int:
        """Keep a message; its number. `tokens` None is estimated."""
        if tokens is None:
            tokens = _estimate(text or "", tool_calls)
        self._messages.append(
            RecordedMessage(
                role=role,
                text=text,
                tokens=tokens,
                tool_calls=tuple(tool_calls),
                call_id=call_id,
            )
        )
        self._sums.append(self._sums[-1] + tokens + MESSAGE_TOKENS)
        return len(self._messages) - 1

    def known(self, message: RecordedMessage) -> int:
        """The number of a message that is kept once, however often it is given."""
        number = self._known.get(message)
        if number is None:
            number = self.add(
                message.role,
                message.text,
                tokens=message.tokens,
                tool_calls=message.tool_calls,
                call_id=message.call_id,
            )
            self._known[message] = number
        return number

    def rewrite(self, message: int, *, text: str, tool_calls: Sequence[RecordedToolCall]) -> None:
        """Give a message more text and calls than were known at first."""
        changed = msgspec.structs.replace(
            self._messages[message], text=text, tool_calls=tuple(tool_calls)
        )
        self._messages[message] = changed
        self.resize(message, _estimate(text, tool_calls))

    def resize(self, message: int, tokens: int) -> None:
        """Give a message another size, once that is known."""
        change = tokens - (self._messages[message].tokens or 0)
        self._messages[message] = msgspec.structs.replace(self._messages[message], tokens=tokens)
        self._sums[message + 1 :] = [total + change for total in self._sums[message + 1 :]]

    def tokens_of(self, message: int | None) -> int:
        return 0 if message is None else self._messages[message].tokens or 0

    def prompt_tokens(self, runs: Runs) -> int:
        """The estimate for a prompt, with the offered tools."""
        messages = sum(self._sums[last + 1] - self._sums[first] for first, last in runs)
        return messages + (self.tool_tokens or 0)

    def scale_to(self, *, prompt_tokens: int, output_tokens: int) -> bool:
        """Fit estimated counts to recorded totals of all calls; whether that could be done.

        Totals that are off by more than a factor of three speak of something else.
        """
        inputs = sum(self.prompt_tokens(call.prompt) for call in self.calls)
        outputs = sum(self.tokens_of(call.answer) for call in self.calls)
        if not inputs or not outputs:
            return False
        prompt_scale, output_scale = prompt_tokens / inputs, output_tokens / outputs
        if not (1 / 3 <= prompt_scale <= 3 and 1 / 3 <= output_scale <= 3):
            return False
        left, out_left = prompt_tokens, output_tokens
        for index, call in enumerate(self.calls):
            is_last = index == len(self.calls) - 1
            scaled = round(self.prompt_tokens(call.prompt) * prompt_scale)
            answer = round(self.tokens_of(call.answer) * output_scale)
            call.input_tokens = max(1, left if is_last else scaled)
            call.output_tokens = max(0, out_left if is_last else answer)
            left, out_left = left - call.input_tokens, out_left - call.output_tokens
        return True

    def recording(
        self, *, session_id: str, source: str, keeps_text: bool, **fields: Any
    ) -> Recording | None:
        """What was found, as a line of a trace; None without any call."""
        if not self.calls:
            return None
        steps = tuple(self._step(index, keeps_text=keeps_text) for index in range(len(self.calls)))
        begun = self.calls[0].begun_s
        if begun is not None:
            steps = _timed(steps, self.calls)
        return Recording(
            session_id=session_id[:1000],
            source=source,
            steps=steps,
            tool_tokens=self.tool_tokens,
            system_tokens=self.system_tokens,
            messages=tuple(self._messages) if keeps_text else (),
            tool_definitions=tuple(self.tool_definitions) if keeps_text else (),
            **fields,
        )

    def _step(self, index: int, *, keeps_text: bool) -> RecordedStep:
        call = self.calls[index]
        before = self.calls[index - 1] if index else None
        prompt = self._input(call)
        common, is_whole, is_echoed = (0, False, False) if before is None else self._shared(index)
        new = None
        if before is not None and is_whole and is_echoed and not before.reasoning_tokens:
            new = prompt - self._input(before) - self._output(before)
        seen = call.cached_tokens
        if seen is None and before is not None:
            seen = self._input(before) if is_whole else self._scaled(common, call)
        return RecordedStep(
            step=index,
            input_tokens=prompt,
            output_tokens=self._output(call),
            new_input_tokens=new if new is not None and new >= 0 else None,
            prefix_tokens=None if seen is None else min(seen, prompt),
            llm_s=_rounded(call.llm_s),
            ttft_s=_rounded(call.ttft_s),
            gap_s=_rounded(call.gap_s) if index < len(self.calls) - 1 else None,
            gap_kind=call.gap_kind or ("tool" if call.tools else "unknown"),
            cycle_s=_rounded(call.cycle_s),
            reasoning_tokens=call.reasoning_tokens,
            tools=tuple(call.tools),
            prompt=call.prompt if keeps_text and call.prompt else None,
            answer=call.answer if keeps_text else None,
            is_compaction=call.is_compaction,
            model=call.model,
        )

    def _input(self, call: Call) -> int:
        if call.input_tokens is not None:
            return call.input_tokens
        return max(1, self.prompt_tokens(call.prompt))

    def _output(self, call: Call) -> int:
        return self.tokens_of(call.answer) if call.output_tokens is None else call.output_tokens

    def _scaled(self, tokens: int, call: Call) -> int:
        """Estimated tokens in those of the call, whose recorded count may be another."""
        estimate = self.prompt_tokens(call.prompt)
        return 0 if not estimate else round(tokens * self._input(call) / estimate)

    def _shared(self, index: int) -> tuple[int, bool, bool]:
        """(tokens of the common prefix, whether the prompt before is all in it, and its answer)."""
        before, call = self.calls[index - 1], self.calls[index]
        if not before.prompt or not call.prompt:
            # No messages are known: a prompt that grew was appended to, as far as anyone can tell.
            grew = self._input(call) >= self._input(before) + self._output(before)
            return 0, grew and not call.is_compaction, grew
        count, following = common_prefix(before.prompt, call.prompt)
        whole = count == _length(before.prompt)
        tokens = self.prompt_tokens(first_of(call.prompt, count)) if count else 0
        return tokens, whole, whole and before.answer is not None and following == before.answer


def _estimate(text: str, tool_calls: Sequence[RecordedToolCall]) -> int:
    return estimate_tokens(text + "".join(call.name + call.arguments for call in tool_calls))


def common_prefix(one: Runs, two: Runs) -> tuple[int, int | None]:
    """How many messages two prompts begin with alike, and what follows in the second."""
    count = 0
    for left, right in zip(one, two, strict=False):
        if left[0] != right[0]:
            return count, right[0]
        length = min(left[1], right[1]) - left[0] + 1
        count += length
        if left[1] != right[1]:
            return count, right[0] + length if right[1] > left[1] else None
    rest = two[len(one) :] if len(two) > len(one) else ()
    return count, rest[0][0] if rest else None


def _length(runs: Runs) -> int:
    return sum(last - first + 1 for first, last in runs)


def _timed(steps: Sequence[RecordedStep], calls: Sequence[Call]) -> tuple[RecordedStep, ...]:
    """Steps with the times that their calls' instants give; a clock never goes back."""
    zero = calls[0].begun_s or 0.0
    timed: list[RecordedStep] = []
    clock = zero
    for index, (step, call) in enumerate(zip(steps, calls, strict=True)):
        begun = call.begun_s
        changes: dict[str, Any] = {}
        if begun is not None:
            clock = max(clock, begun)
            changes["t_s"] = _rounded(clock - zero)
            if call.ended_s is not None and step.llm_s is None:
                changes["llm_s"] = _rounded(max(0.0, call.ended_s - begun))
        following = calls[index + 1].begun_s if index + 1 < len(calls) else None
        if following is not None and call.ended_s is not None and step.gap_s is None:
            changes["gap_s"] = _rounded(max(0.0, following - call.ended_s))
        timed.append(msgspec.structs.replace(step, **changes))
    return tuple(timed)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(0.0, seconds), 6)


def command_word(text: str) -> str | None:
    """The program that a shell command runs: past `cd x &&`, assignments, `sudo` and the like."""
    rest = text.strip()
    for part in _shell_parts(rest):
        words = part.split()
        while words and (
            ("=" in words[0] and not words[0].startswith("=")) or words[0] in _SKIPPED
        ):
            words = words[1:]
        if not words or words[0] in ("cd", "export", "set", "source", "."):
            continue
        return _bare(words[0])
    words = rest.split()
    return _bare(words[0]) if words else None


_SKIPPED = frozenset({"sudo", "env", "time", "nice", "nohup", "command", "exec", "then", "do", "("})


def _shell_parts(text: str) -> list[str]:
    head = text[:2000].replace("&&", "\n").replace("||", "\n").replace(";", "\n")
    return [part.strip() for part in head.split("\n") if part.strip()]


def _bare(word: str) -> str | None:
    name = word.strip("'\"`(){}").rsplit("/", 1)[-1]
    return name[:100] or None
