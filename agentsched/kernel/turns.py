"""Whose turn it is: the waiting steps of all tenants, merged by what each tenant was served.

Three lines, one after the other. Conversations whose KV is resident go first, as far as the share
policy lets their tenants run ahead, and not before steps of their own tenant that have an earlier
priority; then everybody's ordinary steps; then background work. In each line the tenant of the
least rank is next, with its first step by the order policy. A tenant's rank is looked at again
whenever its turn comes, since each step that is sent is charged at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush

from agentsched.kernel.records import StepRecord
from agentsched.model import StepClass, StepId, TenantId
from agentsched.policy import SortKey

Rank = Callable[[TenantId], SortKey]


def take_turns(
    ordered: Sequence[StepRecord],
    *,
    rank: Rank,
    may_continue: Callable[[TenantId], bool],
    is_resident: Callable[[StepRecord], bool],
) -> Iterator[StepRecord]:
    """The steps of `ordered`, each once, in the order in which they should be tried."""
    background = [s for s in ordered if s.step_class is StepClass.BATCH]
    ordinary = [s for s in ordered if s.step_class is not StepClass.BATCH]
    first: dict[TenantId, int] = {}
    for step in ordinary:
        first[step.tenant] = min(step.priority, first.get(step.tenant, step.priority))
    continuing = [s for s in ordinary if s.priority == first[s.tenant] and is_resident(s)]
    tried: set[StepId] = set()
    for step in _merge(continuing, rank=rank, may_go=may_continue):
        tried.add(step.step)
        yield step
    rest = [s for s in ordinary if s.step not in tried]
    yield from _merge(rest, rank=rank)
    yield from _merge(background, rank=rank)


def _merge(
    ordered: Sequence[StepRecord], *, rank: Rank, may_go: Callable[[TenantId], bool] | None = None
) -> Iterator[StepRecord]:
    lines: dict[TenantId, deque[StepRecord]] = {}
    for step in ordered:
        lines.setdefault(step.tenant, deque()).append(step)
    heap = [(rank(tenant), line[0].arrived_at, tenant) for tenant, line in lines.items()]
    heapify(heap)
    moved = 0
    while heap:
        key, arrived_at, tenant = heappop(heap)
        current = rank(tenant)
        # A policy whose ranks never come to rest must not keep this turn from its end.
        if current != key and moved < len(heap) and (current, arrived_at, tenant) > heap[0]:
            heappush(heap, (current, arrived_at, tenant))
            moved += 1
            continue
        moved = 0
        if may_go is not None and not may_go(tenant):
            continue  # what is left of this line waits for its tenant's ordinary turn
        line = lines[tenant]
        yield line.popleft()
        if line:
            heappush(heap, (current, line[0].arrived_at, tenant))
