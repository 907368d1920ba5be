"""Texts that we gave out and that may turn up inside a later prompt: how kin without ids is found.

A sub-agent's first prompt holds the argument of the call that started it. The request after a
compaction holds the summary that we wrote. A commit message is asked for with our answer inside. A
title call holds the user's words, and the first step holds them too. All of this is looked for only
in prompts that continue nothing known, and believed only if one program alone can be meant.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agentsched.model import Instant, Nanos
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.request import ParsedRequest

if TYPE_CHECKING:
    from agentsched.proxy.identity.records import Turn


class NeedleKind(StrEnum):
    """What the text was when we gave it out."""

    SPAWN = "spawn"  # an argument of a call that may start a sub-agent
    SUMMARY = "summary"  # the answer to a compaction
    ANSWER = "answer"  # the text of an answer without calls
    HANDOFF = "handoff"  # the hash of the first message of a conversation that is handed over
    TITLE = "title"  # the user text of an auxiliary call that came before its program


@dataclass(slots=True)
class Needle:
    """One text. `is_named` means that the tool's name says that it starts an agent."""

    kind: NeedleKind
    text: str
    turn: Turn
    at: Instant
    is_named: bool = False
    is_used: bool = False
    agent: str = ""


_TEXT_MAX: Final = 240
_HAY_MAX: Final = 65_536
_SPAWN_MIN: Final = 8
_SPAWN_UNNAMED_MIN: Final = 24
_ANSWER_MIN: Final = 24
_SUMMARY_MIN: Final = 12
_ANSWER_LEAST: Final = 8
_ARGUMENTS: Final = (
    "prompt",
    "task",
    "message",
    "request",
    "input",
    "question",
    "instructions",
    "instruction",
    "description",
    "goal",
    "objective",
    "query",
)
_NAMED: Final = re.compile(
    r"(?:^|[_.\- ])(?:sub)?(?:agents?|task|delegate|spawn|dispatch|ask|coworker|assistant|helper)"
    r"(?:$|[_.\- ])|^(?:Agent|Task)$|agent$",
    re.IGNORECASE,
)
_HANDOFF: Final = re.compile(r"transfer|hand_?off", re.IGNORECASE)
_SUMMARY: Final = re.compile(r"<(?:summary|state_snapshot)>(.*?)(?:</|$)", re.DOTALL)
_QUOTES: Final = "\"'`“”«» \n\t"


class Needles:
    """A tenant's texts, newest last; bounded."""

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._needles: OrderedDict[int, Needle] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        return len(self._needles)

    def add(self, needle: Needle) -> None:
        self._needles[self._next] = needle
        self._next += 1
        if len(self._needles) > self._size:
            self._needles.popitem(last=False)

    def forget_program(self, program: object) -> None:
        for key in [k for k, n in self._needles.items() if n.turn.conversation.program is program]:
            del self._needles[key]

    def expire(self, *, now: Instant, span: Nanos) -> None:
        while self._needles:
            key, needle = next(iter(self._needles.items()))
            if now - needle.at <= span:
                return
            del self._needles[key]

    def find(self, hay: Hay, *, now: Instant, span: Nanos) -> list[Needle]:
        """The texts given out within `span` that `hay` contains, oldest first."""
        return [n for n in self._needles.values() if now - n.at <= span and hay.holds(n)]


class Hay:
    """The texts of one prompt, in which needles are looked for."""

    def __init__(self, blocks: Sequence[tuple[str, str]], *, first: str = "") -> None:
        self._first = first
        self._blocks = [(role, text[:_HAY_MAX]) for role, text in blocks if text.strip()]
        self._users = {t.strip() for role, t in self._blocks if role == "user"}
        self._user = "\n".join(t for role, t in self._blocks if role == "user")[:_HAY_MAX]
        self._all = "\n".join(t for _, t in self._blocks)[:_HAY_MAX]
        self._assistant = "\n".join(t for role, t in self._blocks if role == "assistant")
        users = [t for role, t in self._blocks if role == "user"]
        self._later_users = "\n".join(users[1:])[:_HAY_MAX]
        self.last_user = next(
            (t.strip() for role, t in reversed(self._blocks) if role == "user"), ""
        )

    def is_said(self, text: str) -> bool:
        """Whether an assistant's message holds `text`."""
        return text in self._assistant

    def is_heard(self, text: str) -> bool:
        """Whether a user's message after the first one holds `text`."""
        return text in self._later_users

    def holds(self, needle: Needle) -> bool:
        text = needle.text
        match needle.kind:
            case NeedleKind.SPAWN:
                # A short argument (`go on`) must be the whole of what the sub-agent is told.
                return text in self._users or (is_telling(text) and text in self._user)
            case NeedleKind.HANDOFF:
                return self._first == text
            case NeedleKind.TITLE:
                return bool(self.last_user) and (
                    text == self.last_user.strip(_QUOTES)[:_TEXT_MAX]
                    or (len(self.last_user) >= _SPAWN_MIN and self.last_user[:_TEXT_MAX] in text)
                )
            case NeedleKind.SUMMARY | NeedleKind.ANSWER:
                return text in self._all


def hay_of(request: ParsedRequest, *, first: bytes) -> Hay:
    """The texts of a prompt's user and assistant messages, and the hash of its first one.

    Costly: for prompts that continue nothing known only.
    """
    blocks: list[tuple[str, str]] = []
    size = 0
    for raw in request.messages:
        if size > _HAY_MAX:
            break
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            continue
        for role, text in _texts(value):
            blocks.append((role, text))
            size += len(text)
    return Hay(blocks, first=first.hex())


def _texts(value: object) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield "user", value
    if not isinstance(value, dict):
        return
    role = str(value.get("role", ""))
    if role not in ("user", "assistant"):
        return
    content: Any = value.get("content")
    for block in content if isinstance(content, list) else [content]:
        if isinstance(block, str):
            yield role, block
        elif isinstance(block, dict) and isinstance(block.get("text"), str):
            yield role, block["text"]


def spawns_of(call: AnsweredCall) -> list[tuple[str, bool]]:
    """The arguments of a call that a sub-agent's prompt may hold, and whether its name says so."""
    is_named = _NAMED.search(call.name) is not None
    least = _SPAWN_MIN if is_named else _SPAWN_UNNAMED_MIN
    try:
        arguments = msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return []
    if not isinstance(arguments, dict):
        return []
    for name in _ARGUMENTS:
        value = arguments.get(name)
        if isinstance(value, str) and len(value.strip()) >= least:
            return [(value.strip()[:_TEXT_MAX], is_named)]
    return []


def is_handoff(answer: Answer) -> bool:
    """Whether an answer hands its conversation to another agent."""
    return any(_HANDOFF.search(call.name) for call in answer.calls)


def summary_of(text: str) -> str:
    """The line of a summary that the next prompt is sure to hold; empty where it is too short."""
    match = _SUMMARY.search(text)
    return _longest_line(match[1] if match else text, least=_SUMMARY_MIN)


def answer_of(text: str) -> str:
    """Likewise for an ordinary answer; a short one is looked for as a whole."""
    text = text.strip()
    if _ANSWER_LEAST <= len(text) <= _TEXT_MAX:
        return text
    return _longest_line(text, least=_ANSWER_LEAST)


def is_telling(text: str) -> bool:
    """Whether an answer is long enough to be nobody else's."""
    return len(text) >= _ANSWER_MIN


def title_of(hay: Hay) -> str:
    """The user's words inside a title call."""
    return hay.last_user.strip(_QUOTES)[:_TEXT_MAX]


def _longest_line(text: str, *, least: int) -> str:
    line = max((line.strip() for line in text[:_HAY_MAX].splitlines()), key=len, default="")
    line = line[:_TEXT_MAX]
    return line if len(line) >= least else ""
