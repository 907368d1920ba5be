"""Service that tenants received, in weighted tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from agentsched.model import TenantId, Usage


@dataclass(slots=True, kw_only=True)
class TenantAccount:
    """One tenant's share: its weight and the tokens it was charged."""

    weight: float = 1.0
    prompt_tokens: int = 0
    uncached_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0

    @property
    def served_tokens(self) -> int:
        """Uncached prompt tokens plus output tokens: what an engine had to work for."""
        return self.uncached_tokens + self.output_tokens


class ShareLedger:
    """Accounts of all tenants. A tenant that was never configured has weight 1."""

    def __init__(self, *, tenants_max: int) -> None:
        self._tenants_max = tenants_max
        #: Weights other than 1 that an operator set. They outlive the accounts, whose number
        #: anybody can drive up by making up tenants.
        self._weights: dict[TenantId, float] = {}
        #: Least recently charged first.
        self._accounts: OrderedDict[TenantId, TenantAccount] = OrderedDict()

    def configure(self, tenant: TenantId, *, weight: float) -> bool:
        """Set a tenant's weight; what it was served stays.

        False, and nothing changes, when the weight is not a positive number, or when as many
        tenants as there may be have weights already.
        """
        if not (weight > 0 and isfinite(weight)):
            return False
        if weight == 1.0:
            self._weights.pop(tenant, None)
        elif tenant in self._weights or len(self._weights) < self._tenants_max:
            self._weights[tenant] = weight
        else:
            return False
        self._account(tenant).weight = weight
        return True

    def charge(self, *, tenant: TenantId, usage: Usage) -> int:
        """Charge a finished step; returns the served tokens it amounts to."""
        account = self._account(tenant)
        uncached = max(0, usage.prompt_tokens - (usage.cached_tokens or 0))
        account.prompt_tokens += usage.prompt_tokens
        account.uncached_tokens += uncached
        account.output_tokens += usage.output_tokens
        account.steps += 1
        return uncached + usage.output_tokens

    def served(self, tenant: TenantId) -> float:
        """Weighted service: served tokens divided by the tenant's weight."""
        account = self._accounts.get(tenant)
        return account.served_tokens / account.weight if account else 0.0

    def accounts(self) -> Mapping[TenantId, TenantAccount]:
        """All accounts, least recently used first."""
        return self._accounts

    def _account(self, tenant: TenantId) -> TenantAccount:
        account = self._accounts.get(tenant)
        if account is None:
            weight = self._weights.get(tenant, 1.0)
            account = self._accounts[tenant] = TenantAccount(weight=weight)
            if len(self._accounts) > self._tenants_max:
                # Its history is lost, which favours it slightly should it come back; the
                # alternative is memory that grows with every key that anybody ever made up.
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(tenant)
        return account
