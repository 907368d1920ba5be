from __future__ import annotations

import pytest

from agentsched.kernel.shares import ShareLedger
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


def elsewhere(tenant: TenantId, tokens: int, *, waits: bool = False) -> ServedElsewhere:
    return ServedElsewhere(tenant=tenant, uncached_tokens=tokens, output_tokens=0, waits=waits)


def level(ledger: ShareLedger, *tenants: TenantId) -> list[float]:
    return [ledger.account(t).service(now=Instant(0)) for t in tenants]


def test_what_others_served_is_no_part_of_the_mean_answer(ledger: ShareLedger) -> None:
    account = ledger.account(A)
    ledger.charge(tenant=A, usage=usage(100, output=40))
    event = ServedElsewhere(tenant=A, uncached_tokens=0, output_tokens=90_000, idle_token_s=3)
    ledger.charge_elsewhere(event, now=Instant(0))
    assert account.output_expected(None, None) == 40
    assert account.elsewhere == (0, 90_000, 3)
    assert account.idle_token_s(now=Instant(0)) == 0
    assert account.idle_token_ns == 3 * SECOND


def test_what_one_tenant_had_elsewhere_alone_is_no_claim_of_the_next(ledger: ShareLedger) -> None:
    ledger.set_policy(Prices(), now=Instant(0))
    for _ in range(10):
        ledger.charge_elsewhere(elsewhere(A, 1_000), now=Instant(0))
    newcomer = TenantId("newcomer")
    ledger.account(newcomer)
    ledger.wait(newcomer, now=Instant(0))
    # It begins where the other one was before its last charge, not at nothing.
    assert level(ledger, A, newcomer) == [10_000, 9_000]
    ledger.check()


def test_who_waits_elsewhere_is_not_lifted_and_holds_virtual_time(ledger: ShareLedger) -> None:
    ledger.set_policy(Prices(), now=Instant(0))
    other = TenantId("other")
    ledger.charge_elsewhere(elsewhere(other, 0, waits=True), now=Instant(0))
    ledger.charge_elsewhere(elsewhere(A, 5_000, waits=True), now=Instant(0))
    assert ledger.least_service(now=Instant(0)) == 0
    ledger.wait(other, now=Instant(0))
    assert level(ledger, A, other) == [5_000, 0]
    assert ledger.waiting_tenants == 1
    # It waits nowhere else any more, and here still.
    ledger.charge_elsewhere(elsewhere(other, 0), now=Instant(0))
    assert ledger.least_service(now=Instant(0)) == 0
    ledger.leave(other, now=Instant(0))
    assert ledger.least_service(now=Instant(0)) == 5_000
    ledger.check()


def test_batch_work_holds_no_virtual_time_while_others_wait(ledger: ShareLedger) -> None:
    now = Instant(0)
    ledger.set_policy(Prices(), now=now)
    ledger.account(A)
    ledger.wait(A, is_batch=True, now=now)
    ledger.charge(tenant=B, usage=usage(5_000))
    assert ledger.least_service(now=now) == 0
    ledger.wait(B, now=now)
    assert ledger.least_service(now=now) == 5_000
    assert (ledger.waiting_tenants, ledger.claiming_tenants) == (2, 1)
    # What it asks for besides is as everybody's who begins to wait.
    ledger.wait(A, now=now)
    assert level(ledger, A, B) == [5_000, 5_000]
    ledger.leave(A, now=now)
    ledger.leave(B, now=now)
    ledger.check()
    assert (ledger.waiting_tenants, ledger.claiming_tenants) == (1, 0)
    assert ledger.least_service(now=now) == 5_000


@pytest.mark.parametrize("is_here_first", [True, False])
def test_an_estimate_that_was_too_high_is_given_back_to_whoever_waits_already(
    ledger: ShareLedger, is_here_first: bool
) -> None:
    """Beginning to wait at a second place lifts nobody: it would take the difference again."""
    ledger.set_policy(Prices(), now=Instant(0))
    account = ledger.account(B)
    account.running_steps, account.pending_uncached = 1, 1_000

    def wait_here() -> None:
        ledger.wait(B, now=Instant(0))

    def wait_elsewhere() -> None:
        ledger.charge_elsewhere(elsewhere(B, 0, waits=True), now=Instant(0))

    waits = [wait_here, wait_elsewhere] if is_here_first else [wait_elsewhere, wait_here]
    waits[0]()
    ledger.charge_elsewhere(elsewhere(A, 5_000, waits=True), now=Instant(0))
    account.running_steps, account.pending_uncached = 0, 0  # its step ended: nothing was computed
    waits[1]()
    assert level(ledger, A, B) == [6_000, 0]
    ledger.check()


def test_idle_tokens_cost_by_the_second_also_since_the_last_change(ledger: ShareLedger) -> None:
    ledger.charge(tenant=A, usage=usage(1))
    account = ledger.accounts()[A]
    account.keep(3, now=Instant(0))
    assert account.idle_token_s(now=Instant(4 * SECOND)) == 12
    account.keep(-2, now=Instant(10 * SECOND))
    assert account.idle_token_s(now=Instant(10 * SECOND)) == 30
    assert account.idle_token_s(now=Instant(15 * SECOND)) == 35


def test_an_answer_is_at_most_what_was_asked_for_and_never_less_than_nothing(
    ledger: ShareLedger,
) -> None:
    ledger.charge(tenant=A, usage=usage(1, output=40))
    account = ledger.accounts()[A]
    assert account.output_expected(None, 16) == 16
    assert account.output_expected(None, 64) == 40
    assert account.output_expected(7, None) == 7
    assert account.output_expected(7, 0) == 0


def test_a_mean_answer_is_that_of_all_steps(ledger: ShareLedger) -> None:
    for output in (40, 21):
        ledger.charge(tenant=A, usage=usage(1, output=output))
    assert ledger.accounts()[A].output_expected(None, None) == 30


def test_each_kind_of_token_is_charged_at_its_price_and_a_weight_changes_only_what_comes() -> None:
    ledger = ShareLedger(tenants_max=9, prices=Prices(prefill=2.0, output=3.0, memory=5.0))
    ledger.charge(tenant=A, usage=usage(10, output=4))
    account = ledger.account(A)
    account.pending_uncached, account.pending_output, account.running_steps = 1, 2, 1
    account.keep(7, now=Instant(0))
    now = Instant(2 * SECOND)
    assert account.charged(now=now) == 2 * 11 + 3 * 6 + 5 * 14 == 110
    assert ledger.configure(A, weight=4.0, now=now)
    assert account.service(now=now) == 110
    ledger.charge(tenant=A, usage=usage(6))
    assert account.service(now=now) == 110 + 2 * 6 / 4


def test_the_first_policy_finds_everybody_level_and_the_next_where_he_is() -> None:
    now = Instant(0)
    ledger = ShareLedger(tenants_max=9)
    ledger.charge(tenant=A, usage=usage(5_000))
    ledger.charge(tenant=B, usage=usage(100))
    ledger.set_policy(Prices(), now=now)
    assert level(ledger, A, B) == [0, 0]
    ledger.charge(tenant=A, usage=usage(300))
    ledger.set_policy(Prices(prefill=7.0), now=now)
    assert level(ledger, A, B) == [300, 0]
    ledger.charge(tenant=A, usage=usage(10))
    assert level(ledger, A, B) == [370, 0]
    # Whoever waits alone moves virtual time on; after a time without shares all begin there.
    ledger.wait(A, now=now)
    ledger.leave(A, now=now)
    ledger.set_policy(None, now=now)
    ledger.charge(tenant=B, usage=usage(9_000))
    ledger.set_policy(Prices(), now=now)
    assert level(ledger, A, B) == [370, 370]


def test_batch_work_is_lifted_to_other_batch_work_that_waits_and_no_further() -> None:
    now = Instant(0)
    ledger = ShareLedger(tenants_max=9)
    ledger.set_policy(Prices(), now=now)
    others = [TenantId(name) for name in ("early", "late", "ordinary")]
    for tenant in (*others, B):
        ledger.account(tenant)
    early, late, ordinary = others
    ledger.wait(early, is_batch=True, now=now)
    ledger.charge(tenant=B, usage=usage(5_000))
    ledger.wait(B, now=now)
    ledger.wait(late, is_batch=True, now=now)
    ledger.wait(ordinary, now=now)
    assert level(ledger, early, late, ordinary, B) == [0, 0, 5_000, 5_000]
    ledger.check()


def test_who_waits_with_both_kinds_of_work_is_named_once(ledger: ShareLedger) -> None:
    now = Instant(0)
    for tenant, is_batch in ((A, False), (A, True), (B, True)):
        ledger.account(tenant)
        ledger.wait(tenant, is_batch=is_batch, now=now)
    assert list(ledger.who_waits()) == [A, B]
    assert (ledger.waiting_tenants, ledger.claiming_tenants) == (2, 1)


@pytest.mark.parametrize(
    ("cached", "missing", "charged"),
    [(None, 40, 40), (None, 200, 100), (None, None, 100), (0, 40, 100), (30, 40, 70)],
)
def test_what_was_missing_counts_where_the_engine_does_not_say(
    ledger: ShareLedger, cached: int | None, missing: int | None, charged: int
) -> None:
    told = ledger.charge(tenant=A, usage=usage(100, cached=cached), missing_tokens=missing)
    assert (told, ledger.served(A)) == (charged, charged)


def test_sums_tell_what_this_replica_served_from_what_others_did(ledger: ShareLedger) -> None:
    now = Instant(0)
    ledger.charge(tenant=A, usage=usage(100, cached=60, output=5))
    ledger.charge_part(tenant=A, uncached_tokens=30, output_tokens=2)
    for uncached, output, idle in ((500, 70, 3), (20, 9, 4), (-1, -1, -1)):
        event = ServedElsewhere(
            tenant=A, uncached_tokens=uncached, output_tokens=output, idle_token_s=idle
        )
        ledger.charge_elsewhere(event, now=now)
    account = ledger.account(A)
    assert account.elsewhere == (520, 79, 7)
    assert (account.uncached_tokens, account.output_tokens) == (40 + 30 + 520, 5 + 2 + 79)
    assert (account.uncached_here, account.output_here, account.cached_here) == (70, 7, 60)
    assert account.idle_token_s(now=now) == 0


def test_nothing_that_others_served_is_nothing(ledger: ShareLedger) -> None:
    event = ServedElsewhere(tenant=A, uncached_tokens=0, output_tokens=0, idle_token_s=0)
    ledger.charge_elsewhere(event, now=Instant(0))
    account = ledger.account(A)
    assert (account.elsewhere, account.idle_token_ns) == ((0, 0, 0), 0)


def test_ceilings_outlive_the_account_and_another_weight(ledger: ShareLedger) -> None:
    limits = TenantLimits(pins_max=3)
    assert ledger.configure(A, weight=1.0, limits=limits)
    for tenant in (B, C):  # A's account makes room for theirs
        ledger.charge(tenant=tenant, usage=usage(1))
    assert A not in ledger.accounts()
    assert ledger.configure(A, weight=2.0)
    assert (ledger.view(A).weight, ledger.view(A).limits) == (2.0, limits)


def test_whoever_is_configured_can_be_configured_again_though_no_more_may_be(
    ledger: ShareLedger,
) -> None:
    for tenant in (A, B):
        assert ledger.configure(tenant, weight=2.0)
    assert ledger.configure(A, weight=3.0)
    assert ledger.view(A).weight == 3.0


def test_accounts_of_those_that_are_busy_are_kept(ledger: ShareLedger) -> None:
    ledger.open_program(A, ProgramId("p"))
    for tenant in (B, C):
        ledger.account(tenant)
    assert list(ledger.accounts()) == [C, A]
    ledger.open_program(C, ProgramId("q"))
    ledger.account(B)  # the one that is asked for is not forgotten for itself
    assert set(ledger.accounts()) == {A, B, C}
    ledger.drop_program(A, ProgramId("p"))
    assert len(ledger.accounts()) == 2
    assert C in ledger.accounts()


def test_memory_that_is_kept_is_charged_by_time_from_change_to_change() -> None:
    ledger = ShareLedger(tenants_max=9, prices=Prices(prefill=0.0, output=0.0, memory=1.0))
    account = ledger.account(A)

    def kept(second: int) -> tuple[float, int]:
        now = Instant(second * SECOND)
        return account.charged(now=now), account.idle_token_s(now=now)

    for tokens, second in ((3, 2), (4, 5), (-1, 5), (1, 5)):
        account.keep(tokens, now=Instant(second * SECOND))
    assert account.idle_token_ns == 3 * 3 * SECOND
    assert kept(5) == (9, 9)
    assert kept(7) == (9 + 7 * 2, 9 + 7 * 2)
    account.keep(-7, now=Instant(8 * SECOND))
    account.keep(2, now=Instant(6 * SECOND))  # a clock that went back takes nothing away
    assert kept(7) == (9 + 7 * 3, 9 + 7 * 3)
    assert kept(10) == (9 + 7 * 3 + 2 * 2, 9 + 7 * 3 + 2 * 2)


def test_prompts_of_which_nobody_said_what_was_cached_are_summed(ledger: ShareLedger) -> None:
    for untold in ({}, {"untold_tokens": 30}, {"untold_tokens": 4}):
        ledger.charge(tenant=A, usage=usage(50, cached=None), **untold)
    account = ledger.account(A)
    assert (account.untold_tokens, account.prompt_tokens) == (34, 150)


def test_whoever_comes_begins_with_the_one_that_was_served_least_of_those_that_wait() -> None:
    now = Instant(0)
    ledger = ShareLedger(tenants_max=9)
    ledger.set_policy(Prices(), now=now)
    for tenant, tokens in ((A, 100), (B, 5_000), (C, 0)):
        ledger.charge(tenant=tenant, usage=usage(tokens))
    for tenant in (B, A):
        ledger.wait(tenant, now=now)
    # A, which was less served than B when it came, began where B was.
    assert level(ledger, A, B) == [5_000, 5_000]
    ledger.charge(tenant=B, usage=usage(700))
    ledger.wait(C, now=now)
    assert level(ledger, A, B, C) == [5_000, 5_700, 5_000]
