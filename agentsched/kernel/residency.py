"""What we believe to lie in each engine's KV cache, with shared prefixes counted once.

A prompt is a chain of ever longer prefixes; the piece between two of them is a segment, named by
the longer prefix. Equal beginnings have equal names, so the segments of all resident conversations
form a tree, and a segment is paid for once however many conversations share it. Recorded coding
agents share 15,500 of the 19,000 tokens of their first prompts: an account that adds up whole
contexts leaves most of the cache unused.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agentsched.model import ConversationId, EngineId, Prefix, PrefixId


@dataclass(slots=True)
class _Segment:
    tokens: int
    owners: int = 0


@dataclass(slots=True)
class _Cache:
    segments: dict[PrefixId, _Segment] = field(default_factory=dict)
    #: Segment names of each resident conversation, its own tail beyond them, and how many were
    #: placed before it.
    held: dict[ConversationId, tuple[tuple[PrefixId, ...], int, int]] = field(default_factory=dict)
    #: Those that rest, with that number, and in its order.
    resting: list[tuple[int, ConversationId]] = field(default_factory=list)
    tokens: int = 0


class Residency:
    """One account for each engine; every operation costs a chain's length, not the cache's."""

    def __init__(self) -> None:
        self._caches: dict[EngineId, _Cache] = {}
        self._home: dict[ConversationId, EngineId] = {}
        self._placed = 0

    def tokens(self, engine: EngineId) -> int:
        """Tokens resident on an engine, what is shared counted once."""
        cache = self._caches.get(engine)
        return cache.tokens if cache else 0

    def conversations(self, engine: EngineId) -> Iterator[ConversationId]:
        """Conversations resident on an engine, the one placed first coming first."""
        cache = self._caches.get(engine)
        return iter(cache.held) if cache else iter(())

    def resting(self, engine: EngineId) -> Iterator[ConversationId]:
        """Those of them that rest, in the same order."""
        cache = self._caches.get(engine)
        return (key for _, key in cache.resting) if cache else iter(())

    def home(self, conversation: ConversationId) -> EngineId | None:
        """Where a conversation is resident."""
        return self._home.get(conversation)

    def place(
        self,
        conversation: ConversationId,
        engine: EngineId,
        *,
        prefixes: Sequence[Prefix],
        context_tokens: int,
        rests: bool = False,
    ) -> None:
        """A conversation's context is (being) computed here; it leaves where it was before.

        It `rests` when nothing of it runs: its memory could be given to others.
        """
        self.remove(conversation)
        cache = self._caches.setdefault(engine, _Cache())
        names: list[PrefixId] = []
        shared = 0
        for prefix in prefixes:
            if prefix.tokens <= shared:
                continue
            segment = cache.segments.get(prefix.prefix)
            if segment is None:
                segment = cache.segments[prefix.prefix] = _Segment(prefix.tokens - shared)
                cache.tokens += segment.tokens
            segment.owners += 1
            names.append(prefix.prefix)
            shared = prefix.tokens
        tail = max(0, context_tokens - shared)
        cache.tokens += tail
        self._placed += 1
        cache.held[conversation] = (tuple(names), tail, self._placed)
        self._home[conversation] = engine
        if rests:
            cache.resting.append((self._placed, conversation))

    def rest(self, conversation: ConversationId) -> None:
        """Nothing of a conversation runs any more. Until it is placed anew; idempotent."""
        engine = self._home.get(conversation)
        if engine is None:
            return
        cache = self._caches[engine]
        entry = (cache.held[conversation][2], conversation)
        at = bisect_left(cache.resting, entry)
        if cache.resting[at : at + 1] != [entry]:
            cache.resting.insert(at, entry)

    def remove(self, conversation: ConversationId) -> None:
        """Stop counting a conversation; idempotent."""
        engine = self._home.pop(conversation, None)
        if engine is None:
            return
        cache = self._caches[engine]
        names, tail, number = cache.held.pop(conversation)
        at = bisect_left(cache.resting, (number, conversation))
        if cache.resting[at : at + 1] == [(number, conversation)]:
            del cache.resting[at]
        cache.tokens -= tail
        for name in names:
            segment = cache.segments[name]
            segment.owners -= 1
            if not segment.owners:
                cache.tokens -= segment.tokens
                del cache.segments[name]

    def chain(self, conversation: ConversationId) -> tuple[list[tuple[PrefixId, int, int]], int]:
        """What a conversation holds: name, tokens and owners of each segment, and its own tail."""
        engine = self._home.get(conversation)
        if engine is None:
            return [], 0
        cache = self._caches[engine]
        names, tail, _ = cache.held[conversation]
        segments = cache.segments
        return [(name, segments[name].tokens, segments[name].owners) for name in names], tail

    def take_out(self, conversation: ConversationId) -> tuple[list[Prefix], int]:
        """Stop counting a conversation; what `put_back` needs to undo that."""
        cache = self._caches[self._home[conversation]]
        names, tail, _ = cache.held[conversation]
        prefixes: list[Prefix] = []
        tokens = 0
        for name in names:
            tokens += cache.segments[name].tokens
            prefixes.append(Prefix(prefix=name, tokens=tokens))
        self.remove(conversation)
        return prefixes, tokens + tail

    def put_back(
        self, conversation: ConversationId, engine: EngineId, chain: tuple[list[Prefix], int]
    ) -> None:
        """Undo `take_out`."""
        prefixes, tokens = chain
        self.place(conversation, engine, prefixes=prefixes, context_tokens=tokens)

    def lose(self, engine: EngineId) -> None:
        """The engine's cache is gone."""
        cache = self._caches.pop(engine, None)
        for conversation in cache.held if cache else ():
            del self._home[conversation]

    def missing_tokens(
        self, engine: EngineId, *, prefixes: Sequence[Prefix], prompt_tokens: int
    ) -> int:
        """Tokens of a prompt that no resident conversation of this engine has computed."""
        cache = self._caches.get(engine)
        if cache is None:
            return prompt_tokens
        found = 0
        for prefix in prefixes:
            if prefix.tokens <= found:
                continue  # it adds nothing, so `place` gave it no segment
            if prefix.prefix not in cache.segments:
                break
            found = prefix.tokens
        return max(0, prompt_tokens - found)

    def own_tokens(self, conversation: ConversationId) -> int:
        """Tokens that would be free if this conversation alone went: what it shares with nobody."""
        engine = self._home.get(conversation)
        if engine is None:
            return 0
        cache = self._caches[engine]
        names, tail, _ = cache.held[conversation]
        return tail + sum(
            cache.segments[name].tokens for name in names if cache.segments[name].owners == 1
        )

    def split_tokens(self, conversation: ConversationId) -> int:
        """What a conversation holds here, of what it shares with others only its part."""
        engine = self._home.get(conversation)
        if engine is None:
            return 0
        cache = self._caches[engine]
        names, tail, _ = cache.held[conversation]
        segments = (cache.segments[name] for name in names)
        return tail + sum(segment.tokens // segment.owners for segment in segments)

    def check(self) -> None:
        """Assert that the accounts add up."""
        for engine, cache in self._caches.items():
            owners: dict[PrefixId, int] = {}
            for conversation, (names, _, _) in cache.held.items():
                assert self._home[conversation] == engine
                for name in names:
                    owners[name] = owners.get(name, 0) + 1
            assert owners == {name: s.owners for name, s in cache.segments.items()}
            total = sum(s.tokens for s in cache.segments.values())
            assert cache.tokens == total + sum(tail for _, tail, _ in cache.held.values())
            numbers = [(number, key) for key, (_, _, number) in cache.held.items()]
            assert numbers == sorted(numbers)
            assert cache.resting == sorted(set(cache.resting) & set(numbers))
        assert sum(len(c.held) for c in self._caches.values()) == len(self._home)
