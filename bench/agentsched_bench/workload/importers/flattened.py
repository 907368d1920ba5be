"""Agents that were written down as one: which requests of a list are whose.

A capture that knows sessions, but not all of their agents, has the requests of several in one list.
That shows where one begins before another has ended: no conversation asks twice at once. Whose a
request is its prefix blocks tell: it goes on from the conversation whose last prompt it begins
with. What begins otherwise is a conversation that was made shorter, if nothing ever goes on from
what that was; else it is another agent's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from agentsched_bench.workload.importers.blocks import prefix_blocks

#: Ends and beginnings are recorded this well: many captures have whole seconds.
_SLACK_S: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What tells whose a request is. `blocks` are its prompt's; the last one may not be full."""

    begun_s: float
    ended_s: float
    blocks: Sequence[int]
    model: str

    def repeats(self, other: Request) -> bool:
        """Whether it is the other's prompt again, streamed the one time and not the other."""
        return self.model == other.model and self.blocks == other.blocks

    def holds(self, other: Request) -> bool:
        """Whether its prompt begins with all of the other's."""
        return self._begins_with(other, len(other.blocks))

    def may_hold(self, other: Request) -> bool:
        """Whether it begins with all of the other's blocks that are full for certain."""
        return self._begins_with(other, max(1, len(other.blocks) - 1))

    def _begins_with(self, other: Request, count: int) -> bool:
        if self.model != other.model or len(self.blocks) < count:
            return False
        return bool(other.blocks) and self.blocks[:count] == other.blocks[:count]


@dataclass(slots=True)
class _Chain:
    """One conversation: the places of its requests, and the last of them."""

    last: Request
    places: list[int] = field(default_factory=list)


def is_flattened(requests: Sequence[Request]) -> bool:
    """Whether requests, in order of their beginnings, run beside each other.

    One that goes on from the one before does not, whatever its time says.
    """
    free_s = 0.0
    last: Request | None = None
    for request in requests:
        is_beside = request.begun_s + _SLACK_S < free_s
        if is_beside and last is not None and not request.holds(last):
            return True
        free_s, last = max(free_s, request.ended_s), request
    return False


def conversations(requests: Sequence[Request]) -> list[list[int]]:
    """The places of each conversation's requests, of those in order of their beginnings.

    The first conversation is the one that began first.
    """
    chains: list[_Chain] = []
    for place, request in enumerate(requests):
        chain = _owner(chains, request, requests[place + 1 :])
        if chain is None:
            chain = _Chain(request)
            chains.append(chain)
        chain.places.append(place)
        chain.last = request
    return [chain.places for chain in chains]


def _owner(chains: Sequence[_Chain], request: Request, later: Sequence[Request]) -> _Chain | None:
    """The conversation that a request goes on, of those that wait for nothing when it begins."""
    free = [
        chain
        for chain in chains
        if chain.last.model == request.model
        and (chain.last.ended_s <= request.begun_s + _SLACK_S or request.repeats(chain.last))
    ]
    held = [chain for chain in free if request.holds(chain.last)]
    if held:
        return max(held, key=lambda chain: (len(chain.last.blocks), chain.last.ended_s))
    near = [(prefix_blocks(request.blocks, chain.last.blocks), chain) for chain in free]
    for common, chain in sorted(near, key=lambda one: one[0], reverse=True):
        # Only what goes on from it for certain takes from it what may: else nothing would be left.
        goes_on: Callable[[Request, Request], bool] = (
            Request.holds if request.may_hold(chain.last) else Request.may_hold
        )
        if common and not any(goes_on(one, chain.last) for one in later):
            return chain
    return None
