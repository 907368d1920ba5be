"""DLPM: deficit round robin over tenants, longest cached prefix first (arXiv 2501.14312).

Tenants have a deficit in tokens. Steps whose tenant's deficit is positive go first, those with the
longest cached prefix before others; being sent costs the tokens that must be computed, output
costs `output_weight` each. When nobody with a positive deficit waits, everyone without gets
`quantum` more; here a step's rank is the number of such rounds that its tenant still needs, which
is the same order without changing anything while being asked. A larger quantum means more locality
and looser fairness.

Charged when a step is sent by what its conversation had not computed before, corrected at its end
by the engine's own count where it has one. Tenants that are idle are forgotten after the latest
16,384.

Fails where locality follows tenants (each quantum is then a burst of one of them), and it knows no
programs: a long prefix is preferred whatever is left to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from agentsched.model import Command, Event, Instant, TenantId
from agentsched.policy import SortKey, StepView, World
from agentsched_policies.bounded import Bounded
from agentsched_policies.uncached import UncachedLog


class Dlpm:
    """Deficits by tenant, `quantum` tokens a round."""

    def __init__(self, *, quantum: int = 16_384, output_weight: float = 2.0) -> None:
        if quantum < 1 or output_weight < 0:
            raise ValueError("quantum is at least a token, output_weight 0 or more")
        self._quantum = quantum
        self._log = UncachedLog(output_weight=output_weight)
        self._deficits: Bounded[TenantId, float] = Bounded()

    def observe(self, event: Event, *, now: Instant) -> None:
        charge = self._log.observe(event, now=now)
        if charge is not None:
            self._charge(charge.tenant, charge.tokens)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        for charge in self._log.decided(commands, now=now):
            self._refill(self._rounds(charge.tenant))
            self._charge(charge.tenant, charge.tokens)

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        conversation = world.conversation(step)
        missing = step.prompt_tokens
        if conversation.engine is not None:
            missing = world.missing_tokens(step, conversation.engine)
        else:
            up = (e.engine for e in world.engines.values() if e.is_up)
            missing = min((world.missing_tokens(step, engine) for engine in up), default=missing)
        return (float(self._rounds(step.tenant)), -float(step.prompt_tokens - missing))

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        return 0

    def _deficit(self, tenant: TenantId) -> float:
        known = self._deficits.get(tenant)
        return float(self._quantum) if known is None else known

    def _rounds(self, tenant: TenantId) -> int:
        """How often a quantum must be given out until this tenant's deficit is positive."""
        deficit = self._deficit(tenant)
        return 0 if deficit > 0 else floor(-deficit / self._quantum) + 1

    def _refill(self, rounds: int) -> None:
        for tenant, deficit in list(self._deficits.items()) if rounds else ():
            own = min(rounds, self._rounds(tenant))
            if own:
                self._deficits.set(tenant, deficit + own * self._quantum)

    def _charge(self, tenant: TenantId, tokens: float) -> None:
        # What a correction gives back is no credit beyond one quantum.
        left = min(float(self._quantum), self._deficit(tenant) - tokens)
        self._deficits.set(tenant, left)
