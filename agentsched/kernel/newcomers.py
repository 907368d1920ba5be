"""Waiting steps of programs that were sent nothing so far: under overload, most of the queue.

An admission policy that begins no further program says so once a turn (`shuts_out`), and then
nobody has to rank and ask for each of them: the turn costs what the programs under way cost,
however many others knock.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentsched.kernel.records import StepRecord
from agentsched.model import ProgramId, StepId


class Newcomers:
    """Steps that wait alone in their program, which was sent nothing before: one a program."""

    def __init__(self) -> None:
        self._steps: dict[StepId, StepRecord] = {}
        self._by_program: dict[ProgramId, StepRecord] = {}
        #: How many ask for each model.
        self.models: dict[str, int] = {}
        #: Those that were not told yet why all wait, and by model what the others were told.
        self._untold: dict[StepId, StepRecord] = {}
        self._told: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def __contains__(self, step: StepId) -> bool:
        return step in self._steps

    def add(self, step: StepRecord) -> None:
        """A program's first step waits, and nothing else of it is under way."""
        assert step.program not in self._by_program
        self._steps[step.step] = self._by_program[step.program] = self._untold[step.step] = step
        self.models[step.model] = self.models.get(step.model, 0) + 1

    def remove(self, step: StepRecord) -> bool:
        """It waits no longer, or is no newcomer any more; False when it was none."""
        if self._steps.pop(step.step, None) is None:
            return False
        del self._by_program[step.program]
        self._untold.pop(step.step, None)
        self.models[step.model] -= 1
        if not self.models[step.model]:
            del self.models[step.model]
            self._told.pop(step.model, None)
        return True

    def of(self, program: ProgramId) -> StepRecord | None:
        """The newcomer of a program."""
        return self._by_program.get(program)

    def tell(self, reasons: Mapping[str, str]) -> None:
        """All of them wait, each for the reason of its model.

        Costs as many as were not told it before; all of them where a model's reason is another.
        """
        told = self._told
        changed = {m for m, reason in reasons.items() if told.get(m, reason) != reason}
        if changed:
            self._untold.update({s.step: s for s in self._steps.values() if s.model in changed})
        for step in self._untold.values():
            step.held_for = told[step.model] = reasons[step.model]
        self._untold.clear()

    def ask_each(self) -> None:
        """Each is asked for in this turn, and may be told another reason."""
        if len(self._untold) < len(self._steps):
            self._untold.update(self._steps)

    def check(self) -> None:
        """Assert that the indexes agree."""
        assert {s.program: s.step for s in self._steps.values()} == {
            program: s.step for program, s in self._by_program.items()
        }
        assert len(self._by_program) == len(self._steps)
        counts: dict[str, int] = {}
        for step in self._steps.values():
            counts[step.model] = counts.get(step.model, 0) + 1
        assert counts == self.models
        assert self._untold.keys() <= self._steps.keys()
        assert self._told.keys() <= self.models.keys()
