"""Steps under way as a policy can follow them: from events, and from what each turn decided.

Policies that keep accounts (service by program, deficits by engine, programs that are active) need
to know where and when a step was sent. Views tell that while they are being asked; accounts are
kept between the questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentsched.model import (
    Command,
    ConversationId,
    Dispatch,
    EngineId,
    Event,
    Instant,
    Nanos,
    ProgramId,
    Reject,
    StepArrived,
    StepCancelled,
    StepClass,
    StepFailed,
    StepFinished,
    StepId,
    TenantId,
    between,
)
from agentsched_policies.bounded import Bounded

_BESIDE: Final = frozenset(
    {StepClass.AUXILIARY, StepClass.COMPACTION, StepClass.PROBE, StepClass.TOKEN_COUNT}
)


def is_beside(step_class: StepClass) -> bool:
    """Whether it is asked for beside its program's work, as a title is: its end ends nothing."""
    return step_class in _BESIDE


@dataclass(slots=True, kw_only=True)
class LoggedStep:
    """One step that has not ended; `dispatched_at` and `engine` are None while it waits."""

    program: ProgramId
    conversation: ConversationId
    tenant: TenantId
    agent: str
    prompt_tokens: int
    is_beside: bool
    arrived_at: Instant
    engine: EngineId | None = None
    dispatched_at: Instant | None = None

    def took(self, *, now: Instant) -> Nanos:
        """How long it has been on its engine; 0 when it never was."""
        return between(self.dispatched_at, now) if self.dispatched_at is not None else Nanos(0)

    def waited(self, *, now: Instant) -> Nanos:
        """How long it waited to be sent."""
        until = self.dispatched_at if self.dispatched_at is not None else now
        return between(self.arrived_at, until)


class StepLog:
    """All steps that arrived and have not ended, as far as events and commands tell."""

    def __init__(self) -> None:
        self._steps: Bounded[StepId, LoggedStep] = Bounded(size_max=65_536)

    def get(self, step: StepId) -> LoggedStep | None:
        """A step that has not ended."""
        return self._steps.get(step)

    def observe(self, event: Event, *, now: Instant) -> LoggedStep | None:
        """Take in an event; the step that it ended, where it ended one."""
        match event:
            case StepArrived():
                if event.step not in self._steps:
                    self._steps.set(event.step, _logged(event, now=now))
            case StepFinished() | StepCancelled():
                return self._steps.pop(event.step)
            case StepFailed():
                step = self._steps.get(event.step)
                if step is None or not event.is_retryable:
                    return self._steps.pop(event.step)
                step.engine = step.dispatched_at = None
            case _:
                pass
        return None

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        """Take in what a turn decided."""
        for command in commands:
            if isinstance(command, Dispatch):
                step = self._steps.get(command.step)
                if step is not None:
                    step.engine, step.dispatched_at = command.engine, now
            elif isinstance(command, Reject):
                self._steps.pop(command.step)


def _logged(event: StepArrived, *, now: Instant) -> LoggedStep:
    return LoggedStep(
        program=event.program,
        conversation=event.conversation,
        tenant=event.tenant,
        agent=event.agent,
        prompt_tokens=event.prompt_tokens,
        is_beside=is_beside(event.step_class),
        arrived_at=now,
    )
