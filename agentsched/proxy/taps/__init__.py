"""Readers of answers, one file a dialect: events in, one bounded `Answer` out."""

from __future__ import annotations

from agentsched.proxy.request import Dialect
from agentsched.proxy.taps.chat import ChatTap
from agentsched.proxy.taps.draft import AnswerDraft
from agentsched.proxy.taps.messages import MessagesTap
from agentsched.proxy.taps.responses import ResponsesTap

Tap = ChatTap | ResponsesTap | MessagesTap


def tap_for(dialect: Dialect, draft: AnswerDraft) -> Tap | None:
    """A reader that fills `draft` from the events of a stream; None where nothing is generated."""
    match dialect:
        case Dialect.CHAT | Dialect.COMPLETIONS:
            return ChatTap(draft)
        case Dialect.RESPONSES:
            return ResponsesTap(draft)
        case Dialect.MESSAGES:
            return MessagesTap(draft)
        case _:
            return None


__all__ = ["AnswerDraft", "Tap", "tap_for"]
