"""Tool-call ids that some engines give twice (`call_1`), made unique on their way to the client.

Every id in an answer gets a suffix that names the turn (`call_1-s0123456789ab`); in later requests
the suffix is cut off again, so the engine sees its own ids and no table is needed. Only the ids'
bytes change. Ids stand at known places; what a model wrote, such as a call's arguments, is never
looked into.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from agentsched.proxy.answer import Answer
from agentsched.proxy.request import Dialect

#: How much of a turn's name goes into a suffix: 48 bits do not meet again within a conversation.
_NAME_CHARS: Final = 12
#: Some clients keep only letters, digits, `-` and `_` of an id. Older versions put a `~` there.
_SUFFIX: Final = re.compile(rb'[-~]s[0-9a-f]{12}(?=")')

#: A place in a document: keys from the top down, None for any item of a list.
_Place = tuple[bytes | None, ...]

_ANSWERS: Final[Mapping[Dialect, frozenset[_Place]]] = {
    Dialect.CHAT: frozenset(
        {
            (b"choices", None, b"delta", b"tool_calls", None, b"id"),
            (b"choices", None, b"message", b"tool_calls", None, b"id"),
        }
    ),
    Dialect.MESSAGES: frozenset({(b"content_block", b"id"), (b"content", None, b"id")}),
    Dialect.RESPONSES: frozenset(
        {
            (b"item", b"call_id"),
            (b"output", None, b"call_id"),
            (b"response", b"output", None, b"call_id"),
        }
    ),
}
_REQUESTS: Final[Mapping[Dialect, frozenset[_Place]]] = {
    Dialect.CHAT: frozenset(
        {
            (b"messages", None, b"tool_call_id"),
            (b"messages", None, b"tool_calls", None, b"id"),
        }
    ),
    Dialect.MESSAGES: frozenset(
        {
            (b"messages", None, b"content", None, b"id"),
            (b"messages", None, b"content", None, b"tool_use_id"),
        }
    ),
    Dialect.RESPONSES: frozenset({(b"input", None, b"call_id")}),
}
#: The last keys of all those places: a quick look that spares most values the long one.
_LAST_KEYS: Final = frozenset({b"id", b"call_id", b"tool_call_id", b"tool_use_id"})

_TOKEN: Final = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"|[{}\[\],:]', re.DOTALL)
_LINE: Final = re.compile(rb"[^\r\n]+")


def cut(dialect: Dialect, body: bytes) -> bytes:
    """A request's body with the engine's own ids; the very same bytes where no id has a suffix."""
    places = _REQUESTS.get(dialect)
    if places is None or _SUFFIX.search(body) is None:
        return body
    pieces: list[bytes] = []
    end = 0
    for start, stop in _strings_at(body, places):
        suffix = _SUFFIX.search(body, max(start, stop - _NAME_CHARS - 2), stop + 1)
        if suffix is not None and suffix.start() > start:
            pieces.append(body[end : suffix.start()])
            end = stop
    return b"".join((*pieces, body[end:])) if pieces else body


class CallIdMarker:
    """Marks the ids of one turn's answer. Where it is not on, everything passes as it is."""

    def __init__(self, dialect: Dialect, turn: str, *, is_on: bool = True) -> None:
        """`turn` is lower-case hexadecimal, unlike that of any other turn."""
        self._dialect = dialect
        self._places = _ANSWERS.get(dialect) if is_on else None
        self._suffix = f"-s{turn[:_NAME_CHARS]:0<{_NAME_CHARS}}"

    def request(self, body: bytes) -> bytes:
        """The turn's request with the engine's own ids."""
        return body if self._places is None else cut(self._dialect, body)

    def whole(self, body: bytes) -> bytes:
        """A body with its ids marked."""
        if self._places is None:
            return body
        suffix = self._suffix.encode()
        pieces: list[bytes] = []
        end = 0
        for start, stop in _strings_at(body, self._places):
            if stop > start:
                pieces += (body[end:stop], suffix)
                end = stop
        return b"".join((*pieces, body[end:])) if pieces else body

    def events(self, data: bytes) -> bytes:
        """Whole events of a stream, with their ids marked."""
        if self._places is None or b"id" not in data:
            return data
        return _LINE.sub(self._line, data)

    def answer(self, answer: Answer) -> Answer:
        """What was read of an answer, as its client got it."""
        if self._places is None or not answer.calls:
            return answer
        calls = tuple(
            replace(call, call_id=call.call_id + self._suffix) if call.call_id else call
            for call in answer.calls
        )
        return replace(answer, calls=calls)

    def _line(self, line: re.Match[bytes]) -> bytes:
        return self.whole(line[0]) if line[0].startswith(b"data:") else line[0]


def _strings_at(data: bytes, places: frozenset[_Place]) -> Iterator[tuple[int, int]]:
    """Where the strings at these places lie, quotes left out. What is no JSON gives what it may."""
    path: list[bytes | None] = []
    is_value = False
    for token in _TOKEN.finditer(data):
        text = token[1]
        if text is not None:
            if path and path[-1] is not None and not is_value:
                path[-1] = text
            elif path and path[-1] in _LAST_KEYS and tuple(path) in places:
                yield token.span(1)
            continue
        mark = token[0]
        is_value = mark == b":"
        if mark == b"{":
            path.append(b"")
        elif mark == b"[":
            path.append(None)
        elif mark in (b"}", b"]") and path:
            path.pop()
