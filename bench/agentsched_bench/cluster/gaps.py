"""How far tenants' shares over several replicas move apart, and the bound that docs/fairness.md
states for it. Watches schedulers of one process, so that what each of them does not know is known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf
from typing import Final

from agentsched.kernel import JournalEntry, Scheduler
from agentsched.kernel.records import StepRecord
from agentsched.model import (
    Dispatch,
    Instant,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    TenantId,
)
from agentsched.policy import Prices

_ROUNDING: Final = 1e-6


@dataclass(slots=True)
class Parts:
    """What the bound of one tenant is made of, in weighted units, over all replicas."""

    estimate: float = 0.0
    error: float = 0.0
    #: The most that some replica did not know of what the others had charged it.
    hidden: float = 0.0
    #: Charged to steps that were sent out of turn: forced, or past one that could not go.
    loose: float = 0.0
    loose_steps: int = 0


@dataclass(slots=True)
class Window:
    """A time in which two tenants wait on every replica."""

    since: Instant
    least: float
    most: float
    #: How far the replicas disagreed about who was ahead when it began.
    disagreement: float
    #: What both had been charged out of turn, and at all, when it began.
    loose: float
    charged: float
    #: By replica and tenant: the least and the most that it did not know.
    unknown: dict[tuple[int, TenantId], tuple[float, float]] = field(default_factory=dict)
    #: The most steps that a tenant had on engines at once.
    in_flight: Counter[TenantId] = field(default_factory=Counter)

    def looks(self, key: tuple[int, TenantId], unknown: float) -> None:
        least, most = self.unknown.get(key, (unknown, unknown))
        self.unknown[key] = min(least, unknown), max(most, unknown)

    def hidden(self, tenant: TenantId) -> float:
        """The most by which what some replica does not know of a tenant changed so far."""
        ranges = (
            most - least for (_, whose), (least, most) in self.unknown.items() if whose == tenant
        )
        return max(ranges, default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far a gap moved in its window so far, and how far it may, in weighted units.

    `loose` is the part of the bound that steps out of turn made; `in_flight` and `hidden` are the
    most of either tenant; `charged` is what both were charged.
    """

    pair: tuple[TenantId, TenantId]
    since: Instant
    width: float
    bound: float
    loose: float
    in_flight: int
    hidden: float
    charged: float

    @property
    def is_within(self) -> bool:
        return self.width <= self.bound + _ROUNDING


@dataclass(frozen=True, slots=True)
class _Sent:
    """A step that runs: whose it is and what that was charged for it."""

    tenant: TenantId
    estimate: float
    is_loose: bool


@dataclass(slots=True, kw_only=True)
class GapWatch:
    """Accounts of some tenants on all replicas. Memory is charged nothing (`prices.memory` 0).

    Call `took` after every turn of every replica, and `gaps` whenever it is to be known.
    """

    schedulers: Sequence[Scheduler]
    tenants: Sequence[TenantId]
    prices: Prices
    burst: float
    parts: dict[TenantId, Parts] = field(default_factory=lambda: defaultdict(Parts))
    _windows: dict[tuple[TenantId, TenantId], Window] = field(default_factory=dict)
    _running: dict[StepId, _Sent] = field(default_factory=dict)
    #: By replica and tenant: what it was charged there for steps that ended, by its weight.
    _settled: dict[tuple[int, TenantId], float] = field(default_factory=lambda: defaultdict(float))

    def took(self, scheduler: Scheduler, entry: JournalEntry) -> None:
        """A replica had a turn: note what came back and what it sent."""
        if isinstance(entry.event, StepFinished | StepFailed | StepCancelled):
            self._ended(scheduler, entry.event.step)
        self._sent(scheduler, entry)
        for tenant in self.tenants:
            self._settled[self._number(scheduler), tenant] = self._here(scheduler, tenant)

    def begin_anew(self) -> None:
        """A replica came: from now on all is counted from when both wait on that one, too."""
        self._windows.clear()

    def gaps(self, *, now: Instant, among: Sequence[Scheduler] | None = None) -> list[Gap]:
        """Pairs of tenants that wait on every replica; `among`: on each of those that live."""
        living = self.schedulers if among is None else among
        unknown: dict[tuple[int, TenantId], float] = {}
        for tenant in self.tenants:
            total, parts = self.charged(tenant, now=now), self.parts[tenant]
            for scheduler in living:
                hidden = total - known(scheduler, tenant, now=now)
                unknown[self._number(scheduler), tenant] = hidden
                parts.hidden = max(parts.hidden, hidden)
        found: list[Gap] = []
        for pair in combinations(sorted(self.tenants), 2):
            if living and all(_waits(s, tenant) for s in living for tenant in pair):
                found.append(self._gap(pair, living, unknown, now=now))
            else:
                self._windows.pop(pair, None)
        return found

    def charged(self, tenant: TenantId, *, now: Instant) -> float:
        """What all replicas together charged a tenant, each step once, by its weight."""
        return sum(known(s, tenant, now=now) - self.heard(s, tenant) for s in self.schedulers)

    def heard(self, scheduler: Scheduler, tenant: TenantId) -> float:
        """What a replica charged a tenant for what others served, by its weight."""
        account = scheduler.tenants.get(tenant)
        if account is None:
            return 0.0
        uncached, output, _ = account.elsewhere
        return self._units(uncached, output) / account.weight

    def _units(self, uncached_tokens: int, output_tokens: int) -> float:
        return self.prices.prefill * uncached_tokens + self.prices.output * output_tokens

    def _here(self, scheduler: Scheduler, tenant: TenantId) -> float:
        account = scheduler.tenants.get(tenant)
        if account is None:
            return 0.0
        return self._units(account.uncached_here, account.output_here) / account.weight

    def _number(self, scheduler: Scheduler) -> int:
        return next(n for n, known in enumerate(self.schedulers) if known is scheduler)

    def _sent(self, scheduler: Scheduler, entry: JournalEntry) -> None:
        """Note the steps of a turn; who was ahead when one was sent is reckoned from the last."""
        sent = [
            (command, scheduler.steps[command.step])
            for command in entry.commands
            if isinstance(command, Dispatch) and self._is_watched(scheduler, command.step)
        ]
        waiting = [tenant for tenant in self.tenants if _waits(scheduler, tenant)] if sent else []
        tenants = {*waiting, *(step.tenant for _, step in sent)}
        services = {t: scheduler.tenants[t].service(now=entry.now) for t in tenants}
        for command, step in reversed(sent):
            estimate = self._estimate(scheduler, step)
            services[step.tenant] -= estimate
            others = (services[tenant] for tenant in waiting if tenant != step.tenant)
            ahead = services[step.tenant] - min(others, default=inf)
            is_loose = command.order == "bound" or ahead > self.burst + _ROUNDING
            self._running[step.step] = _Sent(step.tenant, estimate, is_loose)
            parts = self.parts[step.tenant]
            parts.estimate = max(parts.estimate, estimate)
            parts.loose += estimate * is_loose
            parts.loose_steps += is_loose

    def _is_watched(self, scheduler: Scheduler, key: StepId) -> bool:
        step = scheduler.steps.get(key)
        return step is not None and step.tenant in self.tenants

    def _estimate(self, scheduler: Scheduler, step: StepRecord) -> float:
        weight = scheduler.tenants[step.tenant].weight
        return self._units(step.uncached_charged, step.output_charged) / weight

    def _ended(self, scheduler: Scheduler, key: StepId) -> None:
        sent = self._running.pop(key, None)
        if sent is None:
            return
        before = self._settled[self._number(scheduler), sent.tenant]
        error = self._here(scheduler, sent.tenant) - before - sent.estimate
        parts = self.parts[sent.tenant]
        parts.error = max(parts.error, error)
        parts.loose += max(0.0, error) * sent.is_loose

    def _gap(
        self,
        pair: tuple[TenantId, TenantId],
        living: Sequence[Scheduler],
        unknown: dict[tuple[int, TenantId], float],
        *,
        now: Instant,
    ) -> Gap:
        one, two = pair
        charged = self.charged(one, now=now), self.charged(two, now=now)
        gap, total = charged[0] - charged[1], sum(charged)
        mine, yours = self.parts[one], self.parts[two]
        window = self._windows.get(pair)
        if window is None:
            opinions = [ahead(s, one, two, now=now) for s in living]
            apart = max(opinions) - min(opinions)
            window = Window(now, gap, gap, apart, loose=mine.loose + yours.loose, charged=total)
            self._windows[pair] = window
        window.least, window.most = min(window.least, gap), max(window.most, gap)
        for key, hidden in unknown.items():
            window.looks(key, hidden)
        loose = mine.loose + yours.loose - window.loose
        bound = 2 * self.burst + window.disagreement + loose
        for tenant in pair:
            parts = self.parts[tenant]
            running = sum(s.tenants[tenant].running_steps for s in living)
            in_flight = window.in_flight[tenant] = max(window.in_flight[tenant], running)
            bound += parts.estimate * (1 + in_flight) + parts.error * in_flight
            bound += 2 * window.hidden(tenant)
        return Gap(
            pair=pair,
            since=window.since,
            in_flight=max(window.in_flight.values()),
            hidden=max(window.hidden(tenant) for tenant in pair),
            width=window.most - window.least,
            bound=bound,
            loose=loose,
            charged=total - window.charged,
        )


def known(scheduler: Scheduler, tenant: TenantId, *, now: Instant) -> float:
    """What a replica knows that a tenant was charged, here and elsewhere, by its weight."""
    account = scheduler.tenants.get(tenant)
    return account.charged(now=now) / account.weight if account else 0.0


def ahead(scheduler: Scheduler, one: TenantId, two: TenantId, *, now: Instant) -> float:
    """How far a replica takes one tenant to be ahead of another."""
    tenants = scheduler.tenants
    return tenants[one].service(now=now) - tenants[two].service(now=now)


def _waits(scheduler: Scheduler, tenant: TenantId) -> bool:
    account = scheduler.tenants.get(tenant)
    return account is not None and account.waiting_steps > 0
