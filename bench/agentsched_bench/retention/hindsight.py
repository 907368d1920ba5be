"""What a pin policy loses for want of foresight: its answers, mended with what came to pass.

Each arm knows one thing that no policy can: which pauses have no end (`ends`), when those that have
one end (`returns`), or both. What is left between the last and the optimum is the fault of how
answers become evictions: shared heads, whole conversations, answers that grow old.
"""

from __future__ import annotations

from typing import Final

from agentsched.model import MINUTE, Event, Instant, Nanos
from agentsched.policy import PauseView, PinPolicy, Retention, World
from agentsched_bench.retention.reference import Reference

#: Long enough that no pause outlasts it.
_KEPT: Final = Nanos(600 * MINUTE)


class Hindsight:
    """A pin policy that asks `policy`, and the future. Satisfies `policy.PinPolicy`."""

    def __init__(
        self, policy: PinPolicy, reference: Reference, *, ends: bool, returns: bool
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._ends = ends
        self._returns = returns

    def observe(self, event: Event, *, now: Instant) -> None:
        """Let the policy learn."""
        self._policy.observe(event, now=now)

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None:
        """The policy's answer; where the future is known, that decides."""
        call = self._reference.next_call(pause.conversation, now=now)
        if call is None:
            return None if self._ends else self._policy.retain(pause, world, now=now)
        if not self._returns:
            return self._policy.retain(pause, world, now=now)
        # The index of a return that is certain: one in the time until then.
        reload_ns = world.engines[pause.engine].reload_ns
        worth = reload_ns * (1.0 + world.waiting_steps) / max(1, call[0] - now)
        return Retention(ttl=_KEPT, value=worth)
