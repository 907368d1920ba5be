"""Autellix: least attained service, by program (arXiv 2502.13965, sections 4.2 and 4.3).

A call's priority is the service that its program has had: with `variant="plas"` the sum of the run
times of its finished calls, with "atlas" the longest chain of them, kept as one number per program:
each call notes `start = service` when it arrives, at its end `service = max(service, start + t)`.
Less service is sooner, in `levels` queues whose bounds double from `first_s` seconds on, first come
first served within a queue. A program whose waiting is `beta` times its service (its totals plus
this call's wait) is promoted to the first queue until the call goes.

Their queues also have quanta and preempt within an engine, which cannot be done in front of one.
Levels, bounds and beta are unpublished: 7, 1 s and 8 are ours.

Fails where long programs matter: they wait for every newcomer, and their cache is gone when their
turn comes (Continuum measures it losing on SWE-bench); nothing keeps a cache between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentsched.model import (
    Command,
    Event,
    Instant,
    Nanos,
    ProgramClosed,
    ProgramId,
    StepArrived,
    StepFinished,
    StepId,
    between,
    seconds,
)
from agentsched.policy import SortKey, StepView, World
from agentsched_policies.bounded import Bounded
from agentsched_policies.step_log import StepLog


@dataclass(slots=True)
class _Account:
    """A program's service and waiting so far, in nanoseconds."""

    service: int = 0
    run: int = 0
    waited: int = 0


class Autellix:
    """Queues by attained service; `variant` is "plas" or "atlas"."""

    def __init__(
        self,
        *,
        variant: str = "plas",
        levels: int = 7,
        first_s: float = 1.0,
        beta: float = 8.0,
    ) -> None:
        if variant not in ("plas", "atlas"):
            raise ValueError(f"variant is plas or atlas, not {variant}")
        if levels < 1 or first_s <= 0 or beta <= 0:
            raise ValueError("levels is at least 1, first_s and beta are positive")
        self._is_atlas = variant == "atlas"
        self._bounds = [seconds(first_s) * 2**n for n in range(levels - 1)]
        self._beta = beta
        self._log = StepLog()
        self._accounts: Bounded[ProgramId, _Account] = Bounded()
        #: The program's service when each live call arrived.
        self._starts: Bounded[StepId, int] = Bounded(size_max=65_536)

    def observe(self, event: Event, *, now: Instant) -> None:
        if isinstance(event, StepArrived) and self._log.get(event.step) is None:
            account = self._accounts.get(event.program) or _Account()
            self._accounts.set(event.program, account)
            self._starts.set(event.step, account.service)
        elif isinstance(event, ProgramClosed):
            self._accounts.pop(event.program)
        step = self._log.observe(event, now=now)
        if step is None:
            return
        start = self._starts.pop(event.step) if hasattr(event, "step") else None
        known = self._accounts.get(step.program)
        if known is None or step.dispatched_at is None or not isinstance(event, StepFinished):
            return
        took = step.took(now=now)
        known.run += took
        known.waited += step.waited(now=now)
        chained = max(known.service, (start or 0) + took)
        known.service = chained if self._is_atlas else known.service + took

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._log.decided(commands, now=now)

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        return (float(self._level(step, now=now)), float(step.arrived_at))

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        # 0 would mean "no opinion".
        return self._level(step, now=now) + 1

    def _level(self, step: StepView, *, now: Instant) -> int:
        account = self._accounts.get(step.program)
        if account is None:
            return 0
        waited = account.waited + max(0, between(step.arrived_at, now))
        if waited >= self._beta * max(seconds(1), Nanos(account.run)):
            return 0
        return sum(account.service >= bound for bound in self._bounds)
