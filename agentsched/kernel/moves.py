"""Conversations that go from one replica of the proxy to another, and back.

Two replicas must not both count one context: each would find the engine fuller than it is. So
whoever hears that another serves a conversation lets go of it, and takes it over where the other
left it when it comes back.
"""

from __future__ import annotations

from agentsched.kernel.books import Books
from agentsched.kernel.records import ConversationRecord
from agentsched.kernel.resumption import goes_on
from agentsched.kernel.retention import Retention
from agentsched.model import Command, ContinuedElsewhere, StepArrived, UnpinReason


def let_go(books: Books, retention: Retention, event: ContinuedElsewhere) -> list[Command] | None:
    """Another replica serves a conversation. None: it is not known here, or runs here as well."""
    program = books.programs.get(event.program)
    conversation = program.conversations.get(event.conversation) if program is not None else None
    if program is None or conversation is None or conversation.active_steps:
        return None
    books.touch(program, now=books.now)
    commands = retention.forget(event.conversation, UnpinReason.RESUMED)
    books.evict(conversation)
    conversation.paused_at = None
    conversation.tools.clear()
    return commands


def take_over(books: Books, conversation: ConversationRecord, event: StepArrived) -> None:
    """A program that was begun elsewhere is no newcomer, and a conversation that comes from another
    replica has its context where that one left it."""
    if goes_on(event):
        books.serve(books.programs[conversation.program])
    engine = books.engines.get(event.home) if event.home is not None else None
    if engine is None or not engine.is_alive or conversation.active_steps:
        return
    tokens = min(event.home_tokens, event.prompt_tokens)
    books.evict(conversation)
    conversation.engine = engine.engine
    conversation.is_resident = True
    conversation.context_tokens = tokens
    conversation.prefixes = tuple(p for p in event.prefixes if p.tokens <= tokens)
    books.grow(conversation)
