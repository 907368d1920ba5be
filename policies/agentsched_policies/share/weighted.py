"""Weighted fair share: the tenant that was served least for its weight is next.

Served is what it was charged (`Prices`): computed prompt tokens, output tokens, and KV kept while
it pauses. A step is charged when it is sent, as an estimate, and settled when it ends; so ten
steps that are sent at one instant count as ten. A tenant that comes back from idle starts level
with those that waited (the ledger lifts it), so that nobody saves up a claim (VTC, arXiv
2401.00588; start-time fair queueing).

A conversation whose KV is resident holds its memory anyway, and every moment that it waits is
wasted. It therefore goes before other tenants' turn, but only while its tenant is at most `burst`
ahead of the one that was served least. docs/fairness.md derives the bound on the gap from this.
"""

from __future__ import annotations

from math import isfinite

from agentsched.model import Event, Instant
from agentsched.policy import Prices, SortKey, TenantView, World


class Weighted:
    """Least weighted virtual service first.

    `burst`: how far a tenant may run ahead with conversations that are resident, in charged tokens
    for weight 1. `output_price` and `memory_price` are those of `Prices`.
    """

    def __init__(
        self,
        *,
        burst: float = 32_768.0,
        output_price: float = Prices().output,
        memory_price: float = Prices().memory,
    ) -> None:
        if not (isfinite(burst) and burst >= 0):
            raise ValueError(f"burst is a number of at least 0, not {burst}")
        self._burst = burst
        self.prices = Prices(output=output_price, memory=memory_price)

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn: the scheduler keeps the accounts."""

    def rank_tenant(self, tenant: TenantView, world: World, *, now: Instant) -> SortKey | None:
        return (tenant.service(now=now),)

    def may_continue(self, tenant: TenantView, world: World, *, now: Instant) -> bool:
        return tenant.service(now=now) - world.least_service(now=now) <= self._burst
