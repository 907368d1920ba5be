"""An engine's answer as the data plane sees it, from a stream tap or from a whole body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agentsched.model import Usage

#: Why an answer ended that its engine gave up: vLLM's word as it is paused or told to stop.
ABORTED: Final = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredCall:
    """A tool call in an answer: its id, the tool's name and its arguments as sent (JSON text)."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine answered. Text and arguments are bounded: see `is_truncated`.

    `response_id` is the id that the engine gave (`chatcmpl-…`, `resp_…`, `msg_…`). `error` is the
    message of an error that came inside a stream, `error_status` the status that it would have been
    (0: it does not say). `is_complete` means that the end was seen: a stop
    reason or the dialect's last event; a cut stream is not complete, nor is one that the engine
    ended without being done (`is_given_up`). `breaks` are where in the text a further message
    begins, as only the Responses API's answers have any. `token_ids` are a completion's, packed
    (`agentsched.proxy.token_ids`), where its client asked for them.
    """

    response_id: str = ""
    text: str = ""
    calls: tuple[AnsweredCall, ...] = ()
    finish_reason: str = ""
    usage: Usage | None = None
    breaks: tuple[int, ...] = ()
    token_ids: bytes = b""
    is_complete: bool = False
    is_given_up: bool = False
    is_truncated: bool = False
    error: str = ""
    error_status: int = 0

    @property
    def messages(self) -> tuple[str, ...]:
        """The text, message by message."""
        ends = (*self.breaks, len(self.text))
        return tuple(self.text[a:b] for a, b in zip((0, *self.breaks), ends, strict=True))
