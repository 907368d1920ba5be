"""Texts that we gave out and that may turn up inside a later prompt: how kin without ids is found.

A sub-agent's first prompt holds the argument of the call that started it. The request after a
compaction holds the summary that we wrote. A commit message is asked for with our answer inside. A
title call holds the user's words, and the first step holds them too. All of this is looked for only
in prompts that continue nothing known, and believed only if one program alone can be meant.

After a restart only the texts' traces are left, and those are looked for likewise.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agentsched.model import Instant, Nanos
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.identity.traces import Ground, Trace, Tracer
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
    QUOTE = "quote"  # what was answered or what a tool said: a condenser tells it again


@dataclass(slots=True)
class Needle:
    """One text. `is_named` means that the tool's name says that it starts an agent.

    `trace` stands for a text from before a restart, which is empty then; `place` is the needle's
    among its turn's kept ones. `word` is a word of the text with a blank on either side, so that
    no prompt without this word holds the text; empty where there is none.
    """

    kind: NeedleKind
    text: str
    turn: Turn
    at: Instant
    is_named: bool = False
    is_used: bool = False
    trace: Trace | None = None
    place: int = -1
    word: str = field(init=False)

    def __post_init__(self) -> None:
        self.word = max(self.text.split()[1:-1], key=len, default="")

    @property
    def is_telling(self) -> bool:
        """Whether the text is long enough to be nobody else's."""
        size = len(self.text) if self.trace is None else self.trace.characters
        return size >= _ANSWER_MIN

    def use(self) -> None:
        """Note that it was found, here and on what its turn keeps of it."""
        self.is_used = True
        if 0 <= self.place < len(self.turn.traces):
            kept = list(self.turn.traces)
            kept[self.place] = msgspec.structs.replace(kept[self.place], is_used=True)
            self.turn.traces = tuple(kept)


class KeptNeedle(msgspec.Struct, frozen=True, array_like=True):
    """A needle as it outlives the process: `name` is a hash that was its text already."""

    kind: NeedleKind
    trace: Trace | None = None
    name: str = ""
    is_named: bool = False
    is_used: bool = False

    def needle(self, turn: Turn, place: int) -> Needle:
        """The needle that it was, of the turn that was made anew."""
        return Needle(
            kind=self.kind,
            text=self.name,
            turn=turn,
            at=turn.at,
            is_named=self.is_named,
            is_used=self.is_used,
            trace=self.trace,
            place=place,
        )


def kept(needle: Needle, tracer: Tracer) -> KeptNeedle:
    """What may be written down of a needle: no text."""
    is_hash = needle.kind is NeedleKind.HANDOFF
    return KeptNeedle(
        needle.kind,
        trace=None if is_hash else needle.trace or tracer.trace(needle.text),
        name=needle.text if is_hash else "",
        is_named=needle.is_named,
        is_used=needle.is_used,
    )


_TEXT_MAX: Final = 240
_HAY_MAX: Final = 65_536
#: Whose words count, and as whose; with those of a condenser's system prompt.
_SPEAKERS: Final = {"user": "user", "assistant": "assistant"}
_TELLERS: Final = {**_SPEAKERS, "system": "user", "developer": "user"}
_SPAWN_MIN: Final = 8
_SPAWN_UNNAMED_MIN: Final = 24
_ANSWER_MIN: Final = 24
_SUMMARY_MIN: Final = 12
_QUOTE_MIN: Final = 24
_RESULTS_MAX: Final = 8
_RESULT_BYTES_MAX: Final = 65_536
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
#: How Google ADK begins each message in which it tells what another agent did.
_RETOLD: Final = "For context:"
_SUMMARY: Final = re.compile(r"<(?:summary|state_snapshot)>(.*?)(?:</|$)", re.DOTALL)
#: A tag's name ends in one place only, lest a long one be tried at each of its lengths.
_WRAPPED: Final = re.compile(r"<([\w-]{1,64})(?![\w-])[^>]*>(.+?)</\1>", re.DOTALL)
#: A title asked for in the message that holds the text: its first line asks.
_ENTITLED: Final = re.compile(r"[^\n]{0,80}\btitle\b[^\n]{0,80}:\n+(.+)", re.DOTALL)
_NO_THOUGHT: Final = re.compile(r"<think>\s*</think>\Z")
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
            _, gone = self._needles.popitem(last=False)
            gone.turn.traces = ()

    def forget_program(self, program: object) -> None:
        for key in [k for k, n in self._needles.items() if n.turn.conversation.program is program]:
            del self._needles[key]

    def expire(self, *, now: Instant, span: Nanos) -> None:
        while self._needles:
            key, needle = next(iter(self._needles.items()))
            if now - needle.at <= span:
                return
            needle.turn.traces = ()
            del self._needles[key]

    def find(self, hay: Hay, *, now: Instant, span: Nanos) -> list[Needle]:
        """The texts given out within `span` that `hay` contains, oldest first."""
        return [n for n in self._needles.values() if now - n.at <= span and hay.holds(n)]


class Hay:
    """The texts of one prompt, in which needles are looked for."""

    def __init__(
        self, blocks: Sequence[tuple[str, str]], *, first: str = "", tracer: Tracer | None = None
    ) -> None:
        self._first = first
        self._tracer = tracer
        blocks = [(role, text[:_HAY_MAX]) for role, text in blocks if text.strip()]
        users = [t for role, t in blocks if role == "user"]
        self._users = {t.strip() for t in users}
        self._user = "\n".join(users)[:_HAY_MAX]
        self._all = "\n".join(t for _, t in blocks)[:_HAY_MAX]
        self._assistant = "\n".join(t for role, t in blocks if role == "assistant")
        self._later_users = "\n".join(users[1:])[:_HAY_MAX]
        #: Who takes over is told what went before, behind the first words.
        self.is_retold = any(text.lstrip().startswith(_RETOLD) for text in users[1:])
        self.last_user = users[-1].strip() if users else ""
        self._titles = {self.last_user.strip(_QUOTES)[:_TEXT_MAX]}
        self._words: dict[str, set[str]] = {}
        self._grounds: dict[str, Ground] = {}

    def is_said(self, needle: Needle) -> bool:
        """Whether an assistant's message holds its text."""
        return self._has(self._assistant, needle)

    def is_heard(self, needle: Needle) -> bool:
        """Whether a user's message after the first one holds its text."""
        return self._has(self._later_users, needle)

    def holds(self, needle: Needle) -> bool:
        match needle.kind:
            case NeedleKind.SPAWN:
                # A short argument (`go on`) must be the whole of what the sub-agent is told.
                if needle.is_telling and self._has(self._user, needle):
                    return True
                return self._is_any(self._users, needle)
            case NeedleKind.HANDOFF:
                return self._first == needle.text
            case NeedleKind.TITLE:
                return bool(self.last_user) and self._is_titled(needle)
            case NeedleKind.SUMMARY | NeedleKind.ANSWER | NeedleKind.QUOTE:
                return self._has(self._all, needle)

    def _is_titled(self, needle: Needle) -> bool:
        if self._is_any(self._titles, needle):
            return True
        return (
            needle.trace is None
            and len(self.last_user) >= _SPAWN_MIN
            and self.last_user[:_TEXT_MAX] in needle.text
        )

    def _has(self, text: str, needle: Needle) -> bool:
        if needle.trace is None:
            # A prompt is long and needles are many: nearly all are told apart by a single word.
            return (not needle.word or needle.word in self._words_of(text)) and needle.text in text
        ground = self._ground(text)
        return ground is not None and ground.holds(needle.trace)

    def _words_of(self, text: str) -> set[str]:
        words = self._words.get(text)
        if words is None:
            words = self._words[text] = set(text.split())
        return words

    def _is_any(self, texts: Set[str], needle: Needle) -> bool:
        if needle.trace is None:
            return needle.text in texts
        grounds = (self._ground(text) for text in texts)
        return any(g is not None and g.is_whole(needle.trace) for g in grounds)

    def _ground(self, text: str) -> Ground | None:
        if self._tracer is None:
            return None
        ground = self._grounds.get(text)
        if ground is None:
            ground = self._grounds[text] = self._tracer.ground(text)
        return ground


def hay_of(
    request: ParsedRequest,
    *,
    first: bytes,
    tracer: Tracer | None = None,
    is_condenser: bool = False,
) -> Hay:
    """The texts of a prompt's user and assistant messages, and the hash of its first one.

    Some condensers tell the history in their system prompt: that is a text of theirs, too. Costly:
    for prompts that continue nothing known only.
    """
    blocks: list[tuple[str, str]] = []
    size = 0
    messages = list(request.messages)
    roles = _SPEAKERS
    if is_condenser:
        roles = _TELLERS
        if request.system is not None:
            messages.insert(0, msgspec.Raw(b'{"role":"system","content":' + request.system + b"}"))
    for raw in messages:
        if size > _HAY_MAX:
            break
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            continue
        for role, text in _texts(value, roles):
            blocks.append((role, text))
            size += len(text)
    return Hay(blocks, first=first.hex(), tracer=tracer)


def _texts(value: object, roles: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield "user", value
    if not isinstance(value, dict):
        return
    role = roles.get(str(value.get("role", "")), "")
    if not role:
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


def title_of(hay: Hay) -> str:
    """The user's words inside a title call, which clients wrap in a tag or a question."""
    asked = _ENTITLED.match(hay.last_user)
    text = _NO_THOUGHT.sub("", asked[1]).rstrip() if asked else hay.last_user
    match = _WRAPPED.match(text)
    return (match[2] if match else text).strip(_QUOTES)[:_TEXT_MAX]


def quote_of(text: str) -> str:
    """The beginning of what was said, as a condenser tells it; empty where it is too short."""
    text = text.strip()[:_TEXT_MAX].strip()
    return text if len(text) >= _QUOTE_MIN else ""


def heard_of(request: ParsedRequest) -> list[str]:
    """The beginnings of the tools' results that a prompt ends with."""
    found: list[str] = []
    for raw in reversed(request.messages[-_RESULTS_MAX:]):
        if len(raw) > _RESULT_BYTES_MAX:
            continue  # an image, or more than is worth the time
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            break
        texts = list(_results(value)) if isinstance(value, dict) else []
        if not texts:
            break
        found.extend(filter(None, map(quote_of, texts)))
    return found[:_RESULTS_MAX]


def _results(item: dict[str, Any]) -> Iterable[str]:
    """The texts of the tools' results in one message, in any dialect."""
    if item.get("role") == "tool":
        yield _joined(item.get("content"))
    elif item.get("type") == "function_call_output":
        yield _joined(item.get("output"))
    elif item.get("role") == "user" and isinstance(item.get("content"), list):
        for block in item["content"]:
            if isinstance(block, dict) and block.get("type") == "tool_result":
                yield _joined(block.get("content"))


def _joined(content: object) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else ()
    texts = (block.get("text") for block in blocks if isinstance(block, dict))
    return "".join(text for text in texts if isinstance(text, str))


def _longest_line(text: str, *, least: int) -> str:
    line = max((line.strip() for line in text[:_HAY_MAX].splitlines()), key=len, default="")
    line = line[:_TEXT_MAX]
    return line if len(line) >= least else ""
