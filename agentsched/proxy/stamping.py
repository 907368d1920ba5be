"""The engine's fingerprint for clients that did not ask for usage.

vLLM puts `system_fingerprint` on the last chunk of a stream: the usage chunk where that was asked
for, else the one that ends the answer. We ask for usage and hide it, so what stood there is put
where the client would have found it. The chunk that ends the answer waits for the event after it,
which engines send in the same breath.
"""

from __future__ import annotations

from typing import Final

import msgspec

_FIELD: Final = b'"system_fingerprint"'
_ENDS: Final = (b'"finish_reason":"', b'"finish_reason": "')
_BLANK: Final = b"\n\n"


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
        if not events:
            return events
        before, self._held = self._held, b""
        start = events.rfind(_BLANK, 0, len(events) - len(_BLANK)) + len(_BLANK)
        last = events[start if start >= len(_BLANK) else 0 :]
        if events.endswith(_BLANK) and _FIELD not in last and any(end in last for end in _ENDS):
            self._held = last
            events = events[: len(events) - len(last)]
        return before + events

    def close(self) -> bytes:
        """What is still held; the stream is over."""
        held, self._held = self._held, b""
        return held


def _stamped(events: bytes, fingerprint: str) -> bytes:
    """The events, with the fingerprint in the last of them that ends an answer."""
    place = max(events.rfind(end) for end in _ENDS)
    if place < 0:
        return events
    end = events.find(_BLANK, place)
    brace = events.rfind(b"}", place, end if end >= 0 else len(events))
    if brace < 0 or _FIELD in events[max(0, events.rfind(_BLANK, 0, place)) : brace]:
        return events
    field = b"," + _FIELD + b":" + msgspec.json.encode(fingerprint)
    return events[:brace] + field + events[brace:]
