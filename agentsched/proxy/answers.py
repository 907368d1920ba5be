"""Whole answers: what a JSON body says, in the same words as a tapped stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from agentsched.proxy.answer import ABORTED, Answer
from agentsched.proxy.fields import BROKEN, first_byte
from agentsched.proxy.request import Dialect
from agentsched.proxy.taps import AnswerDraft
from agentsched.proxy.taps.draft import ANSWER_CHARS_MAX
from agentsched.proxy.taps.messages import Block
from agentsched.proxy.taps.responses import ResponseObject, take_response
from agentsched.proxy.taps.usage import ChatUsage, MessagesUsage


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Raw = Raw()


class _Custom(msgspec.Struct):
    name: str | None = None
    input: Raw = Raw()


class _Call(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None
    custom: _Custom | None = None


class _Message(msgspec.Struct):
    content: Raw = Raw()
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    text: str | None = None
    token_ids: Raw = Raw()
    finish_reason: str | None = None


class _ChatBody(msgspec.Struct):
    id: str | None = None
    choices: list[_Choice] | None = None
    usage: ChatUsage | None = None


class _MessagesBody(msgspec.Struct):
    id: str | None = None
    content: list[Block] | None = None
    stop_reason: str | None = None
    usage: MessagesUsage | None = None


class _UsageBody(msgspec.Struct):
    usage: ChatUsage | None = None


class _ErrorBody(msgspec.Struct):
    error: Raw = Raw()
    message: str | None = None
    status: Raw = Raw()


class _Part(msgspec.Struct):
    text: str | None = None


_CHAT: Final = msgspec.json.Decoder(_ChatBody)
_RESPONSE: Final = msgspec.json.Decoder(ResponseObject)
_MESSAGE: Final = msgspec.json.Decoder(_MessagesBody)
_USAGE: Final = msgspec.json.Decoder(_UsageBody)
_ERROR: Final = msgspec.json.Decoder(_ErrorBody)
_PARTS: Final = msgspec.json.Decoder(str | list[_Part] | None)
_STRING: Final = msgspec.json.Decoder(str)


def read_answer(
    dialect: Dialect, body: bytes, *, answer_chars_max: int = ANSWER_CHARS_MAX
) -> Answer:
    """What an answer's body says; an empty, incomplete answer where it cannot be read.

    Never raises. An error body gives its message in `error`. A tool call's arguments are JSON text
    as it was sent, Anthropic's input object included.
    """
    draft = AnswerDraft(answer_chars_max)
    read = _READERS.get(dialect, _read_other)
    try:
        if not _read_error(body, draft):
            read(body, draft)
    except BROKEN:
        # Half an answer would be taken for a whole one.
        draft = AnswerDraft(answer_chars_max)
    return draft.answer()


def _read_error(body: bytes, draft: AnswerDraft) -> bool:
    found = _ERROR.decode(body)
    if not found.error or first_byte(found.error) == ord("n") or found.status:
        return False  # a failed response has a status, and is read as a response
    draft.fail(found.error)
    return True


def _read_other(body: bytes, draft: AnswerDraft) -> None:
    """Embeddings, token counts and the like: any object is whole; usage in the usual shape."""
    answer = _USAGE.decode(body)
    draft.is_complete = True
    if answer.usage is not None:
        draft.usage = answer.usage.usage()


def _read_chat(body: bytes, draft: AnswerDraft) -> None:
    answer = _CHAT.decode(body)
    draft.name_response(answer.id)
    if answer.usage is not None:
        draft.usage = answer.usage.usage()
    for choice in answer.choices or ():
        if choice.index != 0:
            continue
        draft.is_given_up = choice.finish_reason == ABORTED
        draft.is_complete = not draft.is_given_up
        # Few words, and each step keeps its own.
        draft.finish_reason = sys.intern(choice.finish_reason or "")
        if choice.text:
            draft.add_text(choice.text)
        if choice.message is not None:
            _read_message(choice.message, draft)
        else:
            draft.add_token_ids(choice.token_ids)


def _read_message(message: _Message, draft: AnswerDraft) -> None:
    if message.content:
        content = _PARTS.decode(message.content)
        if isinstance(content, str):
            draft.add_text(content)
        else:
            for part in content or ():
                draft.add_text(part.text or "")
    for place, call in enumerate(message.tool_calls or ()):
        function, custom = call.function or _Function(), call.custom or _Custom()
        draft.begin_call(place, call_id=call.id, name=function.name or custom.name)
        arguments = function.arguments or custom.input
        if arguments:
            draft.add_arguments(place, _json_text(arguments))


def _read_response(body: bytes, draft: AnswerDraft) -> None:
    take_response(draft, _RESPONSE.decode(body))


def _read_messages(body: bytes, draft: AnswerDraft) -> None:
    answer = _MESSAGE.decode(body)
    draft.name_response(answer.id)
    if answer.usage is not None:
        draft.usage = answer.usage.usage()
    draft.finish_reason = answer.stop_reason or ""
    if answer.content is None:
        return
    for place, block in enumerate(answer.content):
        if block.type == "text" and block.text:
            draft.add_text(block.text)
        elif block.type == "tool_use":
            draft.begin_call(place, call_id=block.id, name=block.name)
            draft.add_arguments(place, _json_text(block.input) if block.input else "{}")
    # So vLLM ends here what it gives up: this API has no word for that.
    draft.is_given_up = not (draft.finish_reason or draft.has_text or draft.last_call >= 0)
    draft.is_complete = not draft.is_given_up


def _json_text(raw: Raw) -> str:
    """A string's text; any other value as it is spelled."""
    return _STRING.decode(raw) if first_byte(raw) == ord('"') else bytes(raw).decode()


_READERS: Final[Mapping[Dialect, Callable[[bytes, AnswerDraft], None]]] = {
    Dialect.RESPONSES: _read_response,
    Dialect.MESSAGES: _read_messages,
    Dialect.CHAT: _read_chat,
    Dialect.COMPLETIONS: _read_chat,
}
