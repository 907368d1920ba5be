"""SAGA's local queue: cached sessions of greatest urgency first, then the rest, oldest use first.

arXiv 2605.00528. Urgency of a program, as in agent fair share: work to come over time to its
deadline. Work is expected steps x mean seconds of a step; the deadline is the program's own, else
`stretch` (1.5) times its expected completion time after it began. Between tenants their AFS adds
these up, which is the policy `share.afs`.

Fails as urgency does: it grows without end as a deadline passes, so an overdue program takes
everything; and their reproduction elsewhere measured it worse than arrival order.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import (
    MILLISECOND,
    Command,
    Event,
    Instant,
    StepFinished,
    seconds,
)
from agentsched.policy import SortKey, StepView, World
from agentsched_policies.step_log import StepLog

_RATE = 0.1
_AGENTS_MAX = 256
_TIME_FIRST = float(seconds(1))
_STEPS_LEFT = 10.0


class Saga:
    """Cached first; among those the most urgent, among the others the least recently used."""

    def __init__(self, *, stretch: float = 1.5) -> None:
        if stretch <= 0:
            raise ValueError(f"stretch must be positive, not {stretch}")
        self._stretch = stretch
        self._log = StepLog()
        self._times: dict[str, float] = {}

    def observe(self, event: Event, *, now: Instant) -> None:
        step = self._log.observe(event, now=now)
        if step is None or step.dispatched_at is None or not isinstance(event, StepFinished):
            return
        mean = self._times.get(step.agent)
        if mean is None and len(self._times) >= _AGENTS_MAX:
            return
        took = float(step.took(now=now))
        self._times[step.agent] = took if mean is None else mean + _RATE * (took - mean)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._log.decided(commands, now=now)

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        conversation = world.conversation(step)
        if not conversation.is_resident:
            return (1.0, float(step.arrived_at))
        return (0.0, -self._urgency(step, world, now=now))

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        return 0

    def _urgency(self, step: StepView, world: World, *, now: Instant) -> float:
        program = world.programs[step.program]
        graph = world.graph(step.program)
        left = graph.steps_left() if graph is not None else None
        steps = 1.0 + (left if left is not None else _STEPS_LEFT)
        work = steps * self._times.get(program.agent, _TIME_FIRST)
        if program.deadline is not None:
            due = float(program.deadline)
        else:
            whole = work * (steps + program.steps_done) / steps
            due = program.opened_at + self._stretch * whole
        return work / max(float(MILLISECOND), due - now)
