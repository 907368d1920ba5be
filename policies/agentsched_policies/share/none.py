"""No share: the steps of all tenants wait in one line, in the order policy's order.

A tenant with many programs gets as much more of the engines; only the wait bound limits it.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import SortKey, TenantView, World


class Nobody:
    """Tenants do not matter."""

    is_neutral = True

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def rank_tenant(self, tenant: TenantView, world: World, *, now: Instant) -> SortKey | None:
        return None
