"""Hints within a tenant's rate, in bounded memory."""

from __future__ import annotations

import pytest

from agentsched.model import SECOND, Instant
from agentsched.proxy.access import quota
from agentsched.proxy.access.quota import HintQuota


def test_what_is_over_the_rate_waits_and_takes_nothing() -> None:
    hints = HintQuota()
    assert hints.take("red", 20, rate=2, now=Instant(0)) == 0
    assert hints.take("red", 3, rate=2, now=Instant(0)) == 1.5
    assert hints.take("red", 3, rate=2, now=Instant(SECOND)) == 0.5
    assert hints.take("red", 3, rate=2, now=Instant(3 * SECOND // 2)) == 0
    assert hints.take("blue", 20, rate=2, now=Instant(0)) == 0, "another tenant's are its own"


def test_more_than_ever_fits_goes_where_the_bucket_is_full() -> None:
    hints = HintQuota()
    assert hints.take("red", 1_000, rate=2, now=Instant(0)) == 0
    assert hints.take("red", 1_000, rate=2, now=Instant(0)) == 10


def test_of_too_many_tenants_the_one_that_was_silent_for_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota, "_TENANTS_MAX", 2)
    hints = HintQuota()
    for tenant in ("red", "blue", "red", "green"):
        hints.take(tenant, 10, rate=1, now=Instant(0))
    assert len(hints) == 2
    # Red is still known to have spent its own; blue begins anew.
    assert hints.take("red", 1, rate=1, now=Instant(0)) > 0
    assert hints.take("blue", 1, rate=1, now=Instant(0)) == 0
