"""Who may come in: the ceilings of the queue, of programs and of each tenant.

Programs that were served go before new ones here, too: the last tenth of the queue is for them, so
that what was begun can be brought to its end. Their children count as they do, for a parent cannot
end before them.
"""

from __future__ import annotations

from agentsched.kernel.books import Books
from agentsched.kernel.bounds import is_hopeless, steps_ahead
from agentsched.kernel.records import Pause
from agentsched.kernel.resumption import goes_on
from agentsched.model import Nanos, Reject, RejectReason, StepArrived, TenantId, seconds


def refusal(event: StepArrived, books: Books) -> Reject | None:
    """Why a step is turned away at the door; None when it is not."""
    limits = books.limits
    program = books.programs.get(event.program)
    parent = event.parent if program is None else program.parent
    elder = books.programs.get(parent) if parent is not None else None
    was_served = any(one is not None and one.was_served for one in (program, elder))
    is_new = not (was_served or goes_on(event))
    waiting = len(books.ready)
    if waiting >= limits.ready_steps_max - (limits.ready_steps_max // 10 if is_new else 0):
        wait = books.pace.until_sent(waiting)
        return turn_away(event, RejectReason.QUEUE_FULL, "the queue is full", wait)
    owner = books.conversations.get(event.conversation)
    if owner is not None and owner.program != event.program:
        return turn_away(event, RejectReason.REFUSED, "another program's conversation")
    if program is None and is_new and waiting and is_hopeless(event, books, now=books.now):
        wait = books.pace.until_sent(steps_ahead(event, books))
        return turn_away(event, RejectReason.WAIT_BOUND, "too many wait already", wait)
    family = program or elder
    tenant = family.tenant if family is not None else event.tenant
    no = _queues_refusal(event, books, tenant, is_new=is_new)
    if no is None and program is None:
        no = _programs_refusal(event, books, tenant, is_child=elder is not None)
    return no


def _queues_refusal(
    event: StepArrived, books: Books, tenant: TenantId, *, is_new: bool
) -> Reject | None:
    account = books.shares.view(tenant)
    limits, held = account.limits, account.waiting_steps
    if limits.held_steps_max is not None:
        most = limits.held_steps_max - (limits.held_steps_max // 10 if is_new else 0)
        if held >= most:
            # Its own line moves with its turns: as many others wait as there are tenants.
            wait = books.pace.until_sent((held + 1) * max(1, books.shares.waiting_tenants))
            detail = f"{held} steps of this tenant wait"
            return turn_away(event, RejectReason.TENANT_QUEUE, detail, wait)
    return None


def _programs_refusal(
    event: StepArrived, books: Books, tenant: TenantId, *, is_child: bool
) -> Reject | None:
    """A tenant's ceiling is on runs of agents: what these begin is part of them, and they wait for
    it. But not without end, or whoever names a parent would have no ceiling."""
    account = books.shares.view(tenant)
    most = account.limits.programs_max
    if most is None:
        return None
    live, kind = len(account.live) - account.live_children, "programs"
    if is_child:
        most *= books.limits.conversations_per_program_max
        live, kind = account.live_children, "sub-programs"
    if live < most:
        return None
    wait = books.pace.until_sent(
        max(1, account.waiting_steps) * max(1, books.shares.waiting_tenants)
    )
    detail = f"{live} {kind} of this tenant are live"
    return turn_away(event, RejectReason.TENANT_PROGRAMS, detail, wait)


def turn_away(
    event: StepArrived, reason: RejectReason, detail: str, retry_after: Nanos | None = None
) -> Reject:
    """A no at the door; in two seconds it is worth another try unless we know better."""
    wait = retry_after if retry_after is not None else seconds(2)
    return Reject(step=event.step, reason=reason, retry_after=wait, detail=detail)


def may_pin(pause: Pause, books: Books) -> bool:
    """Whether a pause's tenant may have one more pin."""
    limits = books.tenant(pause.tenant).limits
    if limits.pins_max is None and limits.pinned_tokens_max is None:
        return True
    programs = books.programs
    # A conversation's new pin takes the place of the one that it has.
    others = [
        pin.prefix.tokens
        for pin in books.pins
        if pin.conversation != pause.conversation and programs[pin.program].tenant == pause.tenant
    ]
    if limits.pins_max is not None and len(others) >= limits.pins_max:
        return False
    most = limits.pinned_tokens_max
    return most is None or sum(others) + pause.prefix.tokens <= most


def may_warm(pause: Pause, books: Books) -> bool:
    """Whether one more conversation of a pause's tenant may be kept warm."""
    account = books.tenant(pause.tenant)
    if account.limits.warm_max is None:
        return True
    conversations = (c for key in account.live for c in books.programs[key].conversations.values())
    return sum(c.is_warmed for c in conversations) < account.limits.warm_max
