"""Warm-ups: which are under way, and what came of those that are over.

A warm-up is issued once and ends once: done (its engine said so), failed, or stopped because real
work needs the engine. One that is done is a hit when the next step of its conversation finds at
least half of it in the engine's cache, and waste otherwise. Where that engine does not say what it
found, nobody knows.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from agentsched.model import (
    MINUTE,
    SECOND,
    ConversationId,
    EngineId,
    Instant,
    PinId,
    Prefetch,
    TenantId,
    between,
)

_AWAITED_MAX: Final = 10_000
#: Tokens after which earlier ones count half in what warm-ups pay.
_MEMORY_TOKENS: Final = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """One warm-up under way or awaiting its verdict."""

    pin: PinId
    conversation: ConversationId
    tenant: TenantId
    engine: EngineId
    tokens: int
    issued_at: Instant


@dataclass(slots=True, kw_only=True)
class WarmAccount:
    """Tokens of one engine's warm-ups. `issued` is the sum of the others and of what is open."""

    issued: int = 0
    hit: int = 0
    wasted: int = 0
    #: Used, or not: its engine does not tell cached tokens.
    unknown: int = 0
    cancelled: int = 0
    failed: int = 0
    #: Fading sums behind `paid`.
    recent_hit: float = 0.0
    recent: float = 0.0

    @property
    def paid(self) -> float:
        """The share of warmed tokens that were used, lately; 1 where nothing is known."""
        # As if a little had been warmed and used: a first failure is no reason to give up.
        return (self.recent_hit + 20_000.0) / (self.recent + 20_000.0)

    def judge(self, tokens: int, *, is_hit: bool) -> None:
        """A warm-up came to its verdict."""
        if is_hit:
            self.hit += tokens
        else:
            self.wasted += tokens
        fade = _MEMORY_TOKENS / (_MEMORY_TOKENS + tokens)
        self.recent = self.recent * fade + tokens
        self.recent_hit = self.recent_hit * fade + (tokens if is_hit else 0)


@dataclass(slots=True)
class _Spent:
    """What was begun for a tenant within about a second, and the latest instant of it."""

    since: Instant
    until: Instant
    tokens: int


class WarmLedger:
    """All warm-ups that are under way, and those done ones whose next step is still to come."""

    def __init__(self) -> None:
        #: All and only warm-ups under way, oldest first.
        self._open: dict[PinId, WarmUp] = {}
        #: Done ones, by conversation; the oldest is forgotten as waste.
        self._awaited: OrderedDict[ConversationId, WarmUp] = OrderedDict()
        self.accounts: dict[EngineId, WarmAccount] = {}
        #: What tenants began in the last minute, in stretches of a second, oldest first; the tenant
        #: that began one last comes last.
        self._spent: OrderedDict[TenantId, deque[_Spent]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def account(self, engine: EngineId) -> WarmAccount:
        """What came of an engine's warm-ups."""
        account = self.accounts.get(engine)
        if account is None:
            account = self.accounts[engine] = WarmAccount()
        return account

    def under_way(self) -> list[WarmUp]:
        """Those that are under way, oldest first."""
        return list(self._open.values())

    def on_engine(self, engine: EngineId) -> list[WarmUp]:
        """Those under way on an engine, oldest first."""
        return [warm for warm in self._open.values() if warm.engine == engine]

    def of_tenant(self, tenant: TenantId) -> int:
        """How many are under way for a tenant."""
        return sum(warm.tenant == tenant for warm in self._open.values())

    def begun_tokens(self, tenant: TenantId, *, now: Instant) -> int:
        """Tokens of those that were begun for a tenant within the last minute, or a little more."""
        spent = self._spent.get(tenant, ())
        return sum(one.tokens for one in spent if between(one.until, now) < MINUTE)

    def of_conversation(self, conversation: ConversationId) -> WarmUp | None:
        """The one under way for a conversation."""
        return next((w for w in self._open.values() if w.conversation == conversation), None)

    def begin(self, command: Prefetch, *, tenant: TenantId, now: Instant) -> None:
        """A warm-up is issued."""
        assert command.pin not in self._open
        assert self.of_conversation(command.conversation) is None
        self._open[command.pin] = WarmUp(
            pin=command.pin,
            conversation=command.conversation,
            tenant=tenant,
            engine=command.engine,
            tokens=command.prefix.tokens,
            issued_at=now,
        )
        self.account(command.engine).issued += command.prefix.tokens
        self._spend(tenant, command.prefix.tokens, now=now)

    def done(self, pin: PinId) -> WarmUp | None:
        """Its engine has it; None where it was stopped before."""
        warm = self._open.pop(pin, None)
        if warm is None:
            return None
        self.forget(warm.conversation)
        self._awaited[warm.conversation] = warm
        if len(self._awaited) > _AWAITED_MAX:
            self.forget(next(iter(self._awaited)))
        return warm

    def failed(self, pin: PinId) -> WarmUp | None:
        """Its engine would not, or could not."""
        warm = self._open.pop(pin, None)
        if warm is not None:
            self.account(warm.engine).failed += warm.tokens
        return warm

    def stop(self, warm: WarmUp) -> None:
        """It gives way."""
        del self._open[warm.pin]
        self.account(warm.engine).cancelled += warm.tokens

    def used(self, conversation: ConversationId, engine: EngineId, *, cached: int | None) -> None:
        """The next step of a conversation ended, and found so much in the cache of its engine."""
        warm = self._awaited.pop(conversation, None)
        if warm is None:
            return
        is_there = warm.engine == engine
        if is_there and cached is None:
            self.account(engine).unknown += warm.tokens
            return
        is_hit = is_there and cached is not None and 2 * cached >= warm.tokens
        self.account(warm.engine).judge(warm.tokens, is_hit=is_hit)

    def forget(self, conversation: ConversationId) -> None:
        """Nobody will come for what was warmed."""
        warm = self._awaited.pop(conversation, None)
        if warm is not None:
            self.account(warm.engine).judge(warm.tokens, is_hit=False)

    def forget_engine(self, engine: EngineId) -> None:
        """An engine on which none is under way is gone for good, and its account with it."""
        self.accounts.pop(engine, None)
        for key in [key for key, warm in self._awaited.items() if warm.engine == engine]:
            del self._awaited[key]

    def _spend(self, tenant: TenantId, tokens: int, *, now: Instant) -> None:
        spent = self._spent.setdefault(tenant, deque())
        if spent and between(spent[-1].since, now) < SECOND:
            # Told as begun together, at the later instant: the whole stretch counts for longer.
            spent[-1].until = now
            spent[-1].tokens += tokens
        else:
            spent.append(_Spent(now, now, tokens))
        while between(spent[0].until, now) >= MINUTE:
            spent.popleft()
        self._spent.move_to_end(tenant)
        while between(next(iter(self._spent.values()))[-1].until, now) >= MINUTE:
            self._spent.popitem(last=False)

    def check(self) -> None:
        """Assert that every issued token is accounted for."""
        waiting = [*self._open.values(), *self._awaited.values()]
        for engine, account in self.accounts.items():
            still = sum(warm.tokens for warm in waiting if warm.engine == engine)
            over = account.hit + account.wasted + account.unknown
            over += account.cancelled + account.failed
            assert account.issued == over + still
        talks = [warm.conversation for warm in self._open.values()]
        assert len(talks) == len(set(talks))
        assert all(0 < len(spent) <= MINUTE // SECOND + 1 for spent in self._spent.values())
