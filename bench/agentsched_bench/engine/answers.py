"""What the embedded engine says: a scripted answer, or words that depend only on seed and prompt.

The engine is no language model, so the whole answer is known before the first step; the engine
model then decides when each of its tokens comes.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import xxhash

from agentsched_bench.engine import tokenizer
from agentsched_bench.engine.ask import Ask, Dialect, Tool
from agentsched_bench.engine.playback import ScriptedAnswer, ScriptedCall
from agentsched_bench.engine.tokenizer import ASCII_BYTES

#: Words of three letters and a blank: each is one token, wherever the answer is sent back.
_WORDS: Final = (
    "the and for you not are but can all has one out get use new now see way may day put let "
    "set run add end try how two who its did yes say her him old any low big far own due top "
    "bit few job key log map net raw row tab tag bug fix git api cpu ram url csv sql xml pip "
)
_FILLER: Final = tuple(_WORDS[at : at + ASCII_BYTES] for at in range(0, len(_WORDS), ASCII_BYTES))
assert all(word[:3].isalpha() and word[3:] == " " for word in _FILLER)

#: The shortest natural answer and how much longer it may be, in tokens.
_NATURAL_MIN: Final = 24
_NATURAL_SPREAD: Final = 96
#: How deep and how wide arguments are made up from a tool's schema.
_SCHEMA_DEPTH_MAX: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStart:
    """A tool call whose name is known now."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token and what a client sees of it: some text, a call's start, a piece of arguments."""

    id: int
    text: str = ""
    start: CallStart | None = None
    arguments: str = ""
    #: Which call `arguments` belongs to.
    call: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A finished tool call."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All that will be said; `finish` is `stop`, `length` or `tool_calls`."""

    tokens: tuple[Token, ...]
    finish: str
    stop_reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls that were begun; the arguments of the last may be cut short."""
        begun = [token.start for token in self.tokens if token.start is not None]
        return tuple(
            Call(
                id=start.id,
                name=start.name,
                arguments="".join(
                    token.arguments
                    for token in self.tokens
                    if token.arguments and token.call == start.index
                ),
            )
            for start in begun
        )


def compose(
    ask: Ask, *, key: str, room: int, seed: int, scripted: ScriptedAnswer | None = None
) -> Answer:
    """The answer to `ask`, of at most `room` tokens.

    `key` makes the ids of tool calls unique. With `ignore_eos` the answer has exactly `max_tokens`
    tokens (or all there is room for), as with vLLM.
    """
    limit = room if ask.max_tokens is None else min(room, ask.max_tokens)
    assert limit > 0
    rng = _dice(ask, seed)
    if scripted is None:
        scripted = _made_up(ask, rng)
    calls = scripted.tool_calls if ask.tools and ask.tool_choice != "none" else ()
    text = scripted.text
    least = limit if ask.ignore_eos else min(ask.min_tokens, limit)
    text = _lengthened(text, calls, least=least, rng=rng)
    text, stopped = _stopped(text, ask.stop)
    tokens = [Token(id=i, text=t) for i, t in _pairs(text)]
    if stopped is None:
        tokens += _call_tokens(calls, key=key)
        if not ask.ignore_eos:
            tokens.append(Token(id=tokenizer.END))
    finish = "tool_calls" if calls and stopped is None else "stop"
    if scripted.finish == "length" and stopped is None:
        finish = "length"
        tokens = tokens[:-1] if tokens[-1].id == tokenizer.END and len(tokens) > 1 else tokens
    if len(tokens) > limit or (ask.ignore_eos and stopped is None):
        return Answer(tokens=tuple(tokens[:limit]), finish="length")
    if not tokens:
        tokens = [Token(id=tokenizer.END)]
    return Answer(tokens=tuple(tokens), finish=finish, stop_reason=stopped)


def embedding(ids: Sequence[int], *, dimensions: int) -> list[float]:
    """A unit vector that depends only on the tokens."""
    rng = random.Random(_digest(ids, 0))
    values = [rng.gauss(0.0, 1.0) for _ in range(dimensions)]
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


def _digest(ids: Sequence[int], seed: int) -> int:
    return xxhash.xxh3_64_intdigest(array("Q", ids).tobytes(), seed=seed & (1 << 64) - 1)


def _dice(ask: Ask, seed: int) -> random.Random:
    return random.Random(_digest(ask.prompt, seed ^ (ask.seed << 1)))


def _filler(rng: random.Random) -> Iterator[str]:
    while True:
        yield _FILLER[rng.randrange(len(_FILLER))]


def _made_up(ask: Ask, rng: random.Random) -> ScriptedAnswer:
    named = next((tool for tool in ask.tools if tool.name == ask.tool_choice), None)
    if ask.tools and (named is not None or ask.tool_choice == "required"):
        tool = named or ask.tools[0]
        return ScriptedAnswer(tool_calls=(_made_up_call(tool),))
    if ask.dialect is Dialect.EMBEDDING:
        return ScriptedAnswer()
    words = _filler(rng)
    count = _NATURAL_MIN + rng.randrange(_NATURAL_SPREAD)
    return ScriptedAnswer(text="".join(next(words) for _ in range(count - 1)).rstrip())


def _made_up_call(tool: Tool) -> ScriptedCall:
    made = _sample(tool.parameters, depth=0)
    return ScriptedCall(name=tool.name, arguments=made if isinstance(made, dict) else {})


def _sample(schema: Any, *, depth: int) -> Any:
    """The simplest value that a JSON schema's required parts ask for."""
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH_MAX:
        return "value"
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or (kind is None and "properties" in schema):
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        names = schema.get("required")
        listed = names if isinstance(names, list) else []
        wanted = [name for name in listed if isinstance(name, str)]
        return {name: _sample(known.get(name), depth=depth + 1) for name in wanted}
    simple: dict[Any, Any] = {
        "array": [],
        "integer": 1,
        "number": 1.0,
        "boolean": True,
        "null": None,
    }
    return simple.get(kind, "value") if isinstance(kind, str) else "value"


def _lengthened(text: str, calls: Sequence[ScriptedCall], *, least: int, rng: random.Random) -> str:
    """`text`, with words added until the answer (without its end) has `least` tokens."""
    have = len(tokenizer.encode(text)) + len(_call_tokens(calls, key=""))
    if have >= least:
        return text
    # Blanks up to a token's border, so that added words are one token each.
    text += " " * (-len(text) % ASCII_BYTES) if text.isascii() else ""
    words = _filler(rng)
    return text + "".join(next(words) for _ in range(least - have))


def _stopped(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """`text` up to the first stop string, and which it was."""
    found = [(text.index(word), word) for word in stop if word in text]
    if not found:
        return text, None
    position, word = min(found, key=lambda pair: (pair[0], stop.index(pair[1])))
    return text[:position], word


def _pairs(text: str) -> Iterator[tuple[int, str]]:
    ids = tokenizer.encode(text)
    return zip(ids, tokenizer.pieces(ids), strict=True)


def _call_tokens(calls: Sequence[ScriptedCall], *, key: str) -> list[Token]:
    """The tokens of tool calls, exactly as the chat template renders them later."""
    tokens: list[Token] = []
    for index, call in enumerate(calls):
        start = CallStart(index=index, id=f"chatcmpl-tool-{key}{index:02}", name=call.name)
        tokens.append(Token(id=tokenizer.CALL))
        tokens += [Token(id=token) for token in tokenizer.encode(call.name)]
        tokens.append(Token(id=tokenizer.MIDDLE, start=start))
        tokens += [Token(id=i, arguments=t, call=index) for i, t in _pairs(call.text())]
    return tokens


def arguments_object(text: str) -> dict[str, Any]:
    """A call's arguments as an object; empty when they were cut short or are none."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
