"""How far tenants' shares over several replicas move apart, and the bound that docs/fairness.md
states for it. Watches schedulers of one process, so that what each of them does not know is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import Dispatch, Instant, StepFinished, StepId, TenantId
from agentsched.policy import Prices


@dataclass(slots=True)
class Parts:
    """What the bound of one tenant is made of, in weighted units, over all replicas."""

    estimate: float = 0.0
    error: float = 0.0
    in_flight: int = 0
    #: The most that some replica did not know of what the others had charged it.
    hidden: float = 0.0


@dataclass(slots=True)
class Window:
    """A time in which two tenants wait on every replica."""

    least: float
    most: float
    #: How far the replicas disagreed about who was ahead when it began.
    disagreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far a gap moved in its window so far, and how far it may, in weighted units."""

    pair: tuple[TenantId, TenantId]
    width: float
    bound: float


@dataclass(slots=True, kw_only=True)
class GapWatch:
    """Accounts of some tenants on all replicas. Memory is charged nothing (`prices.memory` 0).

    Call `took` for every entry of every replica's journal, and `gaps` whenever it is to be known.
    """

    schedulers: Sequence[Scheduler]
    tenants: Sequence[TenantId]
    prices: Prices
    burst: float
    parts: dict[TenantId, Parts] = field(default_factory=lambda: defaultdict(Parts))
    _windows: dict[tuple[TenantId, TenantId], Window] = field(default_factory=dict)
    #: Steps that run: whose they are, of which weight, and what they were charged.
    _sent_steps: dict[StepId, tuple[TenantId, float, float]] = field(default_factory=dict)

    def took(self, scheduler: Scheduler, entry: JournalEntry) -> None:
        """A replica had a turn: note what it sent and what came back."""
        for command in entry.commands:
            if isinstance(command, Dispatch) and command.step in scheduler.steps:
                self._sent(scheduler, command.step)
        if isinstance(entry.event, StepFinished):
            self._settled(entry.event)

    def gaps(self, *, now: Instant) -> list[Gap]:
        """Pairs of tenants that wait on every replica."""
        for tenant in self.tenants:
            total, parts = self.charged(tenant, now=now), self.parts[tenant]
            for scheduler in self.schedulers:
                parts.hidden = max(parts.hidden, total - known(scheduler, tenant, now=now))
        found = [self._gap(pair, now=now) for pair in combinations(sorted(self.tenants), 2)]
        return [gap for gap in found if gap is not None]

    def charged(self, tenant: TenantId, *, now: Instant) -> float:
        """What all replicas together charged a tenant, each step once, by its weight."""
        return sum(known(s, tenant, now=now) - self.heard(s, tenant) for s in self.schedulers)

    def heard(self, scheduler: Scheduler, tenant: TenantId) -> float:
        """What a replica charged a tenant for what others served, by its weight."""
        account = scheduler.tenants.get(tenant)
        if account is None:
            return 0.0
        uncached, output, _ = account.elsewhere
        return (self.prices.prefill * uncached + self.prices.output * output) / account.weight

    def _sent(self, scheduler: Scheduler, key: StepId) -> None:
        step = scheduler.steps[key]
        account = scheduler.tenants[step.tenant]
        units = self.prices.prefill * step.uncached_charged
        units += self.prices.output * step.output_charged
        estimate = units / account.weight
        self._sent_steps[key] = step.tenant, account.weight, estimate
        parts = self.parts[step.tenant]
        parts.estimate = max(parts.estimate, estimate)
        accounts = [s.tenants.get(step.tenant) for s in self.schedulers]
        parts.in_flight = max(parts.in_flight, sum(a.running_steps for a in accounts if a))

    def _settled(self, event: StepFinished) -> None:
        sent = self._sent_steps.pop(event.step, None)
        if sent is None:
            return
        tenant, weight, estimate = sent
        usage = event.usage
        uncached = max(0, usage.prompt_tokens - (usage.cached_tokens or 0))
        actual = self.prices.prefill * uncached + self.prices.output * usage.output_tokens
        parts = self.parts[tenant]
        parts.error = max(parts.error, actual / weight - estimate)

    def _gap(self, pair: tuple[TenantId, TenantId], *, now: Instant) -> Gap | None:
        one, two = pair
        if not all(_waits(s, tenant) for s in self.schedulers for tenant in pair):
            self._windows.pop(pair, None)
            return None
        gap = self.charged(one, now=now) - self.charged(two, now=now)
        window = self._windows.get(pair)
        if window is None:
            opinions = [ahead(s, one, two, now=now) for s in self.schedulers]
            window = self._windows[pair] = Window(gap, gap, max(opinions) - min(opinions))
        window.least, window.most = min(window.least, gap), max(window.most, gap)
        bound = 2 * self.burst + window.disagreement
        for parts in (self.parts[one], self.parts[two]):
            bound += parts.estimate * (1 + parts.in_flight) + parts.error * parts.in_flight
            bound += 2 * parts.hidden
        return Gap(pair=pair, width=window.most - window.least, bound=bound)


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
