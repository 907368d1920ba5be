"""CONCUR (arXiv 2601.22705): additive increase, multiplicative decrease of the active agents.

Every `interval_s`, for each engine: while use of its KV pool is below `low` (0.2), `increase` more
agents may be active; above `high` (0.5) their number is multiplied by `decrease`. Use is the
engine's own gauge where it reports one, else the prompt tokens of our steps that run there over the
pool. The agents that were let in first are active; a step of another waits for its turn. (The
constants of increase and decrease and the interval are unpublished: 1, 0.5 and 1 s are ours.)

Fails where a few running steps fill the pool (a decrease at every interval), where pauses are long
(a paused agent is active and uses nothing, so the number climbs beyond what fits), and it counts
agents, which differ in size.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import (
    Command,
    Dispatch,
    EngineId,
    EngineLost,
    EngineReported,
    Event,
    Instant,
    ProgramClosed,
    ProgramId,
    StepFinished,
    after,
    seconds,
)
from agentsched.policy import Admission, Admitted, EngineView, Held, StepView, World
from agentsched_policies.bounded import Bounded
from agentsched_policies.step_log import StepLog

_LIMIT_MAX = 1_000_000.0


class _Engine:
    """One engine's window of active agents."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.pool = 0
        self.gauge: float | None = None
        self.running_tokens = 0
        self.running = 0

    def use(self) -> float:
        """Share of the pool in use; 0 where the pool's size is unknown."""
        if self.gauge is not None:
            return self.gauge
        return self.running_tokens / self.pool if self.pool else 0.0


class Concur:
    """A window of active agents for each engine."""

    reads_gauges = True

    def __init__(
        self,
        *,
        low: float = 0.2,
        high: float = 0.5,
        increase: float = 1.0,
        decrease: float = 0.5,
        start: int = 4,
        interval_s: float = 1.0,
    ) -> None:
        if not 0 <= low < high <= 1 or not 0 < decrease < 1:
            raise ValueError("0 <= low < high <= 1, and decrease is between 0 and 1")
        if increase <= 0 or start < 1 or interval_s <= 0:
            raise ValueError("increase and interval_s are positive, start at least 1")
        self._low, self._high = low, high
        self._increase, self._decrease = increase, decrease
        self._start = start
        self._interval = seconds(interval_s)
        #: When the windows adapt next; 0 before anything has happened.
        self._next = Instant(0)
        self._log = StepLog()
        self._engines: dict[EngineId, _Engine] = {}
        #: Agents that were let in, the first one first, and where.
        self._active: Bounded[ProgramId, EngineId] = Bounded()

    def observe(self, event: Event, *, now: Instant) -> None:
        match event:
            case EngineReported():
                engine = self._engines.setdefault(event.engine, _Engine(float(self._start)))
                engine.pool = event.capabilities.kv_tokens or 0
                engine.gauge = event.load.kv_usage
            case EngineLost():
                self._engines.pop(event.engine, None)
            case ProgramClosed():
                self._active.pop(event.program)
            case _:
                pass
        step = self._log.get(event.step) if hasattr(event, "step") else None
        where = self._engines.get(step.engine) if step is not None and step.engine else None
        ended = self._log.observe(event, now=now)
        if step is not None and where is not None and (ended is not None or step.engine is None):
            where.running_tokens = max(0, where.running_tokens - step.prompt_tokens)
            where.running = max(0, where.running - 1)
        says_last = isinstance(event, StepFinished) and event.is_last_word
        if ended is not None and says_last and not ended.is_beside:
            self._active.pop(ended.program)
        if now >= self._next:
            if self._next:
                self._adapt()
            self._next = after(now, self._interval)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._log.decided(commands, now=now)
        for command in commands:
            step = self._log.get(command.step) if isinstance(command, Dispatch) else None
            if step is None or not isinstance(command, Dispatch):
                continue
            engine = self._engines.get(command.engine)
            if engine is not None:
                engine.running_tokens += step.prompt_tokens
                engine.running += 1
            # A title alone makes no agent: its last word would not end one.
            if not step.is_beside and self._active.get(step.program) != command.engine:
                self._active.set(step.program, command.engine)

    def admit(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> Admission:
        window = self._engines.get(engine.engine)
        if window is None:
            return Admitted()
        room = max(1, int(window.limit))
        for program, home in self._active.items():
            if program == step.program and home == engine.engine:
                return Admitted() if room > 0 else self._held()
            room -= home == engine.engine
        if room > 0 and engine.running_steps != window.running:
            # Whoever was let in earlier in this turn has taken a place already.
            room -= len(self._entering(engine, world) - {step.program})
        return Admitted() if room > 0 else self._held()

    def _held(self) -> Held:
        return Held(reason="agents", until=self._next, blocks_others=False)

    def _entering(self, engine: EngineView, world: World) -> set[ProgramId]:
        """Programs with a step under way there that is not known as sent yet."""
        under_way = (c for c in world.resident(engine.engine) if c.paused_at is None)
        return {c.program for c in under_way if self._active.get(c.program) != engine.engine}

    def has_room(self, engine: EngineView, world: World, *, now: Instant) -> bool:
        return True

    def _adapt(self) -> None:
        for engine in self._engines.values():
            use = engine.use()
            if use > self._high:
                engine.limit = max(1.0, engine.limit * self._decrease)
            elif use < self._low:
                engine.limit = min(_LIMIT_MAX, engine.limit + self._increase)
