"""From a plan to the prompts that are really sent, with the engine's own answers in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentsched.proxy.request import Dialect
from agentsched_bench.live.calibrate import Calibration
from agentsched_bench.live.client import Outcome
from agentsched_bench.live.dialects import Message, chat_body, completions_body
from agentsched_bench.live.recorded_prompts import RecordedPrompts
from agentsched_bench.workload.pieces import split
from agentsched_bench.workload.shape import Piece, PlannedCall, PlannedConversation
from agentsched_bench.workload.text import token_ids, words


class Prompts(Protocol):
    """The prompts of one conversation, made one after the other."""

    def body(self, index: int, *, model: str) -> dict[str, object]:
        """The request of call `index`; all calls before it have been answered."""
        ...

    def answered(self, index: int, outcome: Outcome) -> None:
        """Take the answer to call `index`, to be echoed by the calls after it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMaker:
    """Makes the prompts of conversations for one run. `salt` separates its content from others'.

    With `echoes_whole`, messages hold the whole answers before them, also where the recorded client
    sent back only a part (because the rest was reasoning, which no client sends back). With
    `uses_text`, recorded messages are sent where a conversation has them; completions are token ids
    all the same.
    """

    dialect: Dialect
    calibration: Calibration
    salt: str
    echoes_whole: bool = False
    uses_text: bool = True

    def prompts(self, plan: PlannedConversation) -> Prompts:
        if self.dialect is Dialect.COMPLETIONS:
            return TokenPrompts(plan, salt=self.salt)
        if plan.text is not None and self.uses_text:
            return RecordedPrompts(
                plan,
                plan.text,
                dialect=self.dialect,
                calibration=self.calibration,
                salt=self.salt,
            )
        return TextPrompts(
            plan,
            dialect=self.dialect,
            calibration=self.calibration,
            salt=self.salt,
            echoes_whole=self.echoes_whole,
        )


class TokenPrompts:
    """Prompts as token ids: every length is exact."""

    def __init__(self, plan: PlannedConversation, *, salt: str) -> None:
        self._plan = plan
        self._salt = salt
        self._prompts: list[list[int]] = []
        self._answers: list[list[int]] = []

    def body(self, index: int, *, model: str) -> dict[str, object]:
        call = self._plan.calls[index]
        prompt: list[int] = []
        if call.base is not None:
            prompt = self._prompts[call.base][: call.keep_tokens]
            prompt += self._answers[call.base][: call.echo_tokens]
        prompt += token_ids(call.pieces, salt=self._salt)
        assert len(self._prompts) == index
        self._prompts.append(prompt)
        return completions_body(prompt, model=model, output_tokens=call.output_tokens)

    def answered(self, index: int, outcome: Outcome) -> None:
        assert len(self._answers) == index
        wanted = self._plan.calls[index].output_tokens
        answer = outcome.token_ids[:wanted]
        if len(answer) < wanted:
            # A server that returns no ids: something of the same length stands for its answer.
            stream = f"answer/{self._plan.conversation}/{index}"
            piece = Piece(stream=stream, start=len(answer), tokens=wanted - len(answer))
            answer = answer + token_ids([piece], salt=self._salt)
        self._answers.append(answer)


class TextPrompts:
    """Prompts as messages, sized by a calibration and corrected by the server's own counts."""

    def __init__(
        self,
        plan: PlannedConversation,
        *,
        dialect: Dialect,
        calibration: Calibration,
        salt: str,
        echoes_whole: bool = False,
    ) -> None:
        self._plan = plan
        self._dialect = dialect
        self._echoes_whole = echoes_whole
        self._calibration = calibration
        self._salt = salt
        self._prompts: list[list[Message]] = []
        self._answers: list[Message] = []
        #: Tokens of each prompt as the server counted them, or as we did where it did not.
        self._counted: list[float] = []

    def body(self, index: int, *, model: str) -> dict[str, object]:
        assert len(self._prompts) == index
        call = self._plan.calls[index]
        prompt = self._prompt(call)
        self._prompts.append(prompt)
        return chat_body(self._dialect, prompt, model=model, output_tokens=call.output_tokens)

    def answered(self, index: int, outcome: Outcome) -> None:
        assert len(self._answers) == index
        wanted = self._plan.calls[index].output_tokens
        output = wanted if outcome.output_tokens is None else outcome.output_tokens
        tokens = output + self._calibration.message_tokens
        # No API takes an assistant message without anything in it.
        text = outcome.text if outcome.text.strip() else "..."
        self._answers.append(Message(role="assistant", text=text, tokens=tokens))
        counted = outcome.prompt_tokens
        if counted is None:
            counted = round(self._calibration.fixed_tokens + _total(self._prompts[index]))
        self._counted.append(counted)

    def _prompt(self, call: PlannedCall) -> list[Message]:
        calibration = self._calibration
        if call.base is None:
            return self._first(call)
        kept = self._prompts[call.base]
        if call.keep_tokens >= self._plan.calls[call.base].prompt_tokens:
            answer = self._echo(call)
            used = self._counted[call.base] + answer.tokens
            prompt = [*kept, answer]
        else:
            prompt = self._cut(kept, float(call.keep_tokens))
            elided = self._elided(call, kept, prompt) if call.elides else None
            if elided is not None:
                return elided
            used = calibration.fixed_tokens + _total(prompt)
        # A cut message of the user's goes on with the new text, as an elided observation does.
        opened = prompt.pop() if prompt and prompt[-1].role == "user" else None
        room = call.prompt_tokens - used
        if opened is None:
            room -= calibration.message_tokens
        added = self._message("user", call.pieces, tokens=room)
        if opened is not None:
            text = f"{opened.text} {added.text}"
            added = Message(role="user", text=text, tokens=opened.tokens + max(room, 0.0))
        return [*prompt, added]

    def _first(self, call: PlannedCall) -> list[Message]:
        calibration = self._calibration
        head, tail = split(call.pieces, self._plan.system_tokens)
        prompt: list[Message] = []
        room = call.prompt_tokens - calibration.fixed_tokens
        if head:
            # Sized by the agent's own tokens alone, so that all of its programs begin alike.
            tokens = self._plan.system_tokens - calibration.message_tokens
            prompt.append(self._message("system", head, tokens=tokens))
            room -= prompt[0].tokens
        room -= calibration.message_tokens
        return [*prompt, self._message("user", tail, tokens=room)]

    def _message(self, role: str, pieces: Sequence[Piece], *, tokens: float) -> Message:
        calibration = self._calibration
        count = calibration.words_for(tokens)
        drawn = words(pieces, salt=self._salt, vocabulary=calibration.vocabulary)
        if len(drawn) < count:
            last = pieces[-1] if pieces else Piece(stream="empty", tokens=0)
            more = Piece(
                stream=last.stream, start=last.start + last.tokens, tokens=count - len(drawn)
            )
            drawn += words([more], salt=self._salt, vocabulary=calibration.vocabulary)
        counted = count * calibration.word_tokens + calibration.message_tokens
        return Message(role=role, text=" ".join(drawn[:count]), tokens=counted)

    def _echo(self, call: PlannedCall) -> Message:
        assert call.base is not None
        answer = self._answers[call.base]
        whole = self._plan.calls[call.base].output_tokens
        if call.echo_tokens >= whole or self._echoes_whole:
            return answer
        share = max(1, call.echo_tokens) / whole
        text = answer.text[: max(1, round(share * len(answer.text)))]
        overhead = self._calibration.message_tokens
        tokens = (answer.tokens - overhead) * share + overhead
        return Message(role="assistant", text=text if text.strip() else "...", tokens=tokens)

    def _elided(
        self, call: PlannedCall, before: Sequence[Message], kept: Sequence[Message]
    ) -> list[Message] | None:
        """The prompt before with what the user said at the cut made shorter, and the answer to it.

        `kept` is that prompt up to the cut. Answers behind it come back as they were; what the user
        said there does as far as there is room, the latest first. None: not even the answers have.
        """
        assert call.base is not None
        pairs = enumerate(zip(before, kept, strict=False))
        whole = next((n for n, (old, new) in pairs if old is not new), len(kept))
        tail = [*before[whole:], self._answers[call.base]]
        heard = [place for place, message in enumerate(tail) if message.role != "assistant"]
        word = self._calibration.word_tokens
        least = self._calibration.message_tokens + word
        # At least a word of each, and of what is new.
        room = call.prompt_tokens - self._calibration.fixed_tokens - _total(kept[:whole])
        room -= _total(tail) - sum(tail[place].tokens - least for place in heard) + least
        if room < 0:
            return None
        for place in reversed(heard):
            message = tail[place]
            more = min(room, message.tokens - least)
            if place == heard[0]:
                # Of another message than the one that the cut goes through nothing is left.
                is_opened = not place and whole < len(kept)
                more = min(more, kept[whole].tokens - least if is_opened else 0.0)
            more = max(more, 0.0)
            tail[place] = _beginning(message, tokens=least + more, overhead=least - word)
            room -= more
        return [*kept[:whole], *tail, self._message("user", call.pieces, tokens=room + word)]

    def _cut(self, messages: Sequence[Message], keep_tokens: float) -> list[Message]:
        """The messages up to about `keep_tokens`; one that lies across the cut is shortened."""
        left = keep_tokens - self._calibration.fixed_tokens
        kept: list[Message] = []
        for message in messages:
            if message.tokens <= left:
                kept.append(message)
                left -= message.tokens
                continue
            room = left - self._calibration.message_tokens
            if room >= 1:
                begun = _beginning(message, tokens=left, overhead=left - room)
                if begun.text.strip():
                    kept.append(begun)
            break
        return kept


def _beginning(message: Message, *, tokens: float, overhead: float) -> Message:
    """What of a message takes so many tokens; itself, where it takes no more."""
    if message.tokens <= tokens:
        return message
    share = (tokens - overhead) / max(message.tokens - overhead, 1.0)
    text = message.text[: round(share * len(message.text))]
    return Message(role=message.role, text=text, tokens=tokens)


def _total(messages: Sequence[Message]) -> float:
    return sum(message.tokens for message in messages)
