"""Autellix's load balancer (arXiv 2502.13965, algorithm 2).

A call of at most `short_tokens` (2,048) goes to the least used engine: most of it is system prompt,
which any engine has (75 % cached, they found). A longer one goes to its program's engine, which
is the least used one at the program's first long call.

Fails where engines differ, where short calls are most of the load (their caches go wherever they
go), and where one engine gathers the long programs: nothing moves.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import (
    Command,
    EngineId,
    EngineLost,
    Event,
    Instant,
    ProgramClosed,
    ProgramId,
)
from agentsched.policy import EngineView, StepView, World
from agentsched_policies.bounded import Bounded
from agentsched_policies.step_log import StepLog


class Autellix:
    """Short calls to the least used engine, long ones to their program's."""

    def __init__(self, *, short_tokens: int = 2_048) -> None:
        if short_tokens < 0:
            raise ValueError(f"short_tokens is 0 or more, not {short_tokens}")
        self._short_tokens = short_tokens
        self._log = StepLog()
        self._home: Bounded[ProgramId, EngineId] = Bounded()

    def observe(self, event: Event, *, now: Instant) -> None:
        self._log.observe(event, now=now)
        if isinstance(event, ProgramClosed):
            self._home.pop(event.program)
        elif isinstance(event, EngineLost):
            for program in [p for p, home in self._home.items() if home == event.engine]:
                self._home.pop(program)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._log.decided(commands, now=now)
        for command in commands:
            step = self._log.get(command.step) if hasattr(command, "step") else None
            if step is None or step.engine is None or step.prompt_tokens <= self._short_tokens:
                continue
            if step.program not in self._home:
                self._home.set(step.program, step.engine)

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        unused = 1.0 / (1.0 + engine.running_steps)
        is_long = step.prompt_tokens > self._short_tokens
        if is_long and self._home.get(step.program) == engine.engine:
            return 2.0
        return unused
