"""ThunderAgent's picture of the world: active and paused programs, and a tick that sorts them.

arXiv 2602.13692; what their code does (section 5b of our notes), defects included:

- capacity of an engine: its KV tokens; used: tokens of its reasoning programs + `acting_weight` x
  tokens of its acting ones + 100 for each program. Shared prefixes count once per program.
- a new program goes on at once only if nobody is paused and some engine has room for it.
- every `tick_s` (5 s): resume what fits, then pause where too much is in. Resumed are programs with
  a step waiting that have done one before, then new ones, then acting ones; fewest tokens first;
  they are then placed largest first on the engine with most room. Paused are the smallest acting
  programs, and then reasoning ones are marked: they pause when their next step comes.

A program that is over is let go when that is said (`ProgramClosed`), or at its last word: theirs
waits for an explicit release, without which every program would be active for ever. The last word
of a title or a summary beside its work is not its own. Nobody resumes on an engine that is drained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from agentsched.model import (
    Command,
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLost,
    EngineReported,
    Event,
    Instant,
    ProgramClosed,
    ProgramId,
    StepArrived,
    StepFinished,
    StepId,
    after,
    seconds,
)
from agentsched_policies.bounded import Bounded
from agentsched_policies.gone import GoneEngines
from agentsched_policies.step_log import LoggedStep, StepLog, is_beside

#: What each program counts beside its tokens.
_EXTRA = 100


@dataclass(slots=True, kw_only=True)
class ActiveProgram:
    """One program. `engine` is where it is, or where it is to resume; `has_work` where it asked for
    more than titles and the like."""

    program: ProgramId
    tokens: int = 0
    steps: int = 0
    waiting: int = 0
    running: int = 0
    has_work: bool = False
    is_paused: bool = False
    is_marked: bool = False
    engine: EngineId | None = None

    @property
    def is_reasoning(self) -> bool:
        """It has a step that waits or runs; otherwise its tools do (it is acting)."""
        return bool(self.waiting or self.running)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """Tokens used on each engine, and the first two programs that are paused or to be begun."""

    used: Mapping[EngineId, float]
    queued: tuple[ProgramId, ...]


class ActivePrograms:
    """Follows events and commands; `tick` runs by itself when its time has come."""

    def __init__(self, *, tick_s: float, acting_weight: float) -> None:
        if tick_s <= 0 or not 0 <= acting_weight <= 1:
            raise ValueError("tick_s is positive, acting_weight between 0 and 1")
        self._tick = seconds(tick_s)
        self._acting_weight = acting_weight
        self._log = StepLog()
        self._programs: Bounded[ProgramId, ActiveProgram] = Bounded()
        self._capacity: dict[EngineId, int] = {}
        #: Engines that may be given nothing now, however much room they have.
        self._drained: dict[EngineId, None] = {}
        self._gone = GoneEngines()
        self.next_tick = Instant(0)
        #: Answers of `room` and `is_queue_empty_but_for`, until something happens: they are asked
        #: for every step that waits.
        self._looked: _Look | None = None

    def __getstate__(self) -> dict[str, object]:
        # An answer that is remembered is no knowledge.
        return {**vars(self), "_looked": None}

    def get(self, program: ProgramId) -> ActiveProgram | None:
        """A program that is known."""
        return self._programs.get(program)

    def has(self, step: StepId) -> bool:
        """Whether a step arrived and has not ended."""
        return self._log.get(step) is not None

    def room(self, engine: EngineId) -> float:
        """Tokens that would still fit, by their count."""
        return self._capacity.get(engine, 0) - self._look().used.get(engine, 0)

    def is_queue_empty_but_for(self, program: ProgramId) -> bool:
        """Whether no other program is paused or waits to be begun."""
        return all(one == program for one in self._look().queued)

    def observe(self, event: Event, *, now: Instant) -> None:
        """Learn, and tick when it is time."""
        self._looked = None
        forgotten = self._gone.observe(event)
        if forgotten is not None:
            self._drained.pop(forgotten, None)
        match event:
            case EngineReported():
                self._capacity[event.engine] = event.capabilities.kv_tokens or 2**62
            case EngineLost():
                self._capacity.pop(event.engine, None)
            case EngineDrained(is_draining=True):
                self._drained[event.engine] = None
            case EngineDrained():
                self._drained.pop(event.engine, None)
            case StepArrived() if self._log.get(event.step) is None:
                self._arrive(event)
            case ProgramClosed():
                self._programs.pop(event.program)
            case _:
                pass
        known = self._log.get(event.step) if hasattr(event, "step") else None
        was_running = known is not None and known.engine is not None
        ended = self._log.observe(event, now=now)
        program = self._programs.get(known.program) if known is not None else None
        if known is not None and program is not None:
            is_back = was_running and ended is None and known.engine is None
            if ended is not None or is_back:
                self._leave(program, was_running=was_running)
                program.waiting += is_back
            if ended is not None and isinstance(event, StepFinished):
                self._finish(program, event, ended)
            if not program.steps and not program.is_reasoning:
                # Its client left before it was served: it has no room, and waits for none.
                program.is_paused, program.is_marked = True, False
        if now >= self.next_tick:
            self._run_tick()
            self.next_tick = after(now, self._tick)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        """Whatever was sent is active, also what the scheduler's bound forced in."""
        self._looked = None
        known = {c.step: self._log.get(c.step) for c in commands if hasattr(c, "step")}
        self._log.decided(commands, now=now)
        for command in commands:
            step = known.get(command.step) if hasattr(command, "step") else None
            program = self._programs.get(step.program) if step is not None else None
            if program is None:
                continue
            program.waiting = max(0, program.waiting - 1)
            if isinstance(command, Dispatch):
                program.running += 1
                program.engine = command.engine
                program.is_paused = False
            elif not program.steps and not program.is_reasoning:
                self._programs.pop(program.program)  # turned away, and never served

    def _arrive(self, event: StepArrived) -> None:
        program = self._programs.get(event.program)
        if program is None:
            # New: it is queued until it is let in.
            program = ActiveProgram(program=event.program, is_paused=True)
            self._programs.set(event.program, program)
        if program.is_marked:
            program.is_marked, program.is_paused = False, True
        program.waiting += 1
        program.has_work = program.has_work or not is_beside(event.step_class)
        program.tokens = max(program.tokens, event.prompt_tokens)

    def _leave(self, program: ActiveProgram, *, was_running: bool) -> None:
        if was_running:
            program.running = max(0, program.running - 1)
        else:
            program.waiting = max(0, program.waiting - 1)

    def _finish(self, program: ActiveProgram, event: StepFinished, step: LoggedStep) -> None:
        if step.is_beside and program.has_work:
            return  # a title says neither how large its program is nor that it is over
        program.steps += 1
        program.tokens = event.usage.prompt_tokens + event.usage.output_tokens
        if event.is_last_word and not program.is_reasoning:
            self._programs.pop(program.program)

    def _look(self) -> _Look:
        if self._looked is None:
            used: dict[EngineId, list[float]] = {}
            for _, program in self._programs.items():
                if program.engine is not None and not program.is_paused:
                    used.setdefault(program.engine, []).append(self._weight(program))
            queued = islice((p.program for p in self._paused()), 2)
            sums = {engine: sum(weights) for engine, weights in used.items()}
            self._looked = _Look(used=sums, queued=tuple(queued))
        return self._looked

    def _room(self, engine: EngineId) -> float:
        """As `room`, while programs change."""
        here = (p for _, p in self._programs.items() if p.engine == engine and not p.is_paused)
        return self._capacity.get(engine, 0) - sum(self._weight(p) for p in here)

    def _weight(self, program: ActiveProgram) -> float:
        return _EXTRA + program.tokens * (1.0 if program.is_reasoning else self._acting_weight)

    def _run_tick(self) -> None:
        self._resume()
        for engine in self._capacity:
            self._pause_until_safe(engine)

    def _resume(self) -> None:
        """Greedily by class and size, then largest first to where most room is."""
        open_now = (engine for engine in self._capacity if engine not in self._drained)
        room = {engine: self._room(engine) for engine in open_now}
        left = sum(r for r in room.values() if r > 0)
        chosen = []
        for program in sorted(self._paused(), key=_resume_key):
            if program.tokens + _EXTRA > left:
                break
            left -= program.tokens + _EXTRA
            chosen.append(program)
        for program in sorted(chosen, key=lambda p: (-p.tokens, p.program)):
            engine = max(room, key=lambda e: (room[e], e))
            room[engine] -= program.tokens + _EXTRA
            program.engine, program.is_paused = engine, False

    def _paused(self) -> Iterable[ActiveProgram]:
        programs = (p for _, p in self._programs.items())
        return (p for p in programs if p.is_paused and (p.steps or p.is_reasoning))

    def _pause_until_safe(self, engine: EngineId) -> None:
        over = -self._room(engine)
        here = [p for _, p in self._programs.items() if p.engine == engine and not p.is_paused]
        here.sort(key=lambda p: (p.is_reasoning, p.tokens, p.program))
        for program in here:
            if over <= 0:
                return
            if program.is_marked:
                over -= self._weight(program)
                continue
            over -= self._weight(program)
            if program.is_reasoning:
                program.is_marked = True
            else:
                program.is_paused = True


def _resume_key(program: ActiveProgram) -> tuple[int, int, str]:
    """Reasoning programs that were served before, new ones, acting ones; smallest first."""
    kind = 2 if not program.is_reasoning else 0 if program.steps else 1
    return kind, program.tokens, program.program
