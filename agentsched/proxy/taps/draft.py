"""An answer while it is read: text and tool calls grow within a bound."""

from __future__ import annotations

import sys
from typing import Final

import msgspec

from agentsched.model import Usage
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.token_ids import pack_lists

ANSWER_CHARS_MAX: Final = 256 * 1024
_CALLS_MAX: Final = 1024
_NAME_CHARS_MAX: Final = 512
_ERROR_CHARS_MAX: Final = 2048
_IDS_BYTES_MAX: Final = 4 << 20


class _ErrorObject(msgspec.Struct):
    message: str | None = None
    code: msgspec.Raw = msgspec.Raw()
    type: msgspec.Raw = msgspec.Raw()


_ERROR: Final = msgspec.json.Decoder(_ErrorObject | str | None)
_WORD: Final = msgspec.json.Decoder(int | str | None)

#: How it is spelled that there is no error.
_NO_ERRORS: Final = frozenset({b"null", b"{}", b'""', b"false"})

#: What errors inside streams say of themselves, as the status that each would have been.
_STATUS_OF_WORDS: Final = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "invalid_prompt": 400,
    "not_found_error": 404,
    "NotFoundError": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
}


class CallDraft:
    """A tool call while its arguments arrive."""

    __slots__ = ("arguments", "call_id", "name")

    def __init__(self) -> None:
        self.call_id = ""
        self.name = ""
        self.arguments: list[str] = []


class AnswerDraft:
    """What is known of an answer so far. Reading it (`answer`) changes nothing."""

    __slots__ = (
        "_breaks",
        "_calls",
        "_ids",
        "_ids_size",
        "_message",
        "_room",
        "_size",
        "_text",
        "error",
        "error_status",
        "fingerprint",
        "finish_reason",
        "is_announced_only",
        "is_complete",
        "is_given_up",
        "is_over",
        "is_started",
        "is_truncated",
        "response_id",
        "usage",
    )

    def __init__(self, chars_max: int = ANSWER_CHARS_MAX) -> None:
        self.response_id = ""
        self.finish_reason = ""
        #: Of the engine, as it stands in a chunk that holds usage and nothing else.
        self.fingerprint = ""
        self.error = ""
        #: What the error would have been as a status; 0 where it does not say.
        self.error_status = 0
        self.usage: Usage | None = None
        #: Nothing has come yet but the word that an answer will (Responses).
        self.is_announced_only = False
        #: The first content, reasoning or tool call was seen.
        self.is_started = False
        self.is_complete = False
        #: The engine ended it without being done: what ends it is not for the client.
        self.is_given_up = False
        #: The dialect's last event was seen: nothing more is worth waiting for.
        self.is_over = False
        self.is_truncated = False
        #: Calls by their place in the answer, in the order in which they began.
        self._calls: dict[int, CallDraft] = {}
        self._text: list[str] = []
        #: Lists of token ids as they were sent; None where they are too many to be kept.
        self._ids: list[bytes] | None = []
        self._ids_size = 0
        #: Where in the text further messages begin, and the place of the latest one.
        self._breaks: list[int] = []
        self._message: int | None = None
        self._size = 0
        #: Characters that text and arguments may still take.
        self._room = chars_max

    @property
    def has_text(self) -> bool:
        return bool(self._text)

    @property
    def last_call(self) -> int:
        """The place of the call that began last; -1 where there is none."""
        return next(reversed(self._calls), -1)

    def name_response(self, response_id: str | None) -> None:
        """Keep the engine's id, the first that comes."""
        if response_id and not self.response_id:
            self.response_id = response_id[:_NAME_CHARS_MAX]

    def add_text(self, text: str) -> None:
        self.is_started = True
        text = self._fit(text)
        if text:
            self._text.append(text)
            self._size += len(text)

    def add_token_ids(self, ids: msgspec.Raw) -> None:
        """Add a JSON list of token ids; an answer of which some are missing has none."""
        raw = bytes(ids)
        if self._ids is None or raw in (b"", b"null"):
            return
        self._ids_size += len(raw)
        if self._ids_size > _IDS_BYTES_MAX:
            self._ids = None
        else:
            self._ids.append(raw)

    def add_message(self, place: int, text: str) -> None:
        """Add text of the answer's message at `place`; an answer may hold several."""
        if place != self._message:
            if self._size and len(self._breaks) < _CALLS_MAX:
                self._breaks.append(self._size)
            self._message = place
        self.add_text(text)

    def begin_call(self, place: int, *, call_id: str | None, name: str | None) -> None:
        """Note a call's id and name; each is kept as first given."""
        self.is_started = True
        call = self._call(place)
        if call is None:
            return
        if call_id and not call.call_id:
            # An id comes back as it was, so it is whole: some hold a model's signed thoughts.
            is_short = len(call_id) <= _NAME_CHARS_MAX
            call.call_id = call_id if is_short else self._fit(call_id)
        if name and not call.name:
            # Few tools, and each of their calls stays in a program's graph.
            call.name = sys.intern(name[:_NAME_CHARS_MAX])

    def add_arguments(self, place: int, arguments: str) -> None:
        self.is_started = True
        call = self._call(place)
        if call is None:
            return
        arguments = self._fit(arguments)
        if arguments:
            call.arguments.append(arguments)

    def set_arguments(self, place: int, arguments: str) -> None:
        """Take the whole arguments, said at a call's end, in place of their pieces."""
        call = self._call(place)
        if call is None:
            return
        self._room += sum(map(len, call.arguments))
        call.arguments.clear()
        self.add_arguments(place, arguments)

    def fail(self, error: msgspec.Raw | str | None) -> None:
        """Note an error: its text, an error object as bytes, or whatever else was sent."""
        if isinstance(error, msgspec.Raw):
            error, self.error_status = _read_error(error)
        self.error = (error or "the engine reported an error")[:_ERROR_CHARS_MAX]

    def answer(self) -> Answer:
        return Answer(
            response_id=self.response_id,
            text="".join(self._text),
            calls=tuple(
                AnsweredCall(
                    call_id=call.call_id, name=call.name, arguments="".join(call.arguments)
                )
                for call in self._calls.values()
            ),
            finish_reason=self.finish_reason,
            usage=self.usage,
            breaks=tuple(self._breaks),
            token_ids=pack_lists(self._ids) if self._ids else b"",
            is_complete=self.is_complete,
            is_given_up=self.is_given_up,
            is_truncated=self.is_truncated,
            error=self.error,
            error_status=self.error_status,
        )

    def _call(self, place: int) -> CallDraft | None:
        call = self._calls.get(place)
        if call is None:
            if len(self._calls) >= _CALLS_MAX:
                self.is_truncated = True
                return None
            call = self._calls[place] = CallDraft()
        return call

    def _fit(self, text: str) -> str:
        if len(text) > self._room:
            self.is_truncated = True
            text = text[: self._room]
        self._room -= len(text)
        return text


def is_error(raw: msgspec.Raw) -> bool:
    """Whether an event's `error` is one; some engines spell out that there is none."""
    return bool(raw) and bytes(raw) not in _NO_ERRORS


def _read_error(raw: msgspec.Raw) -> tuple[str, int]:
    """An error's text, and the status that it would have been."""
    try:
        error = _ERROR.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return bytes(raw)[:_ERROR_CHARS_MAX].decode(errors="replace"), 0
    if not isinstance(error, _ErrorObject):
        return error or "", 0
    return error.message or "", _status(error.code) or _status(error.type)


def _status(raw: msgspec.Raw) -> int:
    """The status that a code is, or that goes with a word; 0 for what is neither."""
    try:
        word = _WORD.decode(raw) if raw else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
    if isinstance(word, str):
        known = _STATUS_OF_WORDS.get(word)
        if known is not None:
            return known
        word = int(word) if word.isdecimal() and len(word) == 3 else None
    return word if word is not None and 400 <= word < 600 else 0
