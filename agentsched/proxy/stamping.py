"""The engine's fingerprint for clients that did not ask for usage.

vLLM puts `system_fingerprint` on the last chunk of a stream: the usage chunk where that was asked
for, else the one that ends the answer. We ask for usage and hide it, so what stood there is put
where the client would have found it. The chunk that ends the answer waits for the data after it,
which engines send in the same breath; comments and blank lines wait with it.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_FIELD: Final = b'"system_fingerprint"'
_ENDS: Final = (b'"finish_reason":"', b'"finish_reason": "')
#: Two line ends. Atomic groups, lest a CRLF be taken for two of them.
BLANK_LINE: Final = re.compile(rb"(?>\r\n?|\n)(?>\r\n?|\n)")
_DATA_LINE: Final = re.compile(rb"(?:\A|[\r\n])data")


class Stamp:
    """Follows what is relayed of one stream: whole events, in order."""

    __slots__ = ("_held", "_is_done")

    def __init__(self) -> None:
        self._held = b""
        self._is_done = False

    def relay(self, events: bytes, fingerprint: str) -> bytes:
        """What may go out now; `fingerprint` is the hidden chunk's, once that was read."""
        if self._is_done:
            return events
        if fingerprint:
            self._is_done = True
            events, self._held = self._held + events, b""
            return _stamped(events, fingerprint)
        events, self._held = self._held + events, b""
        if any(end in events for end in _ENDS):
            start = _end_begins(events)
            events, self._held = events[:start], events[start:]
        return events

    def close(self) -> bytes:
        """What is still held; the stream is over."""
        held, self._held = self._held, b""
        return held


def _end_begins(events: bytes) -> int:
    """Where the event begins that ends an answer and may yet get the fingerprint, if any does."""
    start, end = _last_end(events)
    is_waiting = _FIELD not in events[start:end] and _DATA_LINE.search(events, end) is None
    return start if is_waiting else len(events)


def _last_end(events: bytes) -> tuple[int, int]:
    """Where the last event that ends an answer begins, and where its content ends."""
    place = max(events.rfind(end) for end in _ENDS)
    start = 0
    for blank in BLANK_LINE.finditer(events, 0, place):
        start = blank.end()
    blank_line = BLANK_LINE.search(events, place)
    return start, len(events) if blank_line is None else blank_line.start()


def _stamped(events: bytes, fingerprint: str) -> bytes:
    """The events, with the fingerprint in the last of them that ends an answer."""
    if not any(end in events for end in _ENDS):
        return events
    start, end = _last_end(events)
    brace = events.rfind(b"}", start, end)
    if brace < 0 or _FIELD in events[start:end]:
        return events
    field = b"," + _FIELD + b":" + msgspec.json.encode(fingerprint)
    return events[:brace] + field + events[brace:]
