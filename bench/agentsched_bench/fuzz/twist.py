"""Requests that are nearly right: a good one of each dialect, twisted a few times.

All chance comes from the generator that is handed in, so a request can be made again.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

#: Of a long list: half a gigabyte says no more.
_LIST_BYTES_MAX: Final = 8 << 20
_ENCODINGS: Final = ("gzip", "deflate", "br", "zstd", "identity", "x", "gzip, gzip", "")


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that go into the JSON as they are, valid or not."""

    text: bytes


@dataclass(slots=True)
class Obj:
    """An object whose keys may come twice."""

    pairs: list[tuple[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Twisted:
    """One request: where it goes and what it says."""

    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def wire(self, *, script: str = "") -> bytes:
        """The request's bytes; it asks for the connection to be closed after the answer."""
        lines = [b"POST %b HTTP/1.1" % self.path.encode(), b"Host: h", b"Connection: close"]
        lines += [b"%b: %b" % pair for pair in self.headers]
        if script:
            lines.append(b"x-fuzz: %b" % script.encode())
        lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


_TOOLS: Final = [{"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}]
_TURNS: Final = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "list the files"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "a.txt"},
]
GOOD: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {
        "model": "sim",
        "messages": _TURNS,
        "tools": _TOOLS,
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "metadata": {"user_id": "u", "session_id": "s"},
    },
    "/v1/completions": {"model": "sim", "prompt": "once upon a time", "max_tokens": 3},
    "/v1/responses": {
        "model": "sim",
        "instructions": "be brief",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "list the files"}]},
            {"type": "function_call", "call_id": "call_1", "name": "ls", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "a.txt"},
        ],
        "max_output_tokens": 3,
        "stream": False,
        "previous_response_id": "resp_1",
        "tools": [{"type": "function", "name": "ls", "parameters": {"type": "object"}}],
    },
    "/v1/messages": {
        "model": "sim",
        "max_tokens": 3,
        "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "list the files"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_1", "name": "ls", "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a"}],
            },
        ],
        "tools": [{"name": "ls", "input_schema": {"type": "object"}}],
        "metadata": {"user_id": "user_a_session_0123-4567"},
    },
    "/v1/messages/count_tokens": {
        "model": "sim",
        "messages": [{"role": "user", "content": "list the files"}],
    },
    "/v1/embeddings": {"model": "sim", "input": ["a", "b"]},
    "/tokenize": {"model": "sim", "prompt": "once upon a time"},
}

_FIELDS: Final[dict[str, Sequence[str]]] = {
    "agentsched": [
        "program",
        "conversation",
        "parent",
        "agent",
        "step",
        "final",
        "class",
        "deadline",
        "priority",
        "output_tokens",
        "ttl",
        "resume",
    ],
    "nvext": ("agent_hints", "agent_context", "session_control", "cache_control", "use_raw"),
    "vllm_xargs": ("agentic_context", "session_id", "priority"),
    "metadata": ("user_id", "session_id"),
    "client_metadata": ("thread_id", "session_id"),
    "extra_body": ("program_id", "job_id", "is_last_step"),
    "session_params": ("session_id",),
    "stream_options": ("include_usage", "continuous_usage_stats"),
    "conversation": ("id",),
    "program_id": (),
    "job_id": (),
    "is_last_step": (),
    "session_id": (),
    "previous_response_id": (),
    "prompt_cache_key": (),
    "priority": (),
    "tools": ("name", "function", "type"),
    "stream": (),
    "n": (),
    "user": (),
    "max_tokens": (),
    "response_format": ("type",),
    "store": (),
    "background": (),
}
_INNER: Final = [
    "program_id",
    "task_id",
    "root_program_id",
    "parent_program_id",
    "agent_id",
    "session_id",
    "agent_role",
    "priority",
    "deadline_seconds",
    "expected_output_length",
    "kv_retention_ttl_seconds",
    "expected_resume",
    "step_id",
    "trajectory_id",
    "parent_trajectory_id",
    "trajectory_final",
    "session_type_id",
    "prefix_id",
    "osl",
    "iat",
    "ttl",
    "timeout",
    "action",
]
_HEADERS: Final = [
    "x-agentsched-program",
    "x-agentsched-conversation",
    "x-agentsched-parent",
    "x-agentsched-agent",
    "x-agentsched-step",
    "x-agentsched-final",
    "x-agentsched-class",
    "x-agentsched-deadline",
    "x-agentsched-priority",
    "x-agentsched-output-tokens",
    "x-agentsched-ttl",
    "x-agentsched-resume",
    "x-agentsched-tenant",
    "x-dynamo-session-id",
    "x-dynamo-parent-session-id",
    "x-dynamo-session-final",
    "x-claude-code-session-id",
    "x-claude-code-agent-id",
    "x-claude-code-parent-agent-id",
    "x-claude-code-prev-tool-durations",
    "x-claude-code-request-class",
    "thread-id",
    "session-id",
    "session_id",
    "conversation_id",
    "x-codex-parent-thread-id",
    "x-openai-subagent",
    "x-codex-turn-metadata",
    "x-session-affinity",
    "x-session-id",
    "x-parent-session-id",
    "x-litellm-session-id",
    "x-title",
    "x-request-id",
    "x-correlation-id",
    "x-stainless-retry-count",
    "authorization",
    "x-api-key",
    "accept",
    "accept-encoding",
    "content-type",
    "content-encoding",
    "traceparent",
    "x-forwarded-for",
    "expect",
    "te",
    "upgrade",
    "cookie",
    "connection",
]

_VALUES: Final = (
    b"",
    b"a",
    b"b",
    b"a/b",
    b"a#b",
    b"main",
    b"true",
    b"1",
    b"{}",
    b"gzip",
    b"1970-01",
    b'{"request_kind":"compaction"}',
    b"Bash=3;x=y;=;==1",
    b"close, x-api-key",
    b"p~1",
)

_SHORT: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    "",
    " ",
    "x",
    0,
    -1,
    1,
    2.5,
    [],
    [None],
    [[]],
    "sim",
    "yes",
    "null",
    Obj([]),
    Obj([("", "")]),
    Obj([("a", 1), ("a", 2)]),
    Obj([("type", "text")]),
    "\x00",
    "\r\nx-injected: 1",
    "a/b",
    "../..",
    "a#b",
    "%2F%0d%0a",
    "\u202e\u2028",
    "é" * 40,
    "\U0001f600",
    "{}",
    "[",
    '"',
    "system",
    "tool",
    "assistant",
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**70),
    10**400,
    Literal(b"1e400"),
    Literal(b"-1e-400"),
    Literal(b"NaN"),
    Literal(b"-Infinity"),
    Literal(b'"\\ud800"'),
    Literal(b'"\\udfff\\ud800"'),
    Literal(b'"\xff\xfe"'),
    Literal(b"'a'"),
    Literal(b"01"),
    Literal(b"+1"),
    Literal(b'"\\x"'),
    Literal(b'"\n"'),
    Literal(b"tru"),
    Literal(b'"\\u0000\\r\\n"'),
    Literal(b"1" * 5_000),
    Literal(b"0." + b"1" * 5_000),
    Literal(b'"\xed\xa0\x80"'),
    Literal(b"/**/1"),
    Literal(b""),
    Literal(b"{} {}"),
)


class Twister:
    """Makes requests from `dice`: `twists_max` things wrong with each, none with 0.

    `is_large` allows those of a megabyte and more.
    """

    def __init__(self, dice: random.Random, *, is_large: bool = True, twists_max: int = 4) -> None:
        self._dice = dice
        self._twists_max = twists_max
        self._is_large = is_large

    def request(self, path: str) -> Twisted:
        """A request to this path; further headers and broken bytes may come on top."""
        body = _tree(copy.deepcopy(GOOD[path]))
        if not self._twists_max:
            return Twisted(path=path, headers=(), body=render(body))
        for _ in range(self._dice.randrange(self._twists_max + 1)):
            self._twist(body)
        headers = [(b"Content-Type", b"application/json")] if self._dice.randrange(8) else []
        for _ in range(self._dice.choice((0, 0, 0, 1, 1, 2, 4))):
            headers.append(self.header())
        raw = render(body)
        if not self._dice.randrange(6):
            raw, more = self._garble(raw)
            headers += more
        return Twisted(path=path, headers=tuple(headers), body=raw)

    def header(self) -> tuple[bytes, bytes]:
        """A header that we read or pass on, with a value of any kind but control characters."""
        name = self._dice.choice(_HEADERS)
        kind = self._dice.randrange(8)
        if kind == 0:
            value = self._dice.randbytes(self._dice.randrange(40))
        elif kind == 1:
            value = self._dice.choice((b"x", b"\xff", b"%0d", b"a=1;")) * self._dice.randrange(
                2_000
            )
        elif kind == 2:
            value = b"\xc3\xa9\xe2\x80\xa8 caf\xc3\xa9"
        elif kind == 3:
            value = self._dice.choice((b"-1", b"1e400", b"nan", b"inf", b"9" * 400, b"0x1", b"1_0"))
        else:
            value = self._dice.choice(_VALUES)
        return name.encode(), bytes(b for b in value if b >= 32 and b != 127)

    def value(self, depth: int = 0) -> Any:
        """Any JSON value, and some that are none."""
        kind = self._dice.randrange(24)
        if kind == 0:
            return self._nested()
        if kind == 1:
            size = 1 << self._dice.randrange(21 if self._is_large else 14)
            return self._dice.choice(("a", "é", "\x01", "/", "\U0001f600")) * size
        if kind == 2:
            size = self._dice.choice((100, 100_000) if self._is_large else (100, 1_000))
            one = self._dice.choice(_SHORT)
            size = min(size, _LIST_BYTES_MAX // (1 + len(render(one))))
            # Each on its own: a twist of one that all share would be as large as all of them.
            return [copy.deepcopy(one) for _ in range(size)]
        if kind == 3 and depth < 4:
            names = [self._dice.choice(_INNER) for _ in range(self._dice.randrange(5))]
            return Obj([(name, self.value(depth + 1)) for name in names])
        if kind == 4 and depth < 4:
            return [self.value(depth + 1) for _ in range(self._dice.randrange(4))]
        if kind == 5:
            good = GOOD[self._dice.choice(list(GOOD))]
            return _tree(copy.deepcopy(good[self._dice.choice(list(good))]))
        return copy.deepcopy(self._dice.choice(_SHORT))

    def _nested(self) -> Literal:
        most = 10_000 if self._is_large else 2_000
        depth = self._dice.choice((3, 60, 120, 500, 990, 1_100, most))
        start, end = self._dice.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"content":', b"}]")))
        return Literal(start * depth + b"1" + end * (depth - self._dice.randrange(2)))

    def _twist(self, body: Obj) -> None:
        kind = self._dice.randrange(6)
        if kind == 0:
            name = self._dice.choice(list(_FIELDS))
            body.pairs.append((name, self._field(name)))
            return
        places = _places(body)
        if not places:
            return
        holder, place = self._dice.choice(places)
        if kind == 1:
            del _items(holder)[place]
        elif kind == 2:
            _items(holder).append(copy.deepcopy(_items(holder)[place]))
        elif kind == 3 and isinstance(holder, Obj):
            key = self._dice.choice(("", "a" * 1_000, "é", "\x00", "model", Literal(b'"\\u006d"')))
            holder.pairs[place] = (key, holder.pairs[place][1])
        elif isinstance(holder, Obj):
            holder.pairs[place] = (holder.pairs[place][0], self.value())
        else:
            holder[place] = self.value()

    def _field(self, name: str) -> Any:
        inner = _FIELDS[name]
        if not inner or not self._dice.randrange(4):
            return self.value()
        names = [self._dice.choice(inner) for _ in range(1 + self._dice.randrange(3))]
        return Obj([(key, self.value()) for key in names])

    def _garble(self, raw: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        dice = self._dice
        cut = dice.randrange(len(raw)) if raw else 0
        match dice.randrange(9):
            case 0:
                return raw[:cut], []
            case 1:
                return b"\xef\xbb\xbf" + raw, []
            case 2:
                return raw[:cut] + dice.randbytes(1 + dice.randrange(8)) + raw[cut:], []
            case 3:
                return raw + dice.choice((b"x", b"\x00", b"{}", b"\n\n", b",")), []
            case 4:
                return dice.randbytes(dice.randrange(300)), []
            case 5:
                text = raw.decode("utf-8", "replace")
                return text.encode(dice.choice(("utf-16", "utf-32", "latin-1")), "replace"), []
            case 6:
                return self._packed(raw)
            case 7:
                return dice.choice((b"", b"null", b"[]", b'"a"', b"1", b"{", b"[" * 100_000)), []
            case _:
                return bytes(raw[:cut] + raw[cut + 1 :]), []

    def _packed(self, raw: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        dice = self._dice
        packed = dice.choice((gzip.compress(raw), zlib.compress(raw), raw))
        if self._is_large and not dice.randrange(8):
            packed = _bomb()
        if not dice.randrange(3):
            packed = packed[: dice.randrange(len(packed) + 1)]
        return packed, [(b"Content-Encoding", dice.choice(_ENCODINGS).encode())]


@functools.cache
def _bomb() -> bytes:
    """64 MiB in 64 KiB."""
    return gzip.compress(b" " * (64 << 20), 9)


def render(value: Any) -> bytes:
    """The JSON of a tree, as wrong as the tree is."""
    match value:
        case Literal():
            return value.text
        case Obj():
            return b"{%b}" % b",".join(
                b"%b:%b" % (render(key), render(inner)) for key, inner in value.pairs
            )
        case list():
            return b"[%b]" % b",".join(render(inner) for inner in value)
        case int() if not isinstance(value, bool) and abs(value) > 2**64:
            return b"%d" % value
        case _:
            return json.dumps(value).encode()


def _tree(value: Any) -> Any:
    if isinstance(value, dict):
        return Obj([(key, _tree(inner)) for key, inner in value.items()])
    if isinstance(value, list):
        return [_tree(inner) for inner in value]
    return value


def _items(holder: Obj | list[Any]) -> list[Any]:
    return holder.pairs if isinstance(holder, Obj) else holder


def _places(value: Any) -> list[tuple[Any, int]]:
    """All places in a tree where a value stands."""
    found: list[tuple[Any, int]] = []
    todo = [value]
    while todo:
        holder = todo.pop()
        if isinstance(holder, Obj):
            found += [(holder, at) for at in range(len(holder.pairs))]
            todo += [inner for _, inner in holder.pairs]
        elif isinstance(holder, list) and len(holder) <= 64:
            found += [(holder, at) for at in range(len(holder))]
            todo += holder
    return found
