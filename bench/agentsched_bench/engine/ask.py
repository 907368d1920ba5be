"""A client's request in one shape, whatever dialect it came in, and its prompt as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgspec

from agentsched_bench.engine import tokenizer


class Dialect(StrEnum):
    """Whose wire format a request speaks."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that the client offers."""

    name: str
    parameters: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One message: text, and the tool calls that an assistant made in it as (name, arguments)."""

    role: str
    text: str
    calls: tuple[tuple[str, str], ...] = ()


#: What `tool_choice` may be besides a tool's name.
CHOICES: Final = ("none", "auto", "required")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for generation. `max_tokens` absent means as much as there is room for."""

    dialect: Dialect
    model: str
    prompt: Sequence[int]
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    seed: int = 0
    priority: int = 0
    salt: str = ""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    #: The first and the last user message, and how many answers the client has: for playback.
    first_user: str = ""
    last_user: str = ""
    answers: int = 0
    #: What the Responses API repeats in its answer.
    echo: dict[str, Any] = field(default_factory=dict)


def render(messages: Sequence[Said], *, tools: Any = None, open_answer: bool = True) -> list[int]:
    """The chat template: tools, then the messages in order, then the start of the answer.

    Prefix-stable: what is appended to a conversation is appended to its tokens, and an answer sent
    back as a message has the tokens that were generated for it.
    """
    ids: list[int] = []
    if tools:
        text = msgspec.json.encode(tools, order="deterministic").decode()
        ids += [tokenizer.TOOLS, *tokenizer.encode(text), tokenizer.END]
    for said in messages:
        ids += [tokenizer.START, *tokenizer.encode(said.role), tokenizer.MIDDLE]
        ids += tokenizer.encode(said.text)
        for name, arguments in said.calls:
            ids += [tokenizer.CALL, *tokenizer.encode(name), tokenizer.MIDDLE]
            ids += tokenizer.encode(arguments)
        ids.append(tokenizer.END)
    if open_answer:
        ids += [tokenizer.START, *tokenizer.encode("assistant"), tokenizer.MIDDLE]
    return ids


def first_user(messages: Sequence[Said]) -> str:
    """The text of the first user message; empty when there is none."""
    return next((said.text for said in messages if said.role == "user"), "")


def last_user(messages: Sequence[Said]) -> str:
    """The text of the last user message; empty when there is none."""
    return first_user(messages[::-1])


def answers(messages: Sequence[Said]) -> int:
    """How many answers of the assistant a conversation holds; one may be several items in a row."""
    count = 0
    previous = ""
    for said in messages:
        count += said.role == "assistant" and previous != "assistant"
        previous = said.role
    return count
