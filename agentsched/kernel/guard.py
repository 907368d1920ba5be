"""The policies behind a guard: they are strangers' code and must not take a turn down with them.

A policy that raises, or answers with something that is no answer, is counted, and for that one
decision the plainest rule stands in: arrival order, the engine sent the fewest steps, let in, no
pin, no warm-up. The stand-ins depend on nothing but the question, so a journal still replays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Final, Protocol, cast

from agentsched.kernel.books import Books
from agentsched.kernel.briefing import briefing
from agentsched.kernel.doors import may_pin, may_warm
from agentsched.kernel.records import EngineRecord, Pause, StepRecord
from agentsched.kernel.turns import take_turns
from agentsched.model import Command, Event, Instant, Limits, Nanos, Prefix, TenantId
from agentsched.policy import (
    Admission,
    Admitted,
    Held,
    PolicySet,
    Prices,
    Retention,
    SortKey,
    TurnedAway,
)
from agentsched.policy.registry import POINTS

_INT64: Final = 2**63


class _Observe(Protocol):
    def __call__(self, event: Event, *, now: Instant) -> None: ...


class GuardedPolicies:
    """Asks the policies of a set; never raises what they raise."""

    def __init__(self, policies: PolicySet, *, books: Books) -> None:
        self._books = books
        #: How often each question failed, by `point.method`.
        self.errors: dict[str, int] = {}
        #: What was raised last in this process, for the host's log.
        self.latest_error: Exception | None = None
        self._set = policies
        self._take(policies)

    def __getstate__(self) -> dict[str, object]:
        # What a stranger raised may be of any class, and hold anything: an image of the scheduler
        # could not be read, nor a twin of it be made, for one failure that was stood in for.
        return {**vars(self), "latest_error": None}

    def adopt(self, policies: PolicySet, *, now: Instant) -> None:
        """Ask these from now on. Those that are new are first told how things stand."""
        old, self._set = self._set, policies
        newcomers = [p for p in POINTS if getattr(policies, p) is not getattr(old, p)]
        self._take(policies)
        story = list(briefing(self._books)) if newcomers else []
        for point in newcomers:
            for event, at in story:
                self._tell(f"{point}.observe", getattr(policies, point).observe, event, now=at)

    def _take(self, policies: PolicySet) -> None:
        self.names: Mapping[str, str] = policies.names
        self._has_room = getattr(policies.admit, "has_room", None)
        self._shuts_out = getattr(policies.admit, "shuts_out", None)
        self._best = getattr(policies.place, "best", None)
        self._continues = getattr(policies.share, "may_continue", None)
        prices = getattr(policies.share, "prices", Prices())
        is_asked = not getattr(policies.share, "is_neutral", False)
        prices = prices if isinstance(prices, Prices) else Prices()
        self._books.shares.set_policy(prices if is_asked else None, now=self._books.now)
        self._observers = [
            (f"{point}.observe", getattr(policies, point).observe) for point in POINTS
        ]
        if self._books.graph_builder is not None:
            self._observers.append(("graph.observe", self._books.graph_builder.observe))
        told = [*((point, getattr(policies, point)) for point in POINTS)]
        told.append(("graph", self._books.graph_builder))
        #: Whoever wants to know what was decided: policies keep accounts by engine with it.
        self._told = [(f"{n}.decided", t.decided) for n, t in told if hasattr(t, "decided")]

    def stop_learning(self) -> None:
        """From now on only ask: for a dry run, whose policies are shared with the real one."""
        self._observers, self._told = [], []
        # What it knows of those that wait to begin, it knows from being told.
        self._shuts_out = None

    def observe(self, event: Event, *, now: Instant) -> None:
        """Let every policy and the graph learn from an event."""
        for name, observe in self._observers:
            try:
                observe(event, now=now)
            except Exception as error:
                self._count(name, error)

    def _tell(self, name: str, observe: _Observe, event: Event, *, now: Instant) -> None:
        try:
            observe(event, now=now)
        except Exception as error:
            self._count(name, error)

    def set_limits(self, limits: Limits) -> None:
        """Let the graph know the ceilings that were set anew, where it has such."""
        set_limits = getattr(self._books.graph_builder, "set_limits", None)
        if set_limits is None:
            return
        try:
            set_limits(limits)
        except Exception as error:
            self._count("graph.set_limits", error)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        """Let policies and the graph know what this turn decided, where they want to."""
        if not commands:
            return
        for name, decided in self._told:
            try:
                decided(commands, now=now)
            except Exception as error:
                self._count(name, error)

    def in_turn(self, *, now: Instant, newcomers: bool = True) -> Iterable[StepRecord]:
        """The waiting steps, next one first: tenants by the share policy, steps by the order's.

        To be walked while steps are sent, since each that is changes whose turn it is. Without
        `newcomers` they may be left out, and are where that cannot change the order of the others:
        between tenants of equal rank their arrival can.
        """
        shares = self._books.shares
        has_shares = shares.is_active and shares.waiting_tenants > 1
        first = self._rank_tenants(now=now) if has_shares else None
        if first is None:
            return self.in_order(now=now, newcomers=newcomers)
        known = dict(first)
        waiting = len(self._books.ready)

        def rank(tenant: TenantId) -> SortKey:
            # What tenants were charged changes when a step goes, and is asked for at every look.
            nonlocal waiting
            if waiting != len(self._books.ready):
                waiting = len(self._books.ready)
                known.clear()
            if tenant not in known:
                key = self._rank_tenant(tenant, now=now)
                known[tenant] = first[tenant] if key is None else key
            return known[tenant]

        return take_turns(
            self.in_order(now=now),
            rank=rank,
            may_continue=lambda tenant: self._may_continue(tenant, now=now),
            is_resident=lambda step: self._books.conversation(step).is_resident,
        )

    def _rank_tenants(self, *, now: Instant) -> dict[TenantId, SortKey] | None:
        """The ranks of all that wait; None where tenants do not matter, or one cannot be ranked:
        whoever has none would be before or behind all others, and nobody said so."""
        known: dict[TenantId, SortKey] = {}
        for tenant in self._books.shares.who_waits():
            key = self._rank_tenant(tenant, now=now)
            if key is None:
                return None
            known[tenant] = key
        return known

    def _rank_tenant(self, tenant: TenantId, *, now: Instant) -> SortKey | None:
        try:
            account = self._books.shares.view(tenant)
            return _sort_key(self._set.share.rank_tenant(account, self._books, now=now))
        except Exception as error:
            self._count("share.rank_tenant", error)
            return None

    def _may_continue(self, tenant: TenantId, *, now: Instant) -> bool:
        if self._continues is None:
            return False
        try:
            account = self._books.shares.view(tenant)
            return bool(self._continues(account, self._books, now=now))
        except Exception as error:
            self._count("share.may_continue", error)
            return False

    def in_order(self, *, now: Instant, newcomers: bool = True) -> list[StepRecord]:
        """The waiting steps by the order policy; by arrival when any rank fails."""
        rank, books = self._set.order.rank, self._books

        def key(step: StepRecord) -> SortKey:
            return rank(step, books, now=now)

        try:
            return books.ready.in_order(key, newcomers=newcomers)
        except Exception as error:
            self._count("order.rank", error)
            return list(books.ready)

    def priority(self, step: StepRecord, *, now: Instant) -> int:
        """The number for the engine's queue; 0 when the policy fails."""
        try:
            return _int64(self._set.order.priority(step, self._books, now=now))
        except Exception as error:
            self._count("order.priority", error)
            return 0

    def best(
        self, step: StepRecord, engines: Sequence[EngineRecord], *, now: Instant
    ) -> EngineRecord:
        """The engine of the greatest score; the one sent the fewest steps when a score fails."""
        score, books = self._set.place.score, self._books
        try:
            if self._best is not None:
                return _one_of(engines, self._best(step, engines, books, now=now))
            scored = [(-score(step, e, books, now=now), e.engine, e) for e in engines]
            return min(scored, key=lambda entry: entry[:2])[2]
        except Exception as error:
            self._count("place.score", error)
            return min(engines, key=lambda e: (e.dispatched_total, e.engine))

    @property
    def tells_room(self) -> bool:
        """Whether the admission policy can say that an engine has no room for anyone."""
        return self._has_room is not None

    def shuts_out(self, engines: Sequence[EngineRecord], *, now: Instant) -> Held | None:
        """What every newcomer is told in this turn; None when each is to be asked for."""
        if self._shuts_out is None:
            return None
        try:
            return _same_for_all(self._shuts_out(engines, self._books, now=now))
        except Exception as error:
            self._count("admit.shuts_out", error)
            return None

    def admit(self, step: StepRecord, engine: EngineRecord, *, now: Instant) -> Admission:
        """The admission policy's answer; let in when it fails."""
        try:
            return _admission(self._set.admit.admit(step, engine, self._books, now=now))
        except Exception as error:
            self._count("admit.admit", error)
            return Admitted()

    def has_room(self, engine: EngineRecord, *, now: Instant) -> bool:
        """Whether asking `admit` for this engine is worth it; yes when the policy fails."""
        if self._has_room is None:
            return True
        try:
            return bool(self._has_room(engine, self._books, now=now))
        except Exception as error:
            self._count("admit.has_room", error)
            return True

    def retain(self, pause: Pause, *, now: Instant) -> Retention | None:
        """What the pin policy wants kept; nothing when it fails."""
        try:
            if not may_pin(pause, self._books):
                return None
            retention = self._set.pin.retain(pause, self._books, now=now)
            if retention is not None:
                _int64(retention.ttl)
                _finite(retention.value)
                _beginning(retention.prefix)
            return retention
        except Exception as error:
            self._count("pin.retain", error)
            return None

    def warm_at(self, pause: Pause, *, now: Instant) -> Instant | None:
        """When the prefetch policy wants a warm-up; never when it fails."""
        try:
            if not may_warm(pause, self._books):
                return None
            at = self._set.prefetch.warm_at(pause, self._books, now=now)
            return None if at is None else Instant(_int64(at))
        except Exception as error:
            self._count("prefetch.warm_at", error)
            return None

    def _count(self, name: str, error: Exception) -> None:
        self.errors[name] = self.errors.get(name, 0) + 1
        self.latest_error = error


def _one_of(engines: Sequence[EngineRecord], chosen: object) -> EngineRecord:
    for engine in engines:
        if engine is chosen:
            return engine
    raise TypeError(f"none of the engines: {chosen!r}")


def _int64(value: object) -> int:
    # Exactly: a bool or another library's integer would not come back from the journal as it was.
    if type(value) is not int or not -_INT64 <= value < _INT64:
        raise TypeError(f"not a whole number of 64 bits: {value!r}")
    return value


def _finite(value: object) -> None:
    is_number = type(value) is int or type(value) is float
    if not is_number or not isfinite(cast("float", value)):
        raise TypeError(f"not a finite number: {value!r}")


def _beginning(value: object) -> None:
    match value:
        case None:
            return
        case Prefix(prefix=name, tokens=tokens) if _int64(tokens) >= 0:
            name.encode()  # it goes into the journal
        case _:
            raise TypeError(f"not the beginning of a context: {value!r}")


def _sort_key(value: SortKey | None) -> SortKey | None:
    if value is not None:
        if not isinstance(value, tuple):
            raise TypeError(f"not a rank: {value!r}")
        for part in value:
            _finite(part)
    return value


def _texts(value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"not a tuple of ids: {value!r}")


def _same_for_all(answer: Held | None) -> Held | None:
    if answer is None:
        return None
    match _admission(answer):
        case Held(until=None, blocks_others=False):
            return answer
        case _:
            raise TypeError(f"shuts nobody out: {answer!r}")


def _admission(answer: Admission) -> Admission:
    match answer:
        case Admitted(releases=releases):
            _texts(releases)
        case Held(reason=reason, until=until):
            reason.encode()
            _int64(until if until is not None else 0)
        case TurnedAway(reason=reason, retry_after=retry_after):
            reason.encode()  # it goes into the journal
            _int64(retry_after if retry_after is not None else Nanos(0))
        case _:
            raise TypeError(f"not an admission: {answer!r}")
    return answer
