"""Programs that were closed, and go as soon as none of their steps is active.

Whoever said that a step is its last is closed by that step. Where a program that was served gets no
answer to it, its client asks again: it goes on, and would else come back as a new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentsched.kernel.records import ProgramRecord, StepRecord
from agentsched.model import ProgramId, StepId, StepState

_UNANSWERED = (StepState.FAILED, StepState.REJECTED)


class Closing:
    """Which programs are closed, and which of these have no active step any more."""

    def __init__(self) -> None:
        #: The step by which each was closed; None where its client or an operator said so.
        self._by: dict[ProgramId, StepId | None] = {}
        self._idle: dict[ProgramId, None] = {}

    def __contains__(self, program: ProgramId) -> bool:
        return program in self._by

    def close(self, program: ProgramRecord, by: StepId | None) -> None:
        """Let a program go as soon as no step of it is active, unless it wakes again."""
        self._by[program.program] = by
        if not program.active_steps:
            self._idle[program.program] = None

    def wake(self, program: ProgramId) -> None:
        """It goes on, or is gone."""
        self._by.pop(program, None)
        self._idle.pop(program, None)

    def ended(self, step: StepRecord, program: ProgramRecord) -> None:
        """A step of a program is active no more."""
        key = step.program
        if key not in self._by:
            return
        if step.state in _UNANSWERED and program.was_served and self._by[key] == step.step:
            self.wake(key)
        elif not program.active_steps:
            self._idle[key] = None

    def idle(self) -> Iterator[ProgramId]:
        """Those that can go, the one that was first at its end first."""
        return iter(self._idle)

    def check(self, programs: Mapping[ProgramId, ProgramRecord]) -> None:
        """Assert that all of them live, and that those can go that have no active step."""
        assert self._by.keys() <= programs.keys()
        assert {key for key in self._by if not programs[key].active_steps} == self._idle.keys()
