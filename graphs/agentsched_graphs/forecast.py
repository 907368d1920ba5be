"""Forecasts for live programs: how many steps each has still to come.

Folds events into one small record a program and answers the policies' question through `GraphView`.
A program is taken to be over when its latest answer asks for no tool, when it is closed, when it
has been silent for longer than nearly all who came back (`agentsched_graphs.silences`), or when
somebody suspects so; the count is taken back should it go on.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from agentsched.model import (
    ContinuedElsewhere,
    Event,
    Instant,
    Nanos,
    ProgramClosed,
    ProgramId,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    after,
    between,
)
from agentsched_graphs.remaining import RemainingSteps
from agentsched_graphs.silences import Silences


@dataclass(slots=True, kw_only=True)
class _Progress:
    """One live program; satisfies `policy.GraphView`."""

    remaining: RemainingSteps
    agent: str = ""
    steps_done: int = 0
    active: int = 0
    last_at: Instant
    #: Its latest step was answered: it pauses, and does not wait to ask again.
    was_answered: bool = False
    #: The step count under which it was counted as over; None while it is not.
    counted: int | None = None
    #: Another replica serves it: its silence here says nothing.
    is_elsewhere: bool = False

    def steps_left(self) -> float | None:
        return self.remaining.expected(agent=self.agent, steps_done=self.steps_done)


class Forecasts:
    """A `GraphBuilder` that forecasts remaining steps."""

    def __init__(self, *, programs_max: int = 20_000) -> None:
        self._silences = Silences()
        self._programs_max = programs_max
        self._remaining = RemainingSteps()
        #: Live programs, the one silent for longest first.
        self._programs: OrderedDict[ProgramId, _Progress] = OrderedDict()
        #: Those of them that are not counted as over, in the same order.
        self._open: OrderedDict[ProgramId, _Progress] = OrderedDict()
        #: Program of each live working step.
        self._steps: dict[StepId, ProgramId] = {}

    def set_bound(self, *, programs_max: int) -> None:
        """Know so many programs at most from now on; of more, one goes with each that comes."""
        self._programs_max = programs_max

    def observe(self, event: Event, *, now: Instant) -> None:
        """Take in one event."""
        match event:
            case StepArrived():
                self._arrive(event, now=now)
            case StepFinished():
                progress = self._end(event.step, now=now)
                if progress is not None:
                    # A last word that was said beside this step was not the program's.
                    self._take_back(progress)
                    progress.was_answered = True
                    progress.steps_done += 1
                    if event.is_last_word:
                        self._count(progress)
            case StepFailed() if not event.is_retryable:
                self._end(event.step, now=now)
            case StepCancelled():
                self._end(event.step, now=now)
            case ProgramClosed():
                progress = self._programs.pop(event.program, None)
                self._open.pop(event.program, None)
                if progress is not None and event.is_end and not progress.is_elsewhere:
                    self._count(progress)
            case ContinuedElsewhere():
                progress = self._programs.get(event.program)
                if progress is not None and not progress.active:
                    self._open.pop(event.program, None)
                    self._take_back(progress)
                    progress.is_elsewhere = True
            case _:
                pass
        self._presume(now=now)

    def suspect(self, program: ProgramId) -> None:
        """Its latest answer was probably its last: it counts as over, until it goes on."""
        progress = self._programs.get(program)
        if progress is not None and not progress.active:
            self._count(progress)

    def goes_on(self, program: ProgramId) -> None:
        """What seemed its last answer was none, though its next request is still to come."""
        progress = self._open.get(program)
        if progress is not None:
            self._take_back(progress)

    def forget(self, program: ProgramId) -> None:
        """It did nothing but be turned away: it takes no other's room until it comes again."""
        progress = self._programs.get(program)
        if progress is not None and not (progress.steps_done or progress.active):
            del self._programs[program]
            self._open.pop(program, None)

    @property
    def silence(self) -> Nanos:
        """Whoever is silent for longer is not expected back."""
        return self._silences.limit

    def view(self, program: ProgramId) -> _Progress | None:
        """The forecast for a program; None for one that is not known."""
        return self._programs.get(program)

    def _arrive(self, event: StepArrived, *, now: Instant) -> None:
        if not event.step_class.is_work or event.step in self._steps:
            return
        progress = self._programs.get(event.program)
        if progress is None:
            progress = self._programs[event.program] = _Progress(
                remaining=self._remaining, last_at=now
            )
            if len(self._programs) > self._programs_max:
                forgotten, _ = self._programs.popitem(last=False)
                self._open.pop(forgotten, None)
        elif progress.was_answered and not progress.active and not progress.is_elsewhere:
            self._silences.ended(between(progress.last_at, now))
        self._take_back(progress)
        progress.is_elsewhere = False
        progress.agent = event.agent or progress.agent
        progress.active += 1
        progress.last_at = now
        self._touch(event.program, progress)
        self._steps[event.step] = event.program

    def _end(self, step: StepId, *, now: Instant) -> _Progress | None:
        program = self._steps.pop(step, None)
        progress = self._programs.get(program) if program is not None else None
        if progress is None or program is None:
            return None
        # One that was forgotten meanwhile has a step of before.
        progress.active = max(0, progress.active - 1)
        progress.was_answered = False
        progress.last_at = now
        self._touch(program, progress)
        return progress

    def _touch(self, program: ProgramId, progress: _Progress) -> None:
        self._programs.move_to_end(program)
        self._open[program] = progress
        self._open.move_to_end(program)

    def _presume(self, *, now: Instant) -> None:
        """Count programs that have been silent for too long; a few at a time."""
        while self._open:
            program, progress = next(iter(self._open.items()))
            if after(progress.last_at, self._silences.limit) > now:
                return
            del self._open[program]  # it is here again when it speaks
            if progress.counted is None and not progress.active:
                self._count(progress)
                return

    def _count(self, progress: _Progress) -> None:
        if progress.counted is None and progress.steps_done:
            progress.counted = progress.steps_done
            self._remaining.ended(agent=progress.agent, steps=progress.steps_done)

    def _take_back(self, progress: _Progress) -> None:
        """It goes on after all."""
        if progress.counted is not None:
            self._remaining.woke(agent=progress.agent, steps=progress.counted)
            progress.counted = None
