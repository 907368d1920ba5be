"""When a tenant is charged: as its step is sent, again as it ends, and while its KV is kept.

Between the first and the second the account holds an estimate: what the engine must compute as far
as we know, and as many output tokens as the client expects or the tenant's steps had so far.
Without it a tenant could have all that fits on the engines before it is charged for any of it.
"""

from __future__ import annotations

from agentsched.kernel.records import ConversationRecord, EngineRecord, StepRecord
from agentsched.kernel.residency import Residency
from agentsched.kernel.shares import ShareLedger
from agentsched.model import Instant, TenantId, between


def charge_sent(shares: ShareLedger, step: StepRecord) -> None:
    """A step is sent: its tenant is charged the estimate."""
    account = shares.held(step.tenant)
    step.uncached_charged = step.missing_tokens
    step.output_charged = account.output_expected(
        step.output_tokens_expected, step.output_tokens_max
    )
    account.running_steps += 1
    account.pending_uncached += step.uncached_charged
    account.pending_output += step.output_charged


def take_back(shares: ShareLedger, step: StepRecord) -> None:
    """A step that was sent ended: its estimate is taken back, for the truth to take its place."""
    account = shares.held(step.tenant)
    account.running_steps -= 1
    account.pending_uncached -= step.uncached_charged
    account.pending_output -= step.output_charged
    step.uncached_charged = step.output_charged = 0


def charge_unfinished(
    shares: ShareLedger, step: StepRecord, engine: EngineRecord, *, now: Instant
) -> None:
    """A step ended early, and nobody says what it used: charge as much as its time allows.

    Otherwise whoever hangs up just before the end would compute for nothing.
    """
    assert step.dispatched_at is not None
    end = now if step.started_at is None else step.started_at
    computed = round(between(step.dispatched_at, end) / max(1.0, engine.cost.prefill_ns_per_token))
    said = 0
    if step.started_at is not None:
        computed = step.missing_tokens
        said = round(between(step.started_at, now) / max(1.0, engine.cost.decode_ns_per_token))
    if step.output_tokens_max is not None:
        said = min(said, step.output_tokens_max)
    shares.charge_part(
        tenant=step.tenant,
        uncached_tokens=min(computed, step.missing_tokens),
        output_tokens=said,
    )


def start_keeping(
    shares: ShareLedger,
    residency: Residency,
    conversation: ConversationRecord,
    tenant: TenantId,
    *,
    now: Instant,
) -> None:
    """A conversation pauses: what it keeps of an engine's cache is charged by time.

    Of a prefix that several share, each is charged its part, as it is at this moment.
    """
    assert not conversation.kept_tokens
    if conversation.is_resident:
        conversation.kept_tokens = residency.split_tokens(conversation.conversation)
        shares.held(tenant).keep(conversation.kept_tokens, now=now)


def stop_keeping(
    shares: ShareLedger, conversation: ConversationRecord, tenant: TenantId, *, now: Instant
) -> None:
    """It goes on, or was let go: it keeps nothing on its own account any more."""
    if conversation.kept_tokens:
        shares.held(tenant).keep(-conversation.kept_tokens, now=now)
        conversation.kept_tokens = 0
