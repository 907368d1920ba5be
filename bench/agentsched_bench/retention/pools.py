"""A cache of a fixed size, in whole blocks, that evicts in the order it is told.

A conversation's own tokens are one stack: the engine's cache is a prefix cache, so its end goes
before its beginning, and a head that others share goes after every conversation's own tokens that
rest on it and are worth no more. Blocks of running calls stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agentsched.model import Instant
from agentsched_bench.retention.reference import Use

BLOCK: Final = 16


def blocks_of(tokens: int) -> int:
    """Whole blocks that these tokens fill."""
    return tokens // BLOCK * BLOCK


@dataclass(slots=True, kw_only=True)
class Segment:
    """One stack of cached tokens: a head, or what one conversation has of its own."""

    name: str
    head: str
    is_head: bool = False
    cached: int = 0
    #: The most that was ever computed of it: less of that now is computed again.
    seen: int = 0
    running: int = 0
    used_at: Instant


@dataclass(slots=True, kw_only=True)
class Bill:
    """Tokens: of prompts, computed, and computed though that had been done before."""

    prompt_tokens: int = 0
    computed_tokens: int = 0
    again_tokens: int = 0
    calls: int = 0
    #: Tokens by which running calls exceeded the pool.
    excess_tokens: int = 0


#: Victims in the order of eviction, each with the tokens that may go from its end.
Order = Callable[[Instant, Iterable[Segment]], Sequence[tuple[Segment, int]]]


class Pool:
    """`capacity` tokens. `order` says who goes first; asked once whenever room is needed."""

    def __init__(self, *, capacity: int, order: Order, shares_heads: bool = True) -> None:
        self.capacity = blocks_of(capacity)
        self._order = order
        self._shares_heads = shares_heads
        self.segments: dict[str, Segment] = {}
        self.used = 0
        self.bill = Bill()

    def begin(self, use: Use, *, now: Instant, is_counted: bool) -> int:
        """A call starts: returns how many tokens of its prompt were cached."""
        head = self._segment(self._head_of(use), use, now=now, is_head=True)
        own = self._segment(use.conversation, use, now=now)
        head_tokens = blocks_of(use.head_tokens)
        hit_head = min(head.cached, head_tokens)
        keep = blocks_of(use.keep)
        if hit_head < head_tokens:
            self._set(own, 0)
        hit_own = min(own.cached, keep)
        again = min(head.seen, head_tokens) - hit_head + min(own.seen, keep) - hit_own
        prompt = use.head_tokens + use.own
        if is_counted:
            self.bill.calls += 1
            self.bill.prompt_tokens += prompt
            self.bill.again_tokens += max(0, again)
            self.bill.computed_tokens += prompt - hit_head - hit_own
        head.running += 1
        own.running += 1
        head.used_at = own.used_at = now
        # What the prompt does not go on with is not its prefix any more.
        self._set(own, hit_own)
        own.seen = blocks_of(use.own)
        head.seen = max(head.seen, head_tokens)
        self._make_room(max(0, head_tokens - head.cached) + own.seen - own.cached, now=now)
        self._set(head, max(head.cached, head_tokens))
        self._set(own, own.seen)
        return hit_head + hit_own

    def end(self, use: Use, *, now: Instant) -> None:
        """The call is over; its blocks may go."""
        for name in (self._head_of(use), use.conversation):
            segment = self.segments[name]
            segment.running -= 1
            segment.used_at = now

    def check(self) -> None:
        """Assert that the account adds up."""
        assert self.used == sum(s.cached for s in self.segments.values())
        assert all(s.cached >= 0 and s.running >= 0 for s in self.segments.values())

    def _head_of(self, use: Use) -> str:
        return f"head {use.head if self._shares_heads and use.head else use.conversation}"

    def _segment(self, name: str, use: Use, *, now: Instant, is_head: bool = False) -> Segment:
        segment = self.segments.get(name)
        if segment is None:
            head = self._head_of(use)
            segment = Segment(name=name, head=head, is_head=is_head, used_at=now)
            self.segments[name] = segment
        return segment

    def _set(self, segment: Segment, tokens: int) -> None:
        self.used += tokens - segment.cached
        segment.cached = tokens

    def _make_room(self, tokens: int, *, now: Instant) -> None:
        short = self.used + tokens - self.capacity
        if short <= 0:
            return
        free = [s for s in self.segments.values() if s.cached and not s.running]
        for segment, most in self._order(now, free):
            gone = min(segment.cached, blocks_of(most), -(-short // BLOCK) * BLOCK)
            self._set(segment, segment.cached - gone)
            short -= gone
            if short <= 0:
                return
        self.bill.excess_tokens += short
