"""Chunks of chat completions and of completions: `choices`, `usage`, `[DONE]`, `error`.

Where several choices were asked for, the first is the answer: it is the one that agents go on with.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentsched.proxy.answer import ABORTED
from agentsched.proxy.taps.draft import AnswerDraft, is_error
from agentsched.proxy.taps.usage import ChatUsage

_FINGERPRINT_CHARS_MAX: Final = 512


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Custom(msgspec.Struct, gc=False):
    name: str | None = None
    input: str | None = None


class _ToolDelta(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: _Custom | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolDelta] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    token_ids: msgspec.Raw = msgspec.Raw()
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    choices: list[_Choice] | None = None
    usage: ChatUsage | None = None
    system_fingerprint: str | None = None
    error: msgspec.Raw = msgspec.Raw()


_DECODE: Final = msgspec.json.Decoder(_Chunk).decode


class ChatTap:
    """Reads chunks into a draft."""

    __slots__ = ("_draft",)

    def __init__(self, draft: AnswerDraft) -> None:
        self._draft = draft

    def observe(self, data: bytes) -> bool:
        """Take in one event. True where it holds usage and nothing else.

        Raises:
            msgspec.MsgspecError, UnicodeDecodeError, RecursionError: it is no chunk.
        """
        draft = self._draft
        if data.startswith(b"[DONE]"):
            draft.is_complete = draft.is_over = not draft.is_given_up
            return False
        chunk = _DECODE(data)
        if not draft.response_id:
            draft.name_response(chunk.id)
        if chunk.usage is not None:
            draft.usage = chunk.usage.usage()
        for choice in chunk.choices or ():
            self._choose(choice)
        if is_error(chunk.error):
            # Routers put it beside a choice that ends with `"finish_reason": "error"`.
            draft.fail(chunk.error)
            return False
        if chunk.choices:
            return False
        holds_usage_alone = chunk.choices is not None and chunk.usage is not None
        if holds_usage_alone and chunk.system_fingerprint:
            draft.fingerprint = chunk.system_fingerprint[:_FINGERPRINT_CHARS_MAX]
        return holds_usage_alone

    def _choose(self, choice: _Choice) -> None:
        draft = self._draft
        if choice.index != 0:
            return
        delta = choice.delta
        if delta is not None:
            if delta.content:
                draft.add_text(delta.content)
            if delta.tool_calls:
                for call in delta.tool_calls:
                    self._call(call)
            elif delta.reasoning or delta.reasoning_content or delta.refusal:
                draft.is_started = True
        else:
            if choice.text:
                draft.add_text(choice.text)
            if choice.token_ids:
                draft.add_token_ids(choice.token_ids)
        if choice.finish_reason is not None:
            draft.finish_reason = choice.finish_reason
            draft.is_given_up = choice.finish_reason == ABORTED
            draft.is_complete = not draft.is_given_up

    def _call(self, call: _ToolDelta) -> None:
        draft = self._draft
        place = call.index
        if place is None:
            # Some servers do not number: an id begins a call, what has none belongs to the last.
            place = draft.last_call + (1 if call.id or draft.last_call < 0 else 0)
        name: str | None = None
        arguments: str | None = None
        if call.function is not None:
            name, arguments = call.function.name, call.function.arguments
        elif call.custom is not None:
            name, arguments = call.custom.name, call.custom.input
        if call.id or name:
            draft.begin_call(place, call_id=call.id, name=name)
        if arguments:
            draft.add_arguments(place, arguments)
