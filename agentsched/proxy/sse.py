"""A tap on an engine's event stream: reads along, and hides the usage chunk that only we wanted.

Bytes go through at once and as they are. The one exception is the end of a stream whose usage
chunk is to be hidden: once a finish reason was seen, the next event might be that chunk, so its
bytes wait until it is whole. Whether a chunk is hidden depends on the stream alone, never on how
the network cut it.

An event ends at a blank line; a line ends in LF, CR or CRLF (WHATWG, "server-sent events"). What
cannot be read is relayed and otherwise ignored; after an event of more than `event_bytes_max`
the tap relays blindly.
"""

from __future__ import annotations

import re
from typing import Final

from agentsched.proxy.answer import Answer
from agentsched.proxy.fields import BROKEN
from agentsched.proxy.request import Dialect
from agentsched.proxy.taps import AnswerDraft, tap_for
from agentsched.proxy.taps.draft import ANSWER_CHARS_MAX

EVENT_BYTES_MAX: Final = 8 * 1024 * 1024

# Two line ends. Atomic groups, lest a CRLF be taken for two of them.
_BLANK_LINE: Final = re.compile(rb"(?>\r\n?|\n)(?>\r\n?|\n)")
_LINE_END: Final = re.compile(rb"\r\n?|\n")
_BLANK_LINE_BYTES_MAX: Final = 4
_CR: Final = ord("\r")
_LF: Final = ord("\n")


class SseTap:
    """Reads one stream. Feed it every chunk and send on what it returns; then close it.

    Nothing here raises, whatever the bytes. `answer` may be asked for at any time.
    """

    __slots__ = (
        "_awaits_lf",
        "_draft",
        "_event_bytes_max",
        "_has_cr",
        "_held",
        "_hides",
        "_hides_lf",
        "_tail",
        "_tap",
        "malformed_events",
    )

    def __init__(
        self,
        dialect: Dialect,
        *,
        hide_usage: bool,
        answer_chars_max: int = ANSWER_CHARS_MAX,
        event_bytes_max: int = EVENT_BYTES_MAX,
    ) -> None:
        self._draft = AnswerDraft(answer_chars_max)
        #: None once the tap is blind.
        self._tap = tap_for(dialect, self._draft)
        self._hides = hide_usage and dialect in (Dialect.CHAT, Dialect.COMPLETIONS)
        self._event_bytes_max = event_bytes_max
        #: The bytes of the event that is not whole yet; `_held` of them were not relayed, which
        #: is none or all.
        self._tail = bytearray()
        self._held = 0
        self._has_cr = False
        #: The last event ended in a CR at the end of a chunk: an LF that follows belongs to it.
        self._awaits_lf = False
        self._hides_lf = False
        #: Events that could not be read; the dialect's or the engine's fault, for statistics.
        self.malformed_events = 0

    @property
    def first_token_seen(self) -> bool:
        """Whether content, reasoning or a tool call has come; a role alone does not count."""
        return self._draft.is_started

    def answer(self) -> Answer:
        """What the stream has said so far."""
        return self._draft.answer()

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk; the bytes to relay now, `chunk` itself wherever nothing is hidden."""
        if self._tap is None or not chunk:
            return chunk
        if self._awaits_lf:
            self._awaits_lf = False
            if chunk[0] == _LF:
                return (b"" if self._hides_lf else b"\n") + self.feed(chunk[1:])
        if not self._has_cr and _CR in chunk:
            self._has_cr = True
        before = len(self._tail)
        if before:
            self._tail += chunk
            data: bytes | bytearray = self._tail
        else:
            data = chunk
        end, hidden = self._read(data, max(0, before - _BLANK_LINE_BYTES_MAX))
        start = before - self._held
        holds = self._may_hide()
        stop = end if holds else len(data)
        if start == before and stop == len(data) and not hidden:
            relayed = chunk
        else:
            relayed = _without(data, start, stop, hidden)
        self._keep(data, end, holds=holds)
        return relayed

    def close(self) -> bytes:
        """The stream has ended: the bytes that were still held back, if they are to be relayed."""
        if self._tap is None:
            return b""
        rest = bytes(self._tail)
        held = self._held
        self._tail = bytearray()
        self._held = 0
        # Some servers leave out the last blank line; clients differ in whether they mind.
        is_usage = self._observe(rest.rstrip(b"\r\n")) if rest else False
        return b"" if is_usage or not held else rest

    def _read(self, data: bytes | bytearray, search: int) -> tuple[int, list[tuple[int, int]]]:
        """Read the whole events in `data`; where the last one ends, and which are to be hidden."""
        hidden: list[tuple[int, int]] = []
        start = 0
        while True:
            stop, end = self._boundary(data, search)
            if (stop if end else _content_end(data)) - start > self._event_bytes_max:
                self._tap = None
                return start, hidden
            if not end:
                return start, hidden
            may_hide = self._may_hide()
            is_hidden = self._observe(bytes(data[start:stop])) and may_hide
            if is_hidden:
                hidden.append((start, end))
            if end == len(data) and data[-1] == _CR:
                self._awaits_lf = True
                self._hides_lf = is_hidden
            start = search = end

    def _boundary(self, data: bytes | bytearray, search: int) -> tuple[int, int]:
        """Where the next event's content ends, and its blank line; (0, 0) where it is not whole."""
        if not self._has_cr:
            stop = data.find(b"\n\n", search)
            return (stop, stop + 2) if stop >= 0 else (0, 0)
        match = _BLANK_LINE.search(data, search)
        return match.span() if match is not None else (0, 0)

    def _may_hide(self) -> bool:
        """Whether the event that begins now could be the one to hide."""
        tap = self._tap
        return self._hides and tap is not None and tap.is_finished

    def _observe(self, block: bytes) -> bool:
        data = _data(block)
        if not data or self._tap is None:
            return False
        try:
            return self._tap.observe(data)
        except BROKEN:
            self.malformed_events += 1
            return False

    def _keep(self, data: bytes | bytearray, end: int, *, holds: bool) -> None:
        if self._tap is None:
            self._tail = bytearray()
        elif data is self._tail:
            del self._tail[:end]
        elif end < len(data):
            self._tail += memoryview(data)[end:]
        self._held = len(self._tail) if holds else 0


def _data(block: bytes) -> bytes:
    """The data of an event's lines; empty where it has none."""
    if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
        return block[6:]
    lines: list[bytes] = []
    for line in _LINE_END.split(block.removeprefix(b"\xef\xbb\xbf")):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)


def _content_end(data: bytes | bytearray) -> int:
    """Where an event that is not whole ends so far, its last line end left out."""
    end = len(data)
    if data.endswith(b"\r\n"):
        return end - 2
    return end - 1 if data.endswith((b"\n", b"\r")) else end


def _without(
    data: bytes | bytearray, start: int, stop: int, hidden: list[tuple[int, int]]
) -> bytes:
    pieces: list[bytes | bytearray] = []
    for first, last in hidden:
        pieces.append(data[start:first])
        start = last
    pieces.append(data[start:stop])
    return b"".join(pieces)
