"""What ledgers say of one tenant: its pins and its deadline."""

from __future__ import annotations

from shorthand import pin

from agentsched.kernel.pins import PinLedger
from agentsched.kernel.shares import ShareLedger
from agentsched.model import SECOND, EngineId, Instant, Nanos, PinId, TenantId, TenantLimits

A, B = TenantId("a"), TenantId("b")


def test_pins_of_a_tenant_are_counted() -> None:
    ledger = PinLedger(pins_per_engine_max=9, tokens_per_engine_max=100)
    for name, tenant in (("1", A), ("2", A), ("3", B)):
        ledger.hold(pin(name, conversation=f"c{name}"), tenant=tenant)
    assert (ledger.of_tenant(A), ledger.of_tenant(B)) == (2, 1)
    ledger.release(PinId("1"))
    assert (ledger.of_tenant(A), ledger.of_tenant(B)) == (1, 1)


def test_a_lowered_budget_of_tenants_ends_the_pins_of_least_value_that_are_above_it() -> None:
    ledger = PinLedger(pins_per_engine_max=9, tokens_per_engine_max=100)
    for name, tenant, value in (("1", A, 3.0), ("2", A, 1.0), ("3", A, 2.0), ("4", B, 0.0)):
        ledger.hold(pin(name, conversation=f"c{name}", value=value), tenant=tenant)
    ledger.set_bounds(pins_per_engine_max=9, tokens_per_engine_max=100, tokens_per_tenant_max=15)
    ended = []
    while (one := ledger.one_too_many(EngineId("e"))) is not None:
        ledger.release(one.pin)
        ended.append(one.pin)
    assert ended == ["2", "3"]
    assert [left.pin for left in ledger] == ["1", "4"]


def test_a_program_that_names_no_deadline_gets_its_tenants() -> None:
    ledger = ShareLedger(tenants_max=9)
    limits = TenantLimits(deadline_ns=Nanos(3 * SECOND))
    ledger.configure(A, weight=1.0, limits=limits, now=Instant(0))
    now = Instant(5 * SECOND)
    assert ledger.deadline(A, now=now) == 8 * SECOND
    assert ledger.deadline(B, now=now) is None
