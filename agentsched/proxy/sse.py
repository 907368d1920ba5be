"""A tap on an engine's event stream: reads along, and hides the usage chunk that only we wanted.

Whole events go through at once and as they are. Of an event that is not whole nothing is sent yet:
a client could do nothing with it, and so the relayed bytes always end where an error event of ours
can follow, should the engine die in the middle of one. The end of an answer that its engine gave up
is kept back, so that one can follow there, too. What is relayed depends on the stream
alone, never on how the network cut it.

An event ends at a blank line; a line ends in LF, CR or CRLF (WHATWG, "server-sent events"). What
cannot be read is relayed and otherwise ignored; from an event of more than `event_bytes_max` on,
the tap relays blindly, and takes the end of the stream for that of the answer.
"""

from __future__ import annotations

import re
from typing import Final

from agentsched.proxy.answer import Answer
from agentsched.proxy.fields import BROKEN
from agentsched.proxy.request import Dialect
from agentsched.proxy.stamping import BLANK_LINE, Stamp
from agentsched.proxy.taps import AnswerDraft, tap_for
from agentsched.proxy.taps.draft import ANSWER_CHARS_MAX

EVENT_BYTES_MAX: Final = 8 * 1024 * 1024

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
        "_hides",
        "_hides_lf",
        "_is_blind",
        "_stamp",
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
        #: None where nothing is read: the tap is blind.
        self._tap = tap_for(dialect, self._draft)
        #: It went blind: what came of the answer since is not known.
        self._is_blind = False
        self._hides = hide_usage
        self._stamp = Stamp() if hide_usage else None
        self._event_bytes_max = event_bytes_max
        #: The bytes of the event that is not whole yet; not relayed.
        self._tail = bytearray()
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

    @property
    def is_announced_only(self) -> bool:
        """Whether all that has come is the word that an answer will, if anything has.

        Only the Responses API gives one. What cannot be read may be more than that.
        """
        is_read = self._tap is not None and not self.malformed_events
        return is_read and self._draft.is_announced_only

    @property
    def response_id(self) -> str:
        """What the engine calls the answer; empty as long as that is not known."""
        return self._draft.response_id

    @property
    def is_over(self) -> bool:
        """Whether the dialect's last event has come."""
        return self._draft.is_over

    @property
    def is_given_up(self) -> bool:
        """Whether the engine ended the answer without being done. Its end is not relayed."""
        return self._draft.is_given_up

    def answer(self) -> Answer:
        """What the stream has said so far."""
        return self._draft.answer()

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk; the bytes to relay now, which is `chunk` itself if it ends an event."""
        relayed = self._feed(chunk)
        if self._stamp is None:
            return relayed
        return self._stamp.relay(relayed, self._draft.fingerprint)

    def _feed(self, chunk: bytes) -> bytes:
        if self._tap is None or not chunk:
            return chunk
        if self._awaits_lf:
            self._awaits_lf = False
            if chunk[0] == _LF:
                return (b"" if self._hides_lf else b"\n") + self._feed(chunk[1:])
        if not self._has_cr and _CR in chunk:
            self._has_cr = True
        search = 0
        data: bytes | bytearray = chunk
        if self._tail:
            search = max(0, len(self._tail) - _BLANK_LINE_BYTES_MAX)
            self._tail += chunk
            data = self._tail
        end, hidden = self._read(data, search)
        if end == len(data) and data is chunk and not hidden:
            return chunk
        relayed = _without(data, end, hidden)
        if data is chunk:
            self._tail += memoryview(chunk)[end:]
        else:
            del self._tail[:end]
        return relayed

    def close(self) -> bytes:
        """The stream has ended well: the bytes that are left, to be relayed like all others.

        There are some if the stream ended within an event. Whoever is going to send an error event
        after it should leave them out.
        """
        rest = bytes(self._tail)
        self._tail = bytearray()
        if self._is_blind:
            # Nobody saw how the answer ended, and a connection that breaks says so itself.
            self._draft.is_complete = True
        # Some servers leave out the last blank line; clients differ in whether they mind.
        is_hidden = self._observe(rest.rstrip(b"\r\n")) if rest else False
        held = b"" if self._stamp is None else self._stamp.close()
        return held if is_hidden else held + rest

    def _read(self, data: bytes | bytearray, search: int) -> tuple[int, list[tuple[int, int]]]:
        """Read the events in `data`: up to where it can be relayed, and what is to be hidden."""
        hidden: list[tuple[int, int]] = []
        start = 0
        while True:
            if self._has_cr:
                match = BLANK_LINE.search(data, search)
                stop, end = match.span() if match is not None else (-1, 0)
            else:
                stop = data.find(b"\n\n", search)
                end = stop + 2
            if (stop if stop >= 0 else _content_end(data)) - start > self._event_bytes_max:
                self._tap = None
                self._is_blind = self._draft.is_truncated = True
                return len(data), hidden
            if stop < 0:
                return start, hidden
            is_hidden = self._observe(bytes(data[start:stop]))
            if is_hidden:
                hidden.append((start, end))
            if self._has_cr and end == len(data) and data[-1] == _CR:
                self._awaits_lf = True
                self._hides_lf = is_hidden
            start = search = end

    def _observe(self, block: bytes) -> bool:
        """Read an event; whether it is to be hidden."""
        data = _data(block)
        if not data or self._tap is None:
            if block.startswith(b":"):
                # A comment: a sign of life, which is for the client.
                self._draft.is_announced_only = False
            return False
        draft = self._draft
        try:
            is_hidden = self._tap.observe(data) and self._hides
        except BROKEN:
            self.malformed_events += 1
            return False
        # What its engine gave up would be taken for a short answer by whoever sees this end.
        return is_hidden or (draft.is_given_up and not draft.error)


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


def _without(data: bytes | bytearray, end: int, hidden: list[tuple[int, int]]) -> bytes:
    pieces: list[bytes | bytearray] = []
    start = 0
    for first, last in hidden:
        pieces.append(data[start:first])
        start = last
    pieces.append(data[start:end])
    return b"".join(pieces)
