"""Steps that wait for an engine, in the order of their arrival."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from agentsched.kernel.records import StepRecord
from agentsched.model import Instant, Nanos, StepId, after
from agentsched.policy import SortKey


class ReadySteps:
    """The waiting steps, and the guard that bounds their wait.

    A step is *due* when it has waited for `wait_ns_max` or was bypassed `bypasses_max` times. Due
    steps come first, oldest first, whatever the policy says: this is the one place that makes the
    promise of a bounded wait, so that no policy can break it.
    """

    def __init__(self, *, wait_ns_max: Nanos, bypasses_max: int) -> None:
        self._wait_ns_max = wait_ns_max
        self._bypasses_max = bypasses_max
        #: All and only steps in state WAITING, in insertion order.
        self._steps: dict[StepId, StepRecord] = {}
        #: (due instant, insertion number, step); entries of steps that left are skipped.
        self._due: list[tuple[Instant, int, StepId]] = []
        #: Steps past their bypass bound, which are due before their time.
        self._overtaken: dict[StepId, StepRecord] = {}
        self._inserted = 0

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self._steps.values())

    def __contains__(self, step: StepId) -> bool:
        return step in self._steps

    def add(self, step: StepRecord) -> None:
        """Let a step wait. Its clock runs from its first arrival, also when it comes back."""
        assert step.step not in self._steps
        self._steps[step.step] = step
        self._inserted += 1
        heapq.heappush(self._due, (self.due_at(step), self._inserted, step.step))

    def remove(self, step: StepRecord) -> None:
        """Take a waiting step out."""
        del self._steps[step.step]
        self._overtaken.pop(step.step, None)
        if len(self._due) > 64 and len(self._due) > 4 * len(self._steps):
            self._due = [entry for entry in self._due if entry[2] in self._steps]
            heapq.heapify(self._due)

    def due_at(self, step: StepRecord) -> Instant:
        """When the wait bound makes this step due."""
        return after(step.arrived_at, self._wait_ns_max)

    def earliest(self) -> Instant | None:
        """The first instant at which a waiting step becomes due."""
        self._drop_stale()
        return self._due[0][0] if self._due else None

    def due(self, *, now: Instant) -> list[StepRecord]:
        """Steps whose bound is reached, oldest first."""
        found = dict(self._overtaken)
        self._drop_stale()
        if self._due and self._due[0][0] <= now:
            for due_at, _, step in self._due:
                if due_at <= now and step in self._steps:
                    found[step] = self._steps[step]
        return sorted(found.values(), key=lambda s: (s.arrived_at, s.step))

    def in_order(self, rank: Callable[[StepRecord], SortKey]) -> list[StepRecord]:
        """All waiting steps by `rank`, ties by arrival and then by id: a total order."""
        return sorted(self._steps.values(), key=lambda s: (rank(s), s.arrived_at, s.step))

    def count_bypasses(self, dispatched: StepRecord) -> None:
        """`dispatched` goes now: whoever waits and came before it was bypassed once more."""
        for step in self._steps.values():
            if step.arrived_at < dispatched.arrived_at and step is not dispatched:
                step.bypassed += 1
                if step.bypassed >= self._bypasses_max:
                    self._overtaken[step.step] = step

    def _drop_stale(self) -> None:
        while self._due and self._due[0][2] not in self._steps:
            heapq.heappop(self._due)
