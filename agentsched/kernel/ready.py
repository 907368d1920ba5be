"""Steps that wait for an engine, in the order of their arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator

from agentsched.kernel.newcomers import Newcomers
from agentsched.kernel.records import EngineRecord, StepRecord
from agentsched.model import Instant, Nanos, ProgramId, StepClass, StepId, after
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
        #: All and only steps in state WAITING, by arrival. All wait equally long at most, so this
        #: is also the order in which they become due.
        self._steps: OrderedDict[StepId, StepRecord] = OrderedDict()
        #: Steps at their bypass bound, which are due before their time: of each model by arrival
        #: and id. A burst reaches its bound as one, so none of them may cost a look at the others.
        self._overtaken: dict[str, list[tuple[Instant, StepId]]] = {}
        #: Those of them whose program was sent nothing so far, and all the others.
        self.newcomers = Newcomers()
        self._begun: dict[StepId, StepRecord] = {}
        #: How many wait for each model.
        self.models: dict[str, int] = {}
        #: Batch steps, and steps with a priority of their own: without any the sort key is smaller.
        self.batch_steps = 0
        self._prioritised = 0
        #: No waiting step arrived after this.
        self._newest = Instant(0)

    def set_bounds(self, *, wait_ns_max: Nanos, bypasses_max: int) -> None:
        """Another promise from now on, also to those that wait already."""
        self._wait_ns_max = wait_ns_max
        self._bypasses_max = bypasses_max
        self._overtaken.clear()
        for step in self:
            if step.bypassed >= bypasses_max:
                self._overtake(step)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self._steps.values())

    def __contains__(self, step: StepId) -> bool:
        return step in self._steps

    def add(self, step: StepRecord, *, is_newcomer: bool = False) -> None:
        """Let a step wait. Its clock runs from its first arrival, also when it comes back."""
        assert step.step not in self._steps
        if step.arrived_at < self._newest:
            # It was out and failed, or is a retry; those that came after it go behind it again.
            after_it = []
            for other in reversed(self._steps.values()):
                if other.arrived_at <= step.arrived_at:
                    break
                after_it.append(other.step)
            self._steps[step.step] = step
            for key in reversed(after_it):
                self._steps.move_to_end(key)
        else:
            self._steps[step.step] = step
            self._newest = step.arrived_at
        if is_newcomer:
            self.newcomers.add(step)
        else:
            self._begun[step.step] = step
        self.models[step.model] = self.models.get(step.model, 0) + 1
        self.batch_steps += step.step_class is StepClass.BATCH
        self._prioritised += step.priority != 0
        if step.bypassed >= self._bypasses_max:
            self._overtake(step)

    def remove(self, step: StepRecord) -> None:
        """Take a waiting step out."""
        del self._steps[step.step]
        if not self.newcomers.remove(step):
            del self._begun[step.step]
        self.models[step.model] -= 1
        if not self.models[step.model]:
            del self.models[step.model]
        self.batch_steps -= step.step_class is StepClass.BATCH
        self._prioritised -= step.priority != 0
        if step.bypassed >= self._bypasses_max:
            overtaken = self._overtaken[step.model]
            del overtaken[bisect_left(overtaken, (step.arrived_at, step.step))]
            if not overtaken:
                del self._overtaken[step.model]

    def begin(self, program: ProgramId) -> None:
        """More is under way than this program's first step: that is no newcomer any more."""
        step = self.newcomers.of(program)
        if step is not None:
            self.newcomers.remove(step)
            self._begun[step.step] = step

    def due_at(self, step: StepRecord) -> Instant:
        """When the wait bound makes this step due."""
        return after(step.arrived_at, self._wait_ns_max)

    def is_late(self, step: StepRecord, *, now: Instant) -> bool:
        """Whether it has waited for as long as it may."""
        return self.due_at(step) <= now

    def is_due(self, step: StepRecord, *, now: Instant) -> bool:
        """Whether one of its bounds is reached: while it waits, nobody may go before it."""
        return step.bypassed >= self._bypasses_max or self.is_late(step, now=now)

    def earliest(self) -> Instant | None:
        """The first instant at which a waiting step becomes due."""
        return self.due_at(next(iter(self._steps.values()))) if self._steps else None

    def next_due(self, *, now: Instant, passing: Collection[StepId]) -> StepRecord | None:
        """The oldest step whose bound is reached, leaving out those in `passing`.

        And those overtaken ones that ask for the model of one in `passing`: what it waits for, they
        wait for as well.
        """
        for step in self._steps.values():
            if not self.is_late(step, now=now):
                break
            if step.step not in passing:
                return step
        if not self._overtaken:
            return None
        held = {self._steps[key].model for key in passing if key in self._steps}
        oldest = (steps[0] for model, steps in self._overtaken.items() if model not in held)
        first = min(oldest, default=None)
        return self._steps[first[1]] if first is not None else None

    def tell_overtaken(self, model: str, reason: str) -> None:
        """All steps of a model that are at their bypass bound wait on for this reason."""
        for _, key in self._overtaken.get(model, ()):
            self._steps[key].held_for = reason

    def _overtake(self, step: StepRecord) -> None:
        """A waiting step reaches its bypass bound."""
        insort(self._overtaken.setdefault(step.model, []), (step.arrived_at, step.step))

    def in_order(
        self, rank: Callable[[StepRecord], SortKey], *, newcomers: bool = True
    ) -> list[StepRecord]:
        """All waiting steps, batch last, by priority, `rank`, arrival and id: a total order.

        Without `newcomers`: those of programs that are under way only, in the same order.
        """
        steps: Iterable[StepRecord] = (self._steps if newcomers else self._begun).values()
        if not self.batch_steps and not self._prioritised:
            # The usual case, with the smaller key.
            return sorted(steps, key=lambda s: (rank(s), s.arrived_at, s.step))

        def key(step: StepRecord) -> tuple[bool, int, SortKey, Instant, StepId]:
            is_batch = step.step_class is StepClass.BATCH
            return is_batch, step.priority, rank(step), step.arrived_at, step.step

        return sorted(steps, key=key)

    def count_bypasses(self, dispatched: StepRecord, engine: EngineRecord) -> None:
        """`dispatched` goes to `engine` now: count it for each older step that could go there."""
        arrived_at, most = dispatched.arrived_at, self._bypasses_max
        model, is_served = "", True
        for step in self._steps.values():
            if step.arrived_at >= arrived_at:
                break
            if step.model != model:
                model = step.model
                is_served = engine.serves(model)
            if is_served:
                step.bypassed += 1
                if step.bypassed == most:
                    self._overtake(step)

    def check(self) -> None:
        """Assert that the indexes say what the steps do."""
        self.newcomers.check()
        begun = [s.step for s in self if s.step not in self.newcomers]
        assert sorted(begun) == sorted(self._begun)
        assert len(begun) + len(self.newcomers) == len(self)
        assert self.models == Counter(s.model for s in self)
        assert self.batch_steps == sum(s.step_class is StepClass.BATCH for s in self)
        assert self._prioritised == sum(s.priority != 0 for s in self)
        overtaken = [(s.arrived_at, s.step) for s in self if s.bypassed >= self._bypasses_max]
        assert sorted(overtaken) == sorted(e for steps in self._overtaken.values() for e in steps)
        for model, steps in self._overtaken.items():
            assert steps == sorted(steps)
            assert all(self._steps[key].model == model for _, key in steps)
        arrivals = [s.arrived_at for s in self]
        assert arrivals == sorted(arrivals)
