"""Children at the join: whose KV nobody will come back to once their parent goes on."""

from __future__ import annotations

from collections.abc import Iterator

from agentsched.kernel.books import Books
from agentsched.kernel.records import ConversationRecord, ProgramRecord


def children_done(
    books: Books, program: ProgramRecord, parent: ConversationRecord
) -> list[ConversationRecord]:
    """Sub-agents and sub-programs of a conversation that goes on, which said their last word.

    One that is asked again after all only has to compute its context again.
    """
    if len(program.conversations) == 1 and not program.children:
        return []
    return [c for c in _children(books, program, parent) if _is_done(c)]


def _children(
    books: Books, program: ProgramRecord, parent: ConversationRecord
) -> Iterator[ConversationRecord]:
    for conversation in program.conversations.values():
        if conversation.is_spawned and conversation.parent == parent.conversation:
            yield conversation
    for key in program.children:
        yield from books.programs[key].conversations.values()


def _is_done(conversation: ConversationRecord) -> bool:
    return conversation.is_resident and conversation.is_over and not conversation.active_steps
