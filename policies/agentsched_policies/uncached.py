"""Tokens that steps make engines compute: guessed when they are sent, corrected when they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentsched.model import (
    Command,
    ConversationId,
    Dispatch,
    EngineId,
    Event,
    Instant,
    StepFinished,
    StepId,
    TenantId,
)
from agentsched_policies.bounded import Bounded
from agentsched_policies.step_log import StepLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Tokens to add to an account; negative where the guess was too high."""

    tenant: TenantId
    engine: EngineId | None
    tokens: float


class UncachedLog:
    """Charges for each step: `prompt_weight` x uncached prompt + `output_weight` x output tokens.

    When it is sent, a step is taken to compute what its conversation had not computed on that
    engine before.
    """

    def __init__(self, *, prompt_weight: float = 1.0, output_weight: float = 2.0) -> None:
        self._prompt_weight = prompt_weight
        self._output_weight = output_weight
        self._log = StepLog()
        self._guesses: Bounded[StepId, float] = Bounded(size_max=65_536)
        #: Where each conversation was last, and how many tokens it had there.
        self._contexts: Bounded[ConversationId, tuple[EngineId, int]] = Bounded()

    def observe(self, event: Event, *, now: Instant) -> Charge | None:
        """Take in an event; the correction for the step that it ended."""
        step = self._log.observe(event, now=now)
        if step is None:
            return None
        guess = self._guesses.pop(event.step) if hasattr(event, "step") else None
        if not isinstance(event, StepFinished):
            # It was under way: what was computed is charged, since nobody gives it back.
            return None
        usage = event.usage
        if step.engine is not None:
            tokens = usage.prompt_tokens + usage.output_tokens
            self._contexts.set(step.conversation, (step.engine, tokens))
        uncached = max(0, usage.prompt_tokens - (usage.cached_tokens or 0))
        computed = self._prompt_weight * uncached
        if usage.cached_tokens is None and guess is not None:
            computed = min(computed, guess)  # its engine does not say: nobody knows better
        true = computed + self._output_weight * usage.output_tokens
        return Charge(tenant=step.tenant, engine=step.engine, tokens=true - (guess or 0.0))

    def decided(self, commands: Sequence[Command], *, now: Instant) -> list[Charge]:
        """Take in a turn's commands; a charge for each step that was sent."""
        self._log.decided(commands, now=now)
        charges = []
        for command in commands:
            step = self._log.get(command.step) if isinstance(command, Dispatch) else None
            if step is None or not isinstance(command, Dispatch):
                continue
            known = self._contexts.get(step.conversation)
            cached = known[1] if known is not None and known[0] == command.engine else 0
            guess = self._prompt_weight * max(0, step.prompt_tokens - cached)
            self._guesses.set(command.step, guess)
            charges.append(Charge(tenant=step.tenant, engine=command.engine, tokens=guess))
        return charges
