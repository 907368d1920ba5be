"""Where a JSON object's fields lie in its bytes: the ground on which requests are spliced.

The decoder that reads a body says how long each value is (`msgspec.Raw`), so the walk goes from
value to value without looking into them: between two values of valid JSON there are only a comma,
white space and a key. Each value is compared with the bytes where it should lie, which makes the
walk sound: an object with a key given twice, whose first value the decoder forgot, never passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

_OPEN: Final = re.compile(rb"[ \t\r\n]*\{")
# The next key up to its value, or the closing brace; the decoder has seen that commas are right.
_STEP: Final = re.compile(
    rb'[ \t\r\n,]*(?:"([^"\\]*(?:\\.[^"\\]*)*)"[ \t\r\n]*:[ \t\r\n]*|(\}))', re.DOTALL
)
_ARRAY_OPEN: Final = re.compile(rb"\[[ \t\r\n]*")
_COMMA: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_ARRAY_CLOSE: Final = re.compile(rb"[ \t\r\n]*\]")


class Span(NamedTuple):
    """One field: its key's quote is at `start`, its value from `value` to `end`."""

    name: str
    start: int
    value: int
    end: int


class SpanMismatch(Exception):
    """The bytes do not hold exactly these fields, each once. `name` is the field at fault."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def walk(body: bytes, end_of: Callable[[str, int], int]) -> list[Span]:
    """The top-level fields of a valid JSON object, in order.

    `end_of(name, position)` says where the value of `name` ends that begins at `position`, or -1
    where the value that is known by that name does not lie there.

    Raises:
        SpanMismatch: a key occurs twice, or `end_of` did not know a value.
    """
    opening = _OPEN.match(body)
    if opening is None:
        raise SpanMismatch("")
    position = opening.end()
    spans: list[Span] = []
    seen: set[str] = set()
    while True:
        step = _STEP.match(body, position)
        if step is None:
            raise SpanMismatch("")
        if step[2] is not None:
            return spans
        name = _key(step[1])
        start = step.start(1) - 1
        value = step.end()
        position = end_of(name, value)
        if name in seen or position < 0:
            raise SpanMismatch(name)
        seen.add(name)
        spans.append(Span(name, start, value, position))


def walk_fields(body: bytes, fields: Mapping[str, msgspec.Raw]) -> list[Span]:
    """The spans of `fields`, which a decoder read from `body`.

    Raises:
        SpanMismatch: a key occurs twice in `body`.
    """

    def end_of(name: str, position: int) -> int:
        raw = fields.get(name)
        if raw is None or not body.startswith(raw, position):
            return -1
        return position + len(raw)

    return walk(body, end_of)


def array_end(body: bytes, items: Sequence[msgspec.Raw], start: int) -> int | None:
    """Where the array of `items` ends that begins at `start`; None where that cannot be told.

    It can be told where all items are set apart in the same way, as every serialiser does.
    """
    opening = _ARRAY_OPEN.match(body, start)
    if opening is None:
        return None
    position = opening.end()
    if items:
        between = b","
        if len(items) > 1:
            comma = _COMMA.match(body, position + len(items[0]))
            if comma is None:
                return None
            between = comma[0]
        inner = between.join(items)
        if not body.startswith(inner, position):
            return None
        position += len(inner)
    closing = _ARRAY_CLOSE.match(body, position)
    return None if closing is None else closing.end()


def _key(raw: bytes) -> str:
    if b"\\" in raw:
        return msgspec.json.decode(b'"' + raw + b'"', type=str)
    return raw.decode()
