"""What tenants were charged, and who of those that wait was served least.

A step is charged when it is sent, as an estimate, and settled when it ends: so the account is right
at every instant, however many steps run. KV that a paused conversation keeps is charged by time.
Weighted virtual service is the charge by the tenant's weight plus its *lift*: whoever begins to
wait is lifted to the virtual time, which is the greatest least service that any tenants that waited
had so far. Without it, a tenant that was idle for an hour could then have the engines to itself for
an hour (VTC, arXiv 2401.00588; start-time fair queueing, Goyal et al. 1996).

What other replicas serve is charged here as well, and who waits there waits: virtual time runs on
with it. Else a replica that nobody used for an hour would owe that hour to whoever came first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from agentsched.model import (
    SECOND,
    Instant,
    ProgramId,
    ServedElsewhere,
    TenantId,
    TenantLimits,
    Usage,
)
from agentsched.policy import Prices

#: Until a tenant's own mean is known.
_OUTPUT_GUESS: Final = 256
#: Accounts that are looked at to find one that may be forgotten.
_FORGET_TRIES: Final = 8
_START: Final = Instant(0)
NO_LIMITS: Final = TenantLimits()


@dataclass(slots=True, kw_only=True)
class TenantAccount:
    """One tenant's share: its weight and what it was charged; satisfies `policy.TenantView`."""

    tenant: TenantId
    weight: float = 1.0
    prices: Prices = field(default_factory=Prices)
    limits: TenantLimits = NO_LIMITS
    prompt_tokens: int = 0
    uncached_tokens: int = 0
    output_tokens: int = 0
    #: Of what it was charged, uncached and output tokens that other replicas served, and KV
    #: token-seconds that it kept there.
    elsewhere: tuple[int, int, int] = (0, 0, 0)
    #: Of `uncached_tokens` those of steps that did not get to their end: `prompt_tokens` has none
    #: of theirs.
    unfinished_tokens: int = 0
    #: Of `prompt_tokens` those of steps whose engines did not say how much of them was cached: that
    #: part of what is cached is believed.
    untold_tokens: int = 0
    steps: int = 0
    waiting_steps: int = 0
    #: Batch steps among them.
    waiting_batch: int = 0
    running_steps: int = 0
    #: Estimates of the steps that run, charged and not yet settled.
    pending_uncached: int = 0
    pending_output: int = 0
    #: KV tokens that its paused conversations keep, and token-nanoseconds of them until `idle_at`.
    idle_tokens: int = 0
    idle_token_ns: int = 0
    idle_at: Instant = _START
    lift: float = 0.0
    #: Live programs, the one opened first coming first, and whether each was begun by another.
    live: dict[ProgramId, bool] = field(default_factory=dict)
    #: How many of them were.
    live_children: int = 0
    #: Whether a step of it waits on another replica, as far as was heard.
    waits_elsewhere: bool = False

    @property
    def programs(self) -> Iterable[ProgramId]:
        return self.live

    @property
    def served_tokens(self) -> int:
        """Uncached prompt tokens plus output tokens: what an engine had to work for."""
        return self.uncached_tokens + self.output_tokens

    @property
    def uncached_here(self) -> int:
        """Uncached prompt tokens that this replica served; sums over replicas count each once."""
        return self.uncached_tokens - self.elsewhere[0]

    @property
    def output_here(self) -> int:
        """Output tokens that this replica served."""
        return self.output_tokens - self.elsewhere[1]

    @property
    def cached_here(self) -> int:
        """Prompt tokens of finished steps that their engines did not have to compute."""
        return self.prompt_tokens - (self.uncached_here - self.unfinished_tokens)

    @property
    def claiming_steps(self) -> int:
        """Waiting steps that want its share: batch work claims none."""
        return self.waiting_steps - self.waiting_batch

    @property
    def is_busy(self) -> bool:
        """Whether anything of it is live, so that its account must be kept."""
        return bool(self.live or self.waiting_steps or self.running_steps)

    def charged(self, *, now: Instant) -> float:
        """What it was charged so far, in tokens of computed prompt, steps that run included."""
        prices = self.prices
        idle = self.idle_token_ns + self.idle_tokens * max(0, now - self.idle_at)
        return (
            prices.prefill * (self.uncached_tokens + self.pending_uncached)
            + prices.output * (self.output_tokens + self.pending_output)
            + prices.memory * (idle / SECOND)
        )

    def service(self, *, now: Instant) -> float:
        return self.charged(now=now) / self.weight + self.lift

    def output_expected(self, expected: int | None, most: int | None) -> int:
        """Output tokens that a step of it will probably have."""
        if expected is None:
            # Steps are counted here alone, so what others served is no part of their mean.
            expected = self.output_here // self.steps if self.steps else _OUTPUT_GUESS
        return max(0, min(expected, most) if most is not None else expected)

    def idle_token_s(self, *, now: Instant) -> int:
        """KV token-seconds that its paused conversations kept on this replica's account."""
        idle = self.idle_token_ns + self.idle_tokens * max(0, now - self.idle_at)
        return idle // SECOND - self.elsewhere[2]

    def keep(self, tokens: int, *, now: Instant) -> None:
        """A paused conversation keeps so many tokens of KV from now on; fewer where negative."""
        self.idle_token_ns += self.idle_tokens * max(0, now - self.idle_at)
        self.idle_at = max(self.idle_at, now)
        self.idle_tokens += tokens
        assert self.idle_tokens >= 0


class ShareLedger:
    """Accounts of all tenants. A tenant that was never configured has weight 1."""

    def __init__(self, *, tenants_max: int, prices: Prices | None = None) -> None:
        self._tenants_max = tenants_max
        self._prices = prices or Prices()
        #: Weights and limits that an operator set, other than the usual ones. They outlive the
        #: accounts, whose number anybody can drive up by making up tenants.
        self._configured: dict[TenantId, tuple[float, TenantLimits]] = {}
        #: Least recently charged first.
        self._accounts: OrderedDict[TenantId, TenantAccount] = OrderedDict()
        #: All and only accounts of tenants that have a step waiting which claims a share.
        self._waiting: dict[TenantId, TenantAccount] = {}
        #: Those that have a batch step waiting. It is sent when nobody else wants to go, so what
        #: its tenant was served meanwhile says nothing of what the others are owed.
        self._background: dict[TenantId, TenantAccount] = {}
        #: Those that have a step waiting on another replica, as far as was heard.
        self._waiting_elsewhere: dict[TenantId, TenantAccount] = {}
        #: The virtual time; it never goes back, though a settled estimate may take service back.
        self._virtual = 0.0
        #: Whether anybody asks whose turn it is; if not, virtual time does not run.
        self._is_active = False

    def configure(
        self,
        tenant: TenantId,
        *,
        weight: float,
        limits: TenantLimits | None = None,
        now: Instant = _START,
    ) -> bool:
        """Set a tenant's weight and ceilings; what it was served stays, and its virtual service.

        False, and nothing changes, when the weight is not a positive number, or when as many
        tenants as there may be are configured already.
        """
        if not (weight > 0 and isfinite(weight)):
            return False
        limits = limits if limits is not None else self.view(tenant).limits
        if weight == 1.0 and limits == NO_LIMITS:
            self._configured.pop(tenant, None)
        elif tenant in self._configured or len(self._configured) < self._tenants_max:
            self._configured[tenant] = (weight, limits)
        else:
            return False
        account = self.account(tenant)
        account.limits = limits
        before = account.service(now=now)
        account.weight = weight
        account.lift += before - account.service(now=now)
        return True

    def set_bound(self, *, tenants_max: int) -> None:
        """So many accounts are kept from now on; those beyond go as others come and go."""
        self._tenants_max = tenants_max

    def set_policy(self, prices: Prices | None, *, now: Instant) -> None:
        """Charge these prices from now on; None where no policy asks for shares.

        Everybody starts level when the first policy comes, and stays where he is at the next.
        """
        was_active, self._is_active = self._is_active, prices is not None
        self._prices = prices = prices or self._prices
        for account in self._accounts.values():
            before = account.service(now=now) if was_active else self._virtual
            account.prices = prices
            account.lift += before - account.service(now=now)

    def charge(
        self,
        *,
        tenant: TenantId,
        usage: Usage,
        missing_tokens: int | None = None,
        untold_tokens: int = 0,
    ) -> int:
        """Charge a finished step; returns the served tokens it amounts to.

        `missing_tokens` is what its engine had to compute as far as we knew when it was sent; it
        counts where the engine does not say how much was cached: of `untold_tokens` of the prompt.
        """
        account = self.account(tenant)
        uncached = max(0, usage.prompt_tokens - (usage.cached_tokens or 0))
        if usage.cached_tokens is None and missing_tokens is not None:
            uncached = min(uncached, missing_tokens)
        account.prompt_tokens += usage.prompt_tokens
        account.untold_tokens += untold_tokens
        account.uncached_tokens += uncached
        account.output_tokens += usage.output_tokens
        account.steps += 1
        return uncached + usage.output_tokens

    def charge_part(self, *, tenant: TenantId, uncached_tokens: int, output_tokens: int) -> None:
        """Charge what was done of a step that did not get to its end."""
        account = self.account(tenant)
        account.uncached_tokens += uncached_tokens
        account.unfinished_tokens += uncached_tokens
        account.output_tokens += output_tokens

    def charge_elsewhere(self, event: ServedElsewhere, *, now: Instant) -> None:
        """Charge what another replica served; shares hold over all of them.

        Whoever was served had waited first, be it for no time: it is taken to have waited here.
        """
        account = self.account(event.tenant)
        uncached, output = max(0, event.uncached_tokens), max(0, event.output_tokens)
        idle = max(0, event.idle_token_s)
        if uncached or output or event.waits:
            self._begin(account, self._waiting_elsewhere, now=now)
        if self._is_active:
            self._run_on(now=now)
        if not event.waits:
            self._waiting_elsewhere.pop(event.tenant, None)
        account.waits_elsewhere = event.waits
        account.uncached_tokens += uncached
        account.output_tokens += output
        account.idle_token_ns += idle * SECOND
        before = account.elsewhere
        account.elsewhere = (before[0] + uncached, before[1] + output, before[2] + idle)

    def deadline(self, tenant: TenantId, *, now: Instant) -> Instant | None:
        """The deadline of a program of this tenant that begins now and names none."""
        span = self.view(tenant).limits.deadline_ns
        return Instant(now + span) if span is not None else None

    def served(self, tenant: TenantId) -> float:
        """Weighted service: served tokens divided by the tenant's weight."""
        account = self._accounts.get(tenant)
        return account.served_tokens / account.weight if account else 0.0

    def accounts(self) -> Mapping[TenantId, TenantAccount]:
        """All accounts, least recently used first."""
        return self._accounts

    def view(self, tenant: TenantId) -> TenantAccount:
        """A tenant's account, or an empty one that is not kept."""
        account = self._accounts.get(tenant)
        return account if account is not None else self._fresh(tenant)

    @property
    def is_active(self) -> bool:
        """Whether a policy asks whose turn it is."""
        return self._is_active

    @property
    def waiting_tenants(self) -> int:
        """How many tenants have a step waiting here."""
        if self._background:
            return len(self._waiting.keys() | self._background.keys())
        return len(self._waiting)

    def who_waits(self) -> Iterator[TenantId]:
        """The tenants that have a step waiting here, each once."""
        yield from self._waiting
        yield from (tenant for tenant in self._background if tenant not in self._waiting)

    @property
    def claiming_tenants(self) -> int:
        """How many of them wait with more than batch work."""
        return len(self._waiting)

    def least_service(self, *, now: Instant) -> float:
        """The least weighted virtual service of a tenant that waits anywhere; 0 if none does.

        Those with batch work alone count while nobody else waits.
        """
        return min((a.service(now=now) for a in self._all_waiting()), default=0.0)

    def wait(self, tenant: TenantId, *, now: Instant, is_batch: bool = False) -> None:
        """A step of this tenant begins to wait."""
        account = self._accounts[tenant]
        line = self._background if is_batch else self._waiting
        if tenant not in line:
            self._begin(account, line, now=now)
        account.waiting_steps += 1
        account.waiting_batch += is_batch

    def _begin(
        self, account: TenantAccount, line: dict[TenantId, TenantAccount], *, now: Instant
    ) -> None:
        """A tenant waits here or elsewhere from now on; it is lifted unless it did already."""
        tenant = account.tenant
        if self._is_active and not (tenant in self._waiting or tenant in self._waiting_elsewhere):
            self._run_on(now=now)
            level = self._virtual
            if line is self._background:
                # Those whose gaps it will share may be behind everybody else: level with them.
                level = min([level, *(a.service(now=now) for a in line.values())])
            account.lift += max(0.0, level - account.service(now=now))
        line[tenant] = account

    def _all_waiting(self) -> Iterable[TenantAccount]:
        if not self._waiting_elsewhere:
            return (self._waiting or self._background).values()
        return (self._waiting | self._waiting_elsewhere).values()

    def leave(self, tenant: TenantId, *, now: Instant, is_batch: bool = False) -> None:
        """A step of this tenant waits no more. Called before it is charged."""
        line = self._background if is_batch else self._waiting
        account = line[tenant]
        if self._is_active:
            self._run_on(now=now)
        account.waiting_steps -= 1
        account.waiting_batch -= is_batch
        if not (account.waiting_batch if is_batch else account.claiming_steps):
            del line[tenant]

    def _run_on(self, *, now: Instant) -> None:
        """Virtual time goes on to the least service of those that wait."""
        services = [account.service(now=now) for account in self._all_waiting()]
        if services:
            self._virtual = max(self._virtual, min(services))

    def held(self, tenant: TenantId) -> TenantAccount:
        """The account of a tenant that has a live program; it cannot be forgotten meanwhile."""
        return self._accounts[tenant]

    def account(self, tenant: TenantId) -> TenantAccount:
        """The tenant's account, made where there is none; it counts as used just now."""
        account = self._accounts.get(tenant)
        if account is not None:
            self._accounts.move_to_end(tenant)
            return account
        account = self._accounts[tenant] = self._fresh(tenant)
        self._forget_surplus(keeping=account)
        return account

    def open_program(self, tenant: TenantId, program: ProgramId, *, is_child: bool = False) -> None:
        """A program of this tenant lives from now on; as a child it is part of another's work."""
        account = self.account(tenant)
        account.live[program] = is_child
        account.live_children += is_child

    def drop_program(self, tenant: TenantId, program: ProgramId) -> None:
        """A program of this tenant is gone."""
        account = self._accounts[tenant]
        account.live_children -= account.live.pop(program)
        self._forget_surplus()

    def _forget_surplus(self, *, keeping: TenantAccount | None = None) -> None:
        """Keep no more idle tenants than there may be; busy ones are bounded by their programs."""
        for _ in range(_FORGET_TRIES):
            if len(self._accounts) <= self._tenants_max:
                return
            # Its history is lost, and nothing with it: it would be lifted when it comes back. The
            # alternative is memory that grows with every key that anybody ever made up.
            oldest, forgotten = self._accounts.popitem(last=False)
            if forgotten.is_busy or forgotten is keeping:
                self._accounts[oldest] = forgotten
            else:
                self._waiting_elsewhere.pop(oldest, None)

    def _fresh(self, tenant: TenantId) -> TenantAccount:
        weight, limits = self._configured.get(tenant, (1.0, NO_LIMITS))
        return TenantAccount(tenant=tenant, weight=weight, prices=self._prices, limits=limits)

    def check(self) -> None:
        """Assert that the accounts agree with each other."""
        claiming = {key for key, account in self._accounts.items() if account.claiming_steps}
        assert claiming == set(self._waiting)
        background = {key for key, account in self._accounts.items() if account.waiting_batch}
        assert background == set(self._background)
        assert all(self._accounts[t] is a for t, a in self._waiting_elsewhere.items())
        elsewhere = {key for key, account in self._accounts.items() if account.waits_elsewhere}
        assert elsewhere == set(self._waiting_elsewhere)
        for account in self._accounts.values():
            assert account.weight > 0
            idle = (account.running_steps, account.pending_uncached, account.pending_output)
            assert min(idle) >= 0
            if not account.running_steps:
                assert idle == (0, 0, 0)
