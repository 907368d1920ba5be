"""Phrases by which auxiliary calls and compactions are known when nothing else tells."""

from __future__ import annotations

import re
from enum import IntFlag
from typing import Final


class Sign(IntFlag):
    """What a text gives away about the request that holds it."""

    NONE = 0
    COMPACTION = 1
    AUXILIARY = 2
    SUBAGENT = 4


_COMPACTION: Final = re.compile(
    r"create a detailed summary of the conversation"
    r"|Respond with TEXT ONLY.{0,80}(?:Do NOT call any tools|summary)"
    r"|an <analysis> block followed by a <summary> block"
    r"|CONTEXT CHECKPOINT COMPACTION"
    r"|context summarization agent"
    r"|component that summarizes (?:a|the|internal) (?:conversation|chat)"
    r"|context-aware state summary"
    r"|anchored context summarization",
    re.IGNORECASE | re.DOTALL,
)
_AUXILIARY: Final = re.compile(
    r"You are a title generator"
    r"|You are naming a coding session"
    r"|Generate a (?:short |concise |brief )?title for"
    r"|generates? concise, one-line git commit messages"
    r"|Write a concise commit message"
    r"|Generate a one-line commit message"
    r"|Analyze if this message indicates a new conversation topic",
    re.IGNORECASE,
)
_SUBAGENT: Final = "cc_is_subagent=true"

#: Longer texts are searched at their ends only: the phrases stand there, and time is bounded.
_END: Final = 8_192


def signs_of(text: str) -> int:
    """The signs that `text` holds."""
    if len(text) > 2 * _END:
        text = text[:_END] + text[-_END:]
    signs = 0
    if _COMPACTION.search(text):
        signs |= Sign.COMPACTION
    if _AUXILIARY.search(text):
        signs |= Sign.AUXILIARY
    if _SUBAGENT in text:
        signs |= Sign.SUBAGENT
    return signs
