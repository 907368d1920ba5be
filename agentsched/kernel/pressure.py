"""The pressure gate: whether programs under way want more of an engine's cache than it has.

Their working set is what all of their conversations, running and paused, evicted or not, would like
to find there, with shared prefixes counted once. While it fits, the engine's own LRU loses nothing
that anybody comes back for, so nothing is pinned or warmed. The gate opens somewhat below the
capacity, since contexts grow, and closes well below where it opened, so that it does not flutter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentsched.kernel.records import EngineRecord
from agentsched.kernel.residency import Residency
from agentsched.model import ConversationId, EngineId, Prefix

_OPENS_AT: Final = 0.9
_CLOSES_AT: Final = 0.75


class Pressure:
    """Working sets of all engines, and one gate for each: `EngineRecord.is_contended`."""

    def __init__(self) -> None:
        self._wanted = Residency()

    def tokens(self, engine: EngineId) -> int:
        """The working set of an engine, in tokens."""
        return self._wanted.tokens(engine)

    def want(
        self,
        conversation: ConversationId,
        engine: EngineRecord,
        *,
        prefixes: Sequence[Prefix],
        tokens: int,
    ) -> bool:
        """A conversation will come back for its context; whether this opened the gate."""
        self._wanted.place(conversation, engine.engine, prefixes=prefixes, context_tokens=tokens)
        return self.look(engine)

    def home(self, conversation: ConversationId) -> EngineId | None:
        """The engine that a conversation's context is wanted on, if any."""
        return self._wanted.home(conversation)

    def forget(self, conversation: ConversationId) -> EngineId | None:
        """Nobody comes back for its context; the engine that it was wanted on, if any."""
        home = self._wanted.home(conversation)
        self._wanted.remove(conversation)
        return home

    def lose(self, engine: EngineRecord) -> None:
        """The engine's conversations will be computed elsewhere: nothing is wanted of it."""
        self._wanted.lose(engine.engine)
        engine.is_contended, engine.wanted_tokens = False, 0

    def look(self, engine: EngineRecord) -> bool:
        """Set the engine's gate; whether it has opened. Of unknown capacity: always open."""
        capacity = engine.capabilities.kv_tokens
        was_contended = engine.is_contended
        if capacity is None:
            engine.is_contended = True
        else:
            share = _CLOSES_AT if was_contended else _OPENS_AT
            engine.is_contended = self.tokens(engine.engine) >= share * capacity
        engine.wanted_tokens = self.tokens(engine.engine)
        return engine.is_contended and not was_contended

    def check(self) -> None:
        """Assert that the account adds up."""
        self._wanted.check()
