"""What we believe to lie in each engine's KV cache, with shared prefixes counted once.

A prompt is a chain of ever longer prefixes; the piece between two of them is a segment, named by
the longer prefix. Equal beginnings have equal names, so the segments of all resident conversations
form a tree, and a segment is paid for once however many conversations share it. Recorded coding
agents share 15,500 of the 19,000 tokens of their first prompts: an account that adds up whole
contexts leaves most of the cache unused.

Hosts name a few of a prompt's many beginnings, so two chains may name one beginning at different
places. What each says of the order of its names is put together: a name that comes to lie within a
segment divides it for all who share it, and two paths that turn out to be one become one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from agentsched.model import ConversationId, EngineId, Prefix, PrefixId


@dataclass(slots=True)
class _Segment:
    """The tokens between the longest known beginning of a prefix (`parent`) and its end."""

    tokens: int
    parent: PrefixId | None
    #: Resident conversations whose prompts go through it.
    owners: int = 0


@dataclass(slots=True)
class _Cache:
    segments: dict[PrefixId, _Segment] = field(default_factory=dict)
    #: The longest named prefix of each resident conversation, its own tail beyond that, and how
    #: many were placed before it.
    held: dict[ConversationId, tuple[PrefixId | None, int, int]] = field(default_factory=dict)
    #: Those that rest, with that number, and in its order.
    resting: list[tuple[int, ConversationId]] = field(default_factory=list)
    tokens: int = 0

    def enter(self, chain: Mapping[PrefixId, int]) -> PrefixId | None:
        """Count one more owner of these prefixes, shortest first; the deepest of them."""
        segments = self.segments
        leaf: PrefixId | None = None
        at = 0
        #: Names behind `leaf` that nobody has used so far.
        new: list[tuple[PrefixId, int]] = []
        for name, tokens in chain.items():
            segment = segments.get(name)
            if segment is None:
                new.append((name, tokens))
                continue
            if segment.parent != leaf or new:
                deeper = self._join(leaf, name)
                if deeper != name:
                    continue  # estimates of tokens contradict each other: it counts as passed
                self._split(leaf, name, [(other, mark - at) for other, mark in new])
                new.clear()
            leaf, at = name, tokens
        for name, tokens in new:
            segments[name] = _Segment(tokens - at, leaf)
            self.tokens += tokens - at
            leaf, at = name, tokens
        key = leaf
        while key is not None:
            owned = segments[key]
            owned.owners += 1
            key = owned.parent
        return leaf

    def leave(self, leaf: PrefixId | None) -> None:
        """Undo `enter`, which gave this leaf."""
        segments = self.segments
        while leaf is not None:
            segment = segments[leaf]
            segment.owners -= 1
            if not segment.owners:
                self.tokens -= segment.tokens
                del segments[leaf]
            leaf = segment.parent

    def path(self, leaf: PrefixId | None) -> Iterator[PrefixId]:
        """A prefix and its known beginnings, the longest first."""
        while leaf is not None:
            yield leaf
            leaf = self.segments[leaf].parent

    def _join(self, one: PrefixId | None, other: PrefixId) -> PrefixId:
        """Both are beginnings of one prompt: make one path of theirs. The end of it."""
        if one is None or one in self.path(other):
            return other
        first, second = self._ends(one), self._ends(other)
        common = 0
        for (name, _), (same, _) in zip(first, second, strict=False):
            if name != same:
                break
            common += 1
        parent, at = first[common - 1] if common else (None, 0)
        merged = [(end, 0, name) for name, end in first[common:]]
        merged += [(end, 1, name) for name, end in second[common:]]
        merged.sort(key=lambda entry: entry[0])  # of equals, the order of each path stays
        behind = [0, 0]
        for _, side, name in reversed(merged):
            # Whoever goes on behind it on the other path goes through it as well.
            segment = self.segments[name]
            behind[side] = segment.owners
            segment.owners += behind[1 - side]
        for end, _, name in merged:
            segment = self.segments[name]
            self.tokens += end - at - segment.tokens
            segment.tokens, segment.parent = end - at, parent
            parent, at = name, end
        assert parent is not None
        return parent

    def _split(
        self, above: PrefixId | None, name: PrefixId, new: Sequence[tuple[PrefixId, int]]
    ) -> None:
        """Enter new names between two of one path, each so many tokens behind the upper one."""
        if not new:
            return
        between = list(takewhile(lambda key: key != above, self.path(name)))
        node = self.segments[between.pop()]
        at = 0
        for other, behind in new:
            while between and at + node.tokens < behind:
                at += node.tokens
                node = self.segments[between.pop()]
            tokens = min(behind - at, node.tokens)
            self.segments[other] = _Segment(tokens, node.parent, node.owners)
            node.tokens -= tokens
            node.parent = other
            at += tokens

    def _ends(self, leaf: PrefixId) -> list[tuple[PrefixId, int]]:
        """The path to a prefix, from the first token on, and where each piece ends."""
        ends: list[tuple[PrefixId, int]] = []
        at = 0
        for name in reversed(list(self.path(leaf))):
            at += self.segments[name].tokens
            ends.append((name, at))
        return ends


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
        chain: dict[PrefixId, int] = {}
        shared = 0
        for prefix in prefixes:
            shared = max(shared, prefix.tokens)
            chain.setdefault(prefix.prefix, shared)
        leaf = cache.enter(chain)
        tail = max(0, context_tokens - shared)
        cache.tokens += tail
        self._placed += 1
        cache.held[conversation] = (leaf, tail, self._placed)
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
        leaf, tail, number = cache.held.pop(conversation)
        at = bisect_left(cache.resting, (number, conversation))
        if cache.resting[at : at + 1] == [(number, conversation)]:
            del cache.resting[at]
        cache.tokens -= tail
        cache.leave(leaf)

    def chain(self, conversation: ConversationId) -> tuple[list[tuple[PrefixId, int, int]], int]:
        """What a conversation holds: name, tokens and owners of each segment, and its own tail."""
        engine = self._home.get(conversation)
        if engine is None:
            return [], 0
        cache = self._caches[engine]
        leaf, tail, _ = cache.held[conversation]
        pieces = [(name, cache.segments[name]) for name in cache.path(leaf)]
        return [(name, s.tokens, s.owners) for name, s in reversed(pieces) if s.tokens], tail

    def take_out(self, conversation: ConversationId) -> tuple[list[Prefix], int]:
        """Stop counting a conversation; what `put_back` needs to undo that."""
        cache = self._caches[self._home[conversation]]
        leaf, tail, _ = cache.held[conversation]
        prefixes: list[Prefix] = []
        tokens = 0
        for name in reversed(list(cache.path(leaf))):
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
        # Whoever has a prefix has all of its beginnings, by whatever names.
        known = (p.tokens for p in reversed(prefixes) if p.prefix in cache.segments)
        return max(0, prompt_tokens - next(known, 0))

    def own_tokens(self, conversation: ConversationId) -> int:
        """Tokens that would be free if this conversation alone went: what it shares with nobody."""
        engine = self._home.get(conversation)
        if engine is None:
            return 0
        cache = self._caches[engine]
        leaf, tail, _ = cache.held[conversation]
        segments = (cache.segments[name] for name in cache.path(leaf))
        return tail + sum(segment.tokens for segment in segments if segment.owners == 1)

    def tokens_of(self, engine: EngineId, conversations: Iterable[ConversationId]) -> int:
        """Tokens that these, which are resident there, hold together, what is shared once."""
        cache = self._caches.get(engine)
        if cache is None:
            return 0
        seen: set[PrefixId] = set()
        total = 0
        for conversation in conversations:
            leaf, tail, _ = cache.held[conversation]
            total += tail
            for name in takewhile(lambda key: key not in seen, cache.path(leaf)):
                seen.add(name)
                total += cache.segments[name].tokens
        return total

    def split_tokens(self, conversation: ConversationId) -> int:
        """What a conversation holds here, of what it shares with others only its part."""
        engine = self._home.get(conversation)
        if engine is None:
            return 0
        cache = self._caches[engine]
        leaf, tail, _ = cache.held[conversation]
        segments = (cache.segments[name] for name in cache.path(leaf))
        return tail + sum(segment.tokens // segment.owners for segment in segments)

    def check(self) -> None:
        """Assert that the accounts add up."""
        for engine, cache in self._caches.items():
            owners: dict[PrefixId, int] = {}
            for conversation, (leaf, _, _) in cache.held.items():
                assert self._home[conversation] == engine
                for name in cache.path(leaf):
                    owners[name] = owners.get(name, 0) + 1
            assert owners == {name: s.owners for name, s in cache.segments.items()}
            assert all(segment.tokens >= 0 for segment in cache.segments.values())
            total = sum(s.tokens for s in cache.segments.values())
            assert cache.tokens == total + sum(tail for _, tail, _ in cache.held.values())
            numbers = [(number, key) for key, (_, _, number) in cache.held.items()]
            assert numbers == sorted(numbers)
            assert cache.resting == sorted(set(cache.resting) & set(numbers))
        assert sum(len(c.held) for c in self._caches.values()) == len(self._home)
