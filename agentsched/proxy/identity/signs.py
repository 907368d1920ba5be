"""Phrases by which auxiliary calls and compactions are known when nothing else tells."""

from __future__ import annotations

from enum import IntFlag
from typing import Final


class Sign(IntFlag):
    """What a text gives away about the request that holds it."""

    NONE = 0
    COMPACTION = 1
    AUXILIARY = 2
    SUBAGENT = 4
    #: A question about the chat itself, where it is the last message.
    ASIDE = 8
    #: An order to one that has heard all that its parent heard, where it is the last message.
    FORKED = 16
    #: A guess at what the user says next, or who speaks next, asked with all the tools or with one
    #: of its own, where it is the last message.
    GUESS = 32
    #: A wish to have an answer ended that broke off, where it is the last message.
    RESUMED = 64


#: In lower case, as the texts are when they are searched.
_PHRASES: Final[tuple[tuple[int, tuple[str, ...]], ...]] = (
    (
        int(Sign.COMPACTION),
        (
            "create a detailed summary of the conversation",
            "critical: respond with text only",
            "an <analysis> block followed by a <summary> block",
            "context checkpoint compaction",
            "context summarization agent",
            "component that summarizes",
            "context-aware state summary",
            "summarizing a conversation to preserve context",
            "an llm context limit was reached",
            "a helpful ai assistant tasked with summarizing conversations",
            "anchored context summarization",
            "create a new anchored summary from the conversation",
            "update the anchored summary below",
            "the <prior-summary> summarizes everything",
            "summarize the older portion of the preceding conversation",
            "distilling chat history into a structured",
            "given a task to compact this conversation context",
            "extract the highest quality/most relevant context",
            "*briefly* summarize this partial conversation about programming",
        ),
    ),
    (
        int(Sign.AUXILIARY),
        (
            "you are a title generator",
            "you are naming a coding session",
            "you will generate a short title",
            "generate a title for",
            "generate a short title for",
            "generate a concise title for",
            "generate a one-line commit message",
            "generates concise, one-line git commit messages",
            "write a concise commit message",
            "reply with only a description in four words or less",
            "analyze if this message indicates a new conversation topic",
            "extract any file paths that this command reads or modifies",
            "bash commands that an ai coding agent wants to run",
            "summarize this coding conversation in under",
        ),
    ),
    (int(Sign.SUBAGENT), ("cc_is_subagent=true",)),
    (
        int(Sign.GUESS),
        (
            "[suggestion mode: suggest what the user might naturally type next",
            "analyze *only* the content and structure of your immediately preceding response",
        ),
    ),
    (int(Sign.FORKED), ("<fork-boilerplate>",)),
    (int(Sign.RESUMED), ("the connection dropped mid-response",)),
    (
        int(Sign.ASIDE),
        (
            "word title for this conversation",
            "5-word-or-less title for the conversation",
            "reply with a title for the chat",
            "word title with an emoji summarizing",
            "broad tags categorizing the main themes",
            "relevant follow-up questions or prompts",
        ),
    ),
)

#: Longer texts are searched at their ends only: the phrases stand there, and time is bounded.
_END: Final = 8_192


def signs_of(text: str) -> int:
    """The signs that `text` holds."""
    if len(text) > 2 * _END:
        text = text[:_END] + text[-_END:]
    text = text.lower()
    signs = 0
    for sign, phrases in _PHRASES:
        for phrase in phrases:
            if phrase in text:
                signs |= sign
                break
    return signs
