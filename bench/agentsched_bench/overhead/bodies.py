"""Conversations as agents send them, made so that every arm is sent the very same bytes.

A program is a system prompt, a task and then pairs of an assistant's tool call and the tool's
result. Its answers are not made up here: they are what the upstream of this benchmark says to the
seed in the request (see `answers`), so that each request goes on from answers that were returned.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import msgspec

from agentsched_bench.overhead.answers import MODEL, answer

#: Steps that one program may have; a seed names a program and a step.
STEPS_MAX: Final = 1_000
_POOL_CHARS: Final = 1 << 20
_ASSISTANT_BYTES: Final = 330
_WORDS: Final = (
    "def self return import assert value index buffer request error path None True class for in"
    " if else with open read write line token test fixture result config option parse encode"
    " decode branch commit merge module package version status update handler queue timer"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyShape:
    """How large requests are: `body_bytes` at `messages` messages, the mean of what is measured.

    A program is measured for `turns` requests, each two messages longer than the one before; the
    request before these opens the program and is not measured.
    """

    name: str
    body_bytes: int
    messages: int
    turns: int

    def messages_at(self, turn: int) -> int:
        """Messages in a request; turn 0 opens, turns 1 to `turns` are measured."""
        return self.messages - self.turns - 1 + 2 * turn


SHAPES: Final = {
    "8KB": BodyShape(name="8KB", body_bytes=8 << 10, messages=8, turns=3),
    "130KB": BodyShape(name="130KB", body_bytes=130 << 10, messages=40, turns=7),
}


class Script:
    """All that one program will say. `number` is unlike any other program's in the whole run."""

    def __init__(self, shape: BodyShape, *, number: int, text: TextPool) -> None:
        self._number = number
        self._text = text
        # A third of a short prompt and a tenth of a long one are the agent's own words.
        system = min(12 << 10, shape.body_bytes // 6)
        pairs = shape.messages // 2 - 1
        room = shape.body_bytes - system - len(_TOOLS) - pairs * _ASSISTANT_BYTES
        self._piece = max(64, room // (pairs + 1))
        self._messages = [
            _encode({"role": "system", "content": text.shared(system)}),
            _encode({"role": "user", "content": self._say(0)}),
        ]

    def body(self, messages: int, *, is_stream: bool) -> tuple[int, bytes]:
        """The request with so many messages (an even number), and its seed."""
        while len(self._messages) < messages:
            self._extend()
        seed = self._seed(messages // 2 - 1)
        head = b'{"model":"%s","messages":[' % MODEL.encode()
        tail = b'],"tools":%s,"max_tokens":1024,"temperature":0.2,"seed":%d' % (_TOOLS, seed)
        stream = b',"stream":true,"stream_options":{"include_usage":true}}' if is_stream else b"}"
        return seed, b"".join((head, b",".join(self._messages[:messages]), tail, stream))

    def _seed(self, step: int) -> int:
        assert step < STEPS_MAX
        return self._number * STEPS_MAX + step

    def _say(self, step: int) -> str:
        seed = self._seed(step)
        return f"[{seed}]\n{self._text.piece(seed, self._piece)}"

    def _extend(self) -> None:
        step = len(self._messages) // 2
        said = answer(self._seed(step - 1))
        self._messages.append(_encode(said.message))
        result = {"role": "tool", "tool_call_id": said.call, "content": self._say(step)}
        self._messages.append(_encode(result))


class TextPool:
    """Text that looks like code, cut out of one pool so that gigabytes of it cost nothing."""

    def __init__(self, seed: int) -> None:
        drawn = random.Random(seed)
        words = _WORDS.split()
        parts: list[str] = []
        size = 0
        while size < _POOL_CHARS:
            line = " ".join(drawn.choices(words, k=drawn.randint(3, 14)))
            parts.append(f'    {line} "{drawn.getrandbits(32):08x}"')
            size += len(parts[-1]) + 1
        self._pool = "\n".join(parts)
        # What stands for one character in the pool takes this many bytes in JSON.
        self._growth = len(msgspec.json.encode(self._pool)) / len(self._pool)

    def shared(self, size: int) -> str:
        """The text with which all programs begin; `size` in bytes of JSON."""
        return self._pool[: int(size / self._growth)]

    def piece(self, seed: int, size: int) -> str:
        """A text of `size` bytes of JSON that depends on `seed`."""
        length = int(size / self._growth)
        start = seed * 7_919 % (len(self._pool) - length)
        return self._pool[start : start + length]


def _encode(message: object) -> bytes:
    return msgspec.json.encode(message)


def _tool(name: str, about: str, *arguments: str) -> dict[str, object]:
    properties = {a: {"type": "string", "description": f"the {a} to use"} for a in arguments}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


_TOOLS: Final = _encode(
    [
        _tool("bash", "Run a command in the repository and return what it prints.", "command"),
        _tool("edit", "Replace one passage of a file.", "path", "old", "new"),
        _tool("search", "Search the repository for a pattern.", "pattern", "path"),
    ]
)
