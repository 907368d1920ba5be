"""Events of the Responses API: items that grow, and a response object at either end."""

from __future__ import annotations

from typing import Final

import msgspec

from agentsched.proxy.fields import first_byte
from agentsched.proxy.taps.draft import AnswerDraft, is_error
from agentsched.proxy.taps.usage import ResponsesUsage


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    action: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()


class _Part(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class ResponseObject(msgspec.Struct, gc=False):
    """A response as a whole: the body of an answer, and the payload of a stream's last event."""

    id: str | None = None
    status: str | None = None
    output: list[_Item] | None = None
    usage: ResponsesUsage | None = None
    incomplete_details: _Incomplete | None = None
    error: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: msgspec.Raw = msgspec.Raw()
    output_index: int = 0
    item: _Item | None = None
    arguments: msgspec.Raw = msgspec.Raw()
    response: ResponseObject | None = None
    message: str | None = None
    error: msgspec.Raw = msgspec.Raw()


_DECODE: Final = msgspec.json.Decoder(_Event).decode
_TEXT: Final = msgspec.json.Decoder(str).decode
_PARTS: Final = msgspec.json.Decoder(list[_Part])

_ANNOUNCEMENTS: Final = frozenset({"response.created", "response.queued", "response.in_progress"})
_TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
#: Calls of tools that the client describes, by their names.
_NAMED: Final = frozenset({"function_call", "custom_tool_call"})
#: Calls of tools that it has by their kind. One that ran beside the model has no `call_id`.
_KINDS: Final = frozenset(
    {"apply_patch_call", "computer_call", "local_shell_call", "shell_call", "tool_search_call"}
)
_STARTS: Final = frozenset(
    {
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.refusal.delta",
        "response.custom_tool_call_input.delta",
    }
)


class ResponsesTap:
    """Reads events into a draft."""

    __slots__ = ("_draft",)

    def __init__(self, draft: AnswerDraft) -> None:
        self._draft = draft
        draft.is_announced_only = True

    def observe(self, data: bytes) -> bool:
        """Take in one event. Never usage alone, so always False.

        Raises:
            msgspec.MsgspecError, UnicodeDecodeError, RecursionError: it is no event.
        """
        if data.startswith(b"[DONE]"):  # some servers end every stream so
            return False
        event = _DECODE(data)
        draft = self._draft
        if event.type not in _ANNOUNCEMENTS:
            draft.is_announced_only = False
        match event.type:
            case "response.output_text.delta":
                draft.add_message(event.output_index, _TEXT(event.delta))
            case "response.function_call_arguments.delta":
                draft.add_arguments(event.output_index, _TEXT(event.delta))
            case "response.function_call_arguments.done":
                text = _spelled(event.arguments)
                if text is not None:
                    draft.set_arguments(event.output_index, text)
            case "response.output_item.added" | "response.output_item.done":
                if event.item is not None and _is_call(event.item):
                    take_call(draft, event.output_index, event.item)
            case kind if kind in _ANNOUNCEMENTS:
                if event.response is not None:
                    draft.name_response(event.response.id)
            case kind if kind in _TERMINAL:
                self._end(kind, event)
            case kind if kind in _STARTS:
                draft.is_started = True
            case _:
                if is_error(event.error) or event.type == "error":
                    draft.fail(event.error if is_error(event.error) else event.message)
        return False

    def _end(self, kind: str, event: _Event) -> None:
        response = event.response or ResponseObject()
        if response.status is None:
            response.status = kind.removeprefix("response.")
        take_response(self._draft, response)
        self._draft.is_over = True


def _is_call(item: _Item) -> bool:
    return item.type in _NAMED or (item.type in _KINDS and bool(item.call_id))


def _spelled(raw: msgspec.Raw) -> str | None:
    """Arguments as JSON text: those of some calls are not told as text but as the value itself."""
    if not raw or first_byte(raw) == ord("n"):
        return None
    return _TEXT(raw) if first_byte(raw) == ord('"') else bytes(raw).decode()


def take_call(draft: AnswerDraft, place: int, item: _Item) -> None:
    """Note a tool call item; the arguments that it brings are the whole ones."""
    name = item.name if item.type in _NAMED else item.type
    draft.begin_call(place, call_id=item.call_id, name=name)
    told = map(_spelled, (item.arguments, item.input, item.action))
    text = next(filter(None, told), None)
    if text:
        draft.set_arguments(place, text)


def take_response(draft: AnswerDraft, response: ResponseObject) -> None:
    """Take a whole response: what is not known yet, and how it ended.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: an item is not what it should be.
    """
    draft.name_response(response.id)
    if response.usage is not None:
        draft.usage = response.usage.usage()
    status = response.status or ""
    draft.finish_reason = status
    if status == "incomplete" and response.incomplete_details is not None:
        draft.finish_reason = response.incomplete_details.reason or status
    draft.is_complete = status in ("completed", "incomplete", "failed", "cancelled")
    if status == "failed" or is_error(response.error):
        draft.fail(response.error or None)
    knows_text = draft.has_text
    for place, item in enumerate(response.output or ()):
        if _is_call(item):
            take_call(draft, place, item)
        elif item.type == "message" and not knows_text and item.content:
            for part in _PARTS.decode(item.content):
                if part.type == "output_text" and part.text:
                    draft.add_message(place, part.text)
