"""Tenants as metrics: anybody can make up tenants, so their labels are bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from shorthand import arrived, finished, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import Instant, ServedElsewhere, TenantId
from agentsched.telemetry.counters import OTHER, Bounded
from agentsched.telemetry.tenants import TenantCollector


def serve(scheduler: object, tenants: list[str], *, first: int = 0) -> None:
    handle = scheduler.handle  # type: ignore[attr-defined]
    handle(reported(), now=Instant(0))
    for i, tenant in enumerate(tenants, start=first):
        handle(arrived(f"s{i}", f"p{i}", tenant=tenant), now=Instant(i))
        handle(finished(f"s{i}", prompt=10, cached=0, output=5), now=Instant(i + 1))


def test_few_have_a_label_and_all_are_counted() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    registry = CollectorRegistry()
    registry.register(TenantCollector(scheduler, configured=lambda: iter(["vip"]), tenants_max=5))
    serve(scheduler, [f"t{i}" for i in range(100)] + ["vip"])
    [family] = [f for f in registry.collect() if f.name == "agentsched_tenant_steps"]
    shown = {s.labels["tenant"]: s.value for s in family.samples}
    assert set(shown) == {"vip", "t0", "t1", "t2", "t3", OTHER}
    assert sum(shown.values()) == 101
    serve(scheduler, ["t50"], first=200)
    value = registry.get_sample_value("agentsched_tenant_steps_total", {"tenant": OTHER})
    assert value == 97


def test_one_that_is_called_other_is_in_the_sum() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    registry = CollectorRegistry()
    registry.register(TenantCollector(scheduler, configured=lambda: iter(()), tenants_max=2))
    serve(scheduler, [OTHER, "a", "b", "c"])
    for family in registry.collect():
        names = [s.labels["tenant"] for s in family.samples]
        assert len(names) == len(set(names)), family.name
    value = registry.get_sample_value("agentsched_tenant_steps_total", {"tenant": OTHER})
    assert value == 2


def test_the_sum_grows_on_after_an_account_left_it() -> None:
    """One was forgotten, another got a label of its own: neither stops the counter."""
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    configured: list[str] = []
    registry = CollectorRegistry()
    registry.register(
        TenantCollector(scheduler, configured=lambda: iter(configured), tenants_max=1)
    )

    def steps() -> float | None:
        return registry.get_sample_value("agentsched_tenant_steps_total", {"tenant": OTHER})

    serve(scheduler, ["a", *(["b"] * 9), "c", "d"])
    assert steps() == 11
    del scheduler.tenants[TenantId("b")]  # type: ignore[attr-defined]
    serve(scheduler, ["c", "c"], first=100)
    assert steps() == 13
    configured.append("c")  # "a" is in the sum from now on, with what it gains
    serve(scheduler, ["a", "c", "d"], first=200)
    assert steps() == 15


def test_a_sum_over_replicas_counts_each_token_once() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    registry = CollectorRegistry()
    registry.register(TenantCollector(scheduler, configured=lambda: iter(()), tenants_max=5))
    serve(scheduler, ["red"])
    other = ServedElsewhere(tenant=TenantId("red"), uncached_tokens=1_000, output_tokens=300)
    scheduler.handle(other, now=Instant(9))
    shown = {
        name: registry.get_sample_value(f"agentsched_tenant_{name}_total", {"tenant": "red"})
        for name in ("uncached_tokens", "output_tokens")
    }
    assert shown == {"uncached_tokens": 10, "output_tokens": 5}


def test_labels_that_clients_choose_are_bounded() -> None:
    label = Bounded(2)
    assert [label(v) for v in ("a", "b", "c", "a", "x" * 500)] == ["a", "b", OTHER, "a", OTHER]
