"""Events of Anthropic's Messages API: a message's start, its content blocks, its end."""

from __future__ import annotations

from typing import Final

import msgspec

from agentsched.proxy.taps.draft import AnswerDraft, is_error
from agentsched.proxy.taps.usage import MessagesUsage


class Block(msgspec.Struct, gc=False):
    """A content block. The input of a tool call is an object: it stays as it was spelled."""

    type: str | None = None
    id: str | None = None
    name: str | None = None
    text: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct, gc=False):
    id: str | None = None
    usage: MessagesUsage | None = None


class _Delta(msgspec.Struct, gc=False):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: Block | None = None
    message: _Message | None = None
    usage: MessagesUsage | None = None
    error: msgspec.Raw = msgspec.Raw()


_DECODE: Final = msgspec.json.Decoder(_Event).decode
_NO_INPUT: Final = b"{}"


class MessagesTap:
    """Reads events into a draft."""

    __slots__ = ("_draft", "_is_unexplained", "_unfilled", "_usage")

    def __init__(self, draft: AnswerDraft) -> None:
        self._draft = draft
        self._usage = MessagesUsage()
        #: Its end was told, and not why.
        self._is_unexplained = False
        #: Calls whose arguments have not begun: at a block's end, none means the empty object.
        self._unfilled: set[int] = set()

    def observe(self, data: bytes) -> bool:
        """Take in one event. Never usage alone, so always False.

        Raises:
            msgspec.MsgspecError, UnicodeDecodeError, RecursionError: it is no event.
        """
        event = _DECODE(data)
        match event.type:
            case "content_block_delta":
                if event.delta is not None:
                    self._grow(event.index, event.delta)
            case "content_block_start":
                if event.content_block is not None:
                    self._begin(event.index, event.content_block)
            case "content_block_stop":
                self._fill(event.index)
            case "message_start":
                if event.message is not None:
                    self._draft.name_response(event.message.id)
                    self._count(event.message.usage)
            case "message_delta":
                self._count(event.usage)
                if event.delta is not None and event.delta.stop_reason:
                    self._draft.finish_reason = event.delta.stop_reason
                    self._draft.is_complete = True
                elif event.delta is not None:
                    self._is_unexplained = True
            case "message_stop":
                self._end()
            case _:
                if is_error(event.error) or event.type == "error":
                    self._draft.fail(event.error or None)
        return False

    def _end(self) -> None:
        draft = self._draft
        # So vLLM ends here what it gives up: this API has no word for that.
        says_nothing = not (draft.finish_reason or draft.is_started)
        draft.is_given_up = self._is_unexplained and says_nothing
        draft.is_complete = draft.is_over = not draft.is_given_up

    def _begin(self, place: int, block: Block) -> None:
        if block.type == "tool_use":
            self._draft.begin_call(place, call_id=block.id, name=block.name)
            if block.input and bytes(block.input) not in (_NO_INPUT, b"null"):
                self._draft.add_arguments(place, bytes(block.input).decode())
            else:
                self._unfilled.add(place)
        elif block.type == "text" and block.text:
            self._draft.add_text(block.text)

    def _grow(self, place: int, delta: _Delta) -> None:
        if delta.text:
            self._draft.add_text(delta.text)
        elif delta.partial_json:
            self._unfilled.discard(place)
            self._draft.add_arguments(place, delta.partial_json)
        elif delta.thinking:
            self._draft.is_started = True

    def _fill(self, place: int) -> None:
        if place in self._unfilled:
            self._unfilled.discard(place)
            self._draft.add_arguments(place, _NO_INPUT.decode())

    def _count(self, usage: MessagesUsage | None) -> None:
        if usage is not None:
            self._usage = self._usage.updated(usage)
            self._draft.usage = self._usage.usage()
