from __future__ import annotations

import pytest

from agentsched.kernel.shares import ShareLedger
from agentsched.model import TenantId, Usage

A, B, C = (TenantId(name) for name in "abc")


def usage(prompt: int, *, cached: int | None = 0, output: int = 0) -> Usage:
    return Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)


@pytest.fixture
def ledger() -> ShareLedger:
    return ShareLedger(tenants_max=2)


def test_what_an_engine_had_to_work_for_is_charged(ledger: ShareLedger) -> None:
    assert ledger.charge(tenant=A, usage=usage(100, cached=90, output=5)) == 15
    assert ledger.charge(tenant=A, usage=usage(100, cached=None, output=5)) == 105
    assert ledger.charge(tenant=A, usage=usage(10, cached=64, output=1)) == 1
    account = ledger.accounts()[A]
    assert (account.prompt_tokens, account.output_tokens, account.steps) == (210, 11, 3)
    assert ledger.served(A) == 121
    assert ledger.served(B) == 0.0


def test_weight_divides_the_service_and_leaves_what_was_served(ledger: ShareLedger) -> None:
    ledger.charge(tenant=A, usage=usage(100))
    assert ledger.configure(A, weight=4.0)
    assert ledger.served(A) == 25.0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_a_positive_number(ledger: ShareLedger, weight: float) -> None:
    assert not ledger.configure(A, weight=weight)
    assert ledger.accounts() == {}


def test_the_account_served_least_recently_goes_but_its_weight_stays(ledger: ShareLedger) -> None:
    ledger.configure(A, weight=2.0)
    ledger.charge(tenant=A, usage=usage(10))
    ledger.charge(tenant=B, usage=usage(10))
    ledger.charge(tenant=C, usage=usage(10))
    assert list(ledger.accounts()) == [B, C]
    ledger.charge(tenant=A, usage=usage(10))
    assert ledger.served(A) == 5.0


def test_weights_have_a_limit_of_their_own(ledger: ShareLedger) -> None:
    assert ledger.configure(A, weight=2.0)
    assert ledger.configure(B, weight=2.0)
    assert not ledger.configure(C, weight=2.0)
    assert ledger.configure(A, weight=1.0)
    assert ledger.configure(C, weight=2.0)
