"""Finding out how many tokens a target makes of our words, so that prompts get their length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from agentsched.model import EngineError
from agentsched.proxy.request import Dialect
from agentsched_bench.live.client import Client
from agentsched_bench.live.dialects import Message, chat_body
from agentsched_bench.workload.text import WORDS
from agentsched_bench.workload.token_estimate import estimate_tokens

_WORDS_MIN: Final = 16
_PROBE_WORDS: Final = 96
#: What agents send, in small: a task, code, a listing, a failure.
_TEXT: Final = """\
The function below returns the wrong result when the list is empty. Please find out why, and fix it
without changing the public interface; then run the tests in tests/unit/test_collector.py.

    def collect_values(rows: list[dict[str, int]], *, key: str = "value") -> list[int]:
        found = [row[key] for row in rows if key in row and row[key] >= 0]
        return sorted(found)[: len(found) // 2 + 1]

-rw-r--r-- 1 user group  4821 Mar 14 09:26 collector.py
drwxr-xr-x 7 user group   224 Mar 14 09:31 __pycache__
FAILED tests/unit/test_collector.py::test_empty - AssertionError: assert [1, 2] == [1]
=================== 1 failed, 37 passed, 2 skipped in 3.52s ===================
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How a target counts: a prompt of messages with n words in all has about
    `fixed_tokens + messages x message_tokens + n x word_tokens` tokens. Of other text it makes
    about `text_rate` times as many as `estimate_tokens` says.
    """

    vocabulary: tuple[str, ...] = WORDS
    word_tokens: float = 1.0
    message_tokens: float = 5.0
    fixed_tokens: float = 3.0
    text_rate: float = 1.0

    def words_for(self, tokens: float) -> int:
        """How many words make about `tokens` tokens; at least 1."""
        return max(1, round(tokens / self.word_tokens))


class _Tokenized(msgspec.Struct):
    count: int
    token_strs: list[str] | None = None


async def calibrate(client: Client, *, dialect: Dialect, model: str) -> Calibration:
    """Ask the target: which words are one token (where it can say), and what a message costs.

    Makes one `/tokenize` request and four short calls.

    Raises:
        EngineError: the target does not answer, or sends no token counts.
    """
    vocabulary = await _single_words(client, model=model)
    probe = [vocabulary[index % len(vocabulary)] for index in range(2 * _PROBE_WORDS)]
    half, whole = " ".join(probe[:_PROBE_WORDS]), " ".join(probe)
    third = 2 * _PROBE_WORDS // 3
    parts = [" ".join(probe[index * third : (index + 1) * third]) for index in range(3)]

    async def count(texts: Sequence[str]) -> int:
        roles = ("user", "assistant", "user")
        prompt = [Message(role=role, text=text) for role, text in zip(roles, texts, strict=False)]
        body = chat_body(dialect, prompt, model=model, output_tokens=1)
        outcome = await client.call(body, headers={})
        if outcome.error:
            raise EngineError(f"{client.base_url} does not answer: {outcome.error}")
        if outcome.prompt_tokens is None:
            raise EngineError(f"{client.base_url} sends no usage: prompts cannot be sized")
        return outcome.prompt_tokens

    text = await count([_TEXT])
    one, two, three = await count([half]), await count([whole]), await count(parts)
    word_tokens = max(0.05, (two - one) / _PROBE_WORDS)
    message_tokens = max(0.0, (three - two) / 2)
    fixed_tokens = max(0.0, two - message_tokens - 2 * _PROBE_WORDS * word_tokens)
    text_tokens = text - fixed_tokens - message_tokens
    return Calibration(
        vocabulary=vocabulary,
        word_tokens=word_tokens,
        message_tokens=message_tokens,
        fixed_tokens=fixed_tokens,
        text_rate=max(0.05, text_tokens / estimate_tokens(_TEXT)),
    )


async def _single_words(client: Client, *, model: str) -> tuple[str, ...]:
    text = " " + " ".join(WORDS)
    answer = await client.post_json(
        "/tokenize",
        {"model": model, "prompt": text, "return_token_strs": True, "add_special_tokens": False},
    )
    if answer is None:
        return WORDS
    try:
        found = msgspec.json.decode(answer, type=_Tokenized)
    except msgspec.MsgspecError:
        return WORDS
    if found.count == len(WORDS):
        return WORDS
    singles = _whole_words(found.token_strs or [])
    return singles if len(singles) >= _WORDS_MIN else WORDS


def _whole_words(tokens: Sequence[str]) -> tuple[str, ...]:
    """The words that stand in one token, with the blank before them, in a tokenised list."""
    # How tokenisers write a blank: byte-level BPE and SentencePiece.
    plain = [token.replace("\u0120", " ").replace("\u2581", " ") for token in tokens]
    known = set(WORDS)
    return tuple(
        token[1:]
        for token, follower in zip(plain, [*plain[1:], " "], strict=True)
        if token[:1] == " " and token[1:] in known and follower[:1] == " "
    )
