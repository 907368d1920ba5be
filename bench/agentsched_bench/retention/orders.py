"""Orders of eviction: by last use, by the future, and by the pin policies of the product.

The policies are the very objects that the proxy asks. A pin policy says for a paused conversation
how long to keep it from now, and what it is worth; what it does not keep goes first, longest unused
first, then what it keeps, least value first: a soft pin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Final, cast

from agentsched.kernel import Scheduler
from agentsched.kernel.records import Pause
from agentsched.model import (
    Capabilities,
    ConversationId,
    EngineId,
    Event,
    Instant,
    Nanos,
    Prefix,
    ProgramId,
    StepFinished,
    after,
    between,
)
from agentsched.policy import EngineView, PinPolicy, Retention, World
from agentsched_bench.retention.pools import Segment
from agentsched_bench.retention.reference import Reference

#: A word about a pause is asked for again when the pause has grown by this share.
_STALE_SHARE: Final = 0.1
_STALE_MIN: Final = Nanos(250_000_000)

Victims = Sequence[tuple[Segment, int]]


def least_recent(now: Instant, free: Iterable[Segment]) -> Victims:
    """Longest unused first; a head after what rests on it."""
    order = sorted(free, key=lambda s: (s.used_at, s.is_head, s.name))
    return [(segment, segment.cached) for segment in order]


class Clairvoyant:
    """Bélády's: what is needed furthest in the future goes first, what is never needed before all.

    With blocks of one size and one price no policy computes fewer tokens again.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __call__(self, now: Instant, free: Iterable[Segment]) -> Victims:
        pieces: list[tuple[float, bool, str, Segment, int]] = []
        for segment in free:
            if segment.is_head:
                at = (
                    self._reference.next_head(segment.name.removeprefix("head "), now=now)
                    if (segment.name.removeprefix("head ") in self._reference.heads)
                    else None
                )
                pieces.append(
                    (-inf if at is None else -at, True, segment.name, segment, segment.cached)
                )
                continue
            call = self._reference.next_call(ConversationId(segment.name), now=now)
            at, keep = call if call is not None else (None, 0)
            dead = max(0, segment.cached - keep)
            if dead:
                pieces.append((-inf, False, segment.name, segment, -(-dead // 16) * 16))
            if at is not None and segment.cached > dead:
                pieces.append((-at, False, segment.name, segment, segment.cached - dead))
        pieces.sort(key=lambda piece: piece[:3])
        return [(segment, tokens) for *_, segment, tokens in pieces]


@dataclass(slots=True)
class _PoolEngine:
    """The engine as policies see it, with this pool's size."""

    _engine: EngineView
    capabilities: Capabilities

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class _PoolWorld:
    """The scheduler's world, in which the engine has this pool."""

    def __init__(self, scheduler: Scheduler, *, capacity: int) -> None:
        self._world = scheduler.world
        self._capacity = capacity
        self.used = 0
        self._engines: dict[EngineId, EngineView] = {}

    @property
    def engines(self) -> Mapping[EngineId, EngineView]:
        if not self._engines:
            for key, engine in self._world.engines.items():
                can = replace(engine.capabilities, kv_tokens=self._capacity)
                self._engines[key] = cast("EngineView", _PoolEngine(engine, can))
        return self._engines

    def resident_tokens(self, engine: EngineId) -> int:
        return self.used

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)


@dataclass(slots=True)
class _Word:
    head: str
    since: Instant
    asked_at: Instant
    retention: Retention | None
    until: Instant = field(default=Instant(0))


class ByPolicy:
    """The order of a pin policy, asked about every paused conversation when room is needed."""

    def __init__(
        self,
        policy: PinPolicy,
        scheduler: Scheduler,
        *,
        capacity: int,
        programs: Mapping[ConversationId, ProgramId],
    ) -> None:
        self.policy = policy
        self._scheduler = scheduler
        self.world = _PoolWorld(scheduler, capacity=capacity)
        self._programs = programs
        self._words: dict[str, _Word] = {}
        self.asked = 0

    def observe(self, event: Event, *, now: Instant, cached: int | None) -> None:
        """Let the policy learn, with what was cached in its own pool."""
        if cached is not None and isinstance(event, StepFinished):
            event = replace(event, usage=replace(event.usage, cached_tokens=cached))
        self.policy.observe(event, now=now)

    def __call__(self, now: Instant, free: Iterable[Segment]) -> Victims:
        segments = list(free)
        pieces: list[tuple[float, float, Instant, bool, str, Segment, int]] = []
        for segment in segments:
            if not segment.is_head:
                word = self._word(segment, now=now)
                is_kept = word is not None and word.prefix is None
                tier, value = (1.0, word.value) if word is not None and is_kept else (0.0, 0.0)
                used, name = segment.used_at, segment.name
                pieces.append((tier, value, used, False, name, segment, segment.cached))
        heads = self._heads(now)
        for segment in segments:
            if segment.is_head:
                tier, value = (1.0, heads[segment.name]) if segment.name in heads else (0.0, 0.0)
                used, name = segment.used_at, segment.name
                pieces.append((tier, value, used, True, name, segment, segment.cached))
        pieces.sort(key=lambda piece: piece[:5])
        return [(segment, tokens) for *_, segment, tokens in pieces]

    def _heads(self, now: Instant) -> dict[str, float]:
        """What is kept of each head, by those who rest on it: the chances of a return add up."""
        heads: dict[str, float] = {}
        over = [name for name, word in self._words.items() if word.until <= now]
        for name in over:
            if self._words[name].retention is not None:
                self._words[name].retention = None
        for word in self._words.values():
            if word.retention is not None and word.until > now:
                heads[word.head] = heads.get(word.head, 0.0) + max(0.0, word.retention.value)
        return heads

    def _word(self, segment: Segment, *, now: Instant) -> Retention | None:
        word = self._words.get(segment.name)
        since = segment.used_at
        if word is not None and word.since == since:
            grown = between(since, now) * _STALE_SHARE + _STALE_MIN
            if between(word.asked_at, now) < grown:
                return word.retention if word.until > now else None
        retention = self._ask(ConversationId(segment.name), now=now)
        until = after(now, retention.ttl) if retention is not None else Instant(0)
        self._words[segment.name] = _Word(segment.head, since, now, retention, until)
        return retention

    def _ask(self, key: ConversationId, *, now: Instant) -> Retention | None:
        program = self._scheduler.programs.get(self._programs[key])
        conversation = program.conversations.get(key) if program is not None else None
        if program is None or conversation is None or conversation.paused_at is None:
            return None
        if conversation.engine is None or not conversation.prefixes:
            return None
        whole = conversation.prefixes[-1]
        pause = Pause(
            program=program.program,
            conversation=key,
            tenant=program.tenant,
            tools=conversation.tools,
            since=conversation.paused_at,
            engine=conversation.engine,
            prefix=Prefix(prefix=whole.prefix, tokens=conversation.context_tokens),
        )
        self.asked += 1
        return self.policy.retain(pause, cast("World", self.world), now=now)
