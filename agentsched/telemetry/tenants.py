"""Shares of tenants as metrics. Anybody can make up tenants, so only so many have a label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentsched.kernel import Scheduler
from agentsched.kernel.shares import TenantAccount
from agentsched.telemetry.counters import OTHER

TENANTS_MAX: Final = 50


class TenantCollector(Collector):
    """What tenants were served and wait for, read from the scheduler at a scrape.

    Tenants of the configuration have a label each; of all others the first that come, up to
    `tenants_max` in all, for as long as the scheduler keeps their account. The rest is `other`.
    """

    def __init__(
        self, scheduler: Scheduler, *, configured: Callable[[], Iterator[str]], tenants_max: int
    ) -> None:
        self._scheduler = scheduler
        self._configured = configured
        self._tenants_max = tenants_max
        self._shown: dict[str, None] = {}
        #: What `other` shows of each total: a counter never goes back, though an account is
        #: forgotten, so what each gained since the last look is added up.
        self._other: dict[str, float] = {}
        #: Of each total, what each tenant had then.
        self._had: dict[str, dict[str, float]] = {}

    def collect(self) -> Iterator[Metric]:
        accounts = self._scheduler.tenants
        self._choose(list(map(str, accounts)))
        totals: list[tuple[str, str, Callable[[TenantAccount], float]]] = [
            ("steps", "Steps that were served.", lambda a: a.steps),
            (
                "uncached_tokens",
                "Prompt tokens that had to be computed.",
                lambda a: a.uncached_here,
            ),
            ("output_tokens", "Tokens of answers.", lambda a: a.output_here),
        ]
        for name, text, read in totals:
            family = CounterMetricFamily(f"agentsched_tenant_{name}", text, labels=["tenant"])
            for tenant, value in self._sums(read, is_total=name):
                family.add_metric([tenant], value)
            yield family
        levels: list[tuple[str, str, Callable[[TenantAccount], float]]] = [
            ("waiting_steps", "Steps that are held.", lambda a: a.waiting_steps),
            ("running_steps", "Steps at engines.", lambda a: a.running_steps),
            ("programs", "Live programs.", lambda a: len(a.live)),
            ("kept_tokens", "KV tokens of paused conversations.", lambda a: a.idle_tokens),
        ]
        for name, text, read in levels:
            gauge = GaugeMetricFamily(f"agentsched_tenant_{name}", text, labels=["tenant"])
            for tenant, value in self._sums(read):
                gauge.add_metric([tenant], value)
            yield gauge
        weights = GaugeMetricFamily(
            "agentsched_tenant_weight", "Its share, relative to others.", labels=["tenant"]
        )
        for key, account in accounts.items():
            if str(key) in self._shown:
                weights.add_metric([str(key)], account.weight)
        yield weights

    def _choose(self, tenants: list[str]) -> None:
        configured = list(self._configured())
        known = set(tenants)
        kept = [tenant for tenant in self._shown if tenant in known and tenant not in configured]
        wanted = [*configured, *kept, *tenants]
        # One that is called `other` is in the sum: two series of one name would be none.
        names = [tenant for tenant in dict.fromkeys(wanted) if tenant != OTHER]
        self._shown = dict.fromkeys(names[: self._tenants_max])

    def _sums(
        self, read: Callable[[TenantAccount], float], *, is_total: str = ""
    ) -> Iterator[tuple[str, float]]:
        has = {str(key): float(read(account)) for key, account in self._scheduler.tenants.items()}
        yield from ((tenant, value) for tenant, value in has.items() if tenant in self._shown)
        rest = {tenant: value for tenant, value in has.items() if tenant not in self._shown}
        other = sum(rest.values())
        if is_total:
            had = self._had.get(is_total, {})
            gained = sum(max(0.0, value - had.get(tenant, 0.0)) for tenant, value in rest.items())
            self._had[is_total] = has
            other = self._other[is_total] = self._other.get(is_total, 0.0) + gained
        if rest or other:
            yield OTHER, other
