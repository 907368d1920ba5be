"""SAGA's routing and work stealing (arXiv 2605.00528, section 1a of our notes).

A conversation goes to the engine that has its KV while that engine's load is under `theta` (0.8),
else to the least loaded one. Load, as in their artefact: 0.5 x use + 0.5 x memory pressure + 0.01 x
queue, here steps running of those that the engine batches, resident tokens of its pool, and steps
without a first token. An engine that was idle for `idle_s` (0.1), or whose load is `ratio` (2.0)
times under the home's, steals a waiting step together with its conversation; a program moves
once. (The paper migrates the KV; a proxy cannot, so a moved conversation is computed again.)

Fails where stealing loses a long prefix for a short wait: it weighs loads, not tokens; and the
one move that a session has may come at the wrong moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import (
    Command,
    Dispatch,
    EngineId,
    EngineReported,
    Event,
    Instant,
    ProgramClosed,
    ProgramId,
    between,
    seconds,
)
from agentsched.policy import EngineView, StepView, World
from agentsched_policies.bounded import Bounded
from agentsched_policies.gone import GoneEngines
from agentsched_policies.step_log import StepLog


class Saga:
    """Affinity under `theta`, else least loaded; one theft a program."""

    def __init__(self, *, theta: float = 0.8, ratio: float = 2.0, idle_s: float = 0.1) -> None:
        if not 0 < theta <= 1 or ratio < 1 or idle_s < 0:
            raise ValueError("theta is above 0 and at most 1, ratio 1 or more, idle_s 0 or more")
        self._theta = theta
        self._ratio = ratio
        self._idle = seconds(idle_s)
        self._log = StepLog()
        self._moved: Bounded[ProgramId, None] = Bounded()
        #: Steps on each engine, and since when there are none.
        self._busy: dict[EngineId, int] = {}
        self._idle_since: dict[EngineId, Instant] = {}
        self._gone = GoneEngines()

    def observe(self, event: Event, *, now: Instant) -> None:
        if isinstance(event, EngineReported):
            self._idle_since.setdefault(event.engine, now)
        elif isinstance(event, ProgramClosed):
            self._moved.pop(event.program)
        forgotten = self._gone.observe(event)
        if forgotten is not None and not self._busy.get(forgotten):
            self._busy.pop(forgotten, None)
            self._idle_since.pop(forgotten, None)
        known = self._log.get(event.step) if hasattr(event, "step") else None
        engine = known.engine if known is not None else None
        self._log.observe(event, now=now)
        if engine is not None and known is not None and self._has_left(event, known.engine):
            self._busy[engine] -= 1
            if not self._busy[engine]:
                self._idle_since[engine] = now

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._log.decided(commands, now=now)
        for command in commands:
            if not isinstance(command, Dispatch):
                continue
            self._busy[command.engine] = self._busy.get(command.engine, 0) + 1
            self._idle_since.pop(command.engine, None)
            step = self._log.get(command.step)
            if step is not None and command.place == "move":
                self._moved.set(step.program, None)

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        load = self._load(engine, world)
        conversation = world.conversation(step)
        home = world.engines.get(conversation.engine) if conversation.engine else None
        if home is None or not home.is_up or not conversation.is_resident:
            return -load
        home_load = self._load(home, world)
        if engine.engine == home.engine:
            return 10.0 if home_load < self._theta else -load
        # What is stolen is pending: it waited at its home while the thief had nothing to do.
        is_thief = self._is_idle(engine.engine, now=now) and now > step.arrived_at
        is_thief = is_thief or home_load > self._ratio * max(load, 0.05)
        if is_thief and step.program not in self._moved and home_load > load:
            return 20.0 - load
        return -load

    def _load(self, engine: EngineView, world: World) -> float:
        use = engine.running_steps / (engine.capabilities.running_max or 256)
        pool = engine.capabilities.kv_tokens
        memory = min(1.0, world.resident_tokens(engine.engine) / pool) if pool else 0.0
        starting = engine.starting_tokens / max(1, engine.running_tokens)
        return 0.5 * min(1.0, use) + 0.5 * memory + 0.01 * engine.running_steps * starting

    def _is_idle(self, engine: EngineId, *, now: Instant) -> bool:
        since = self._idle_since.get(engine)
        return since is not None and between(since, now) >= self._idle

    def _has_left(self, event: Event, engine: EngineId | None) -> bool:
        """The step's event ended its stay on the engine: it ended, or goes back to waiting."""
        step = getattr(event, "step", None)
        return engine is None or step is None or self._log.get(step) is None
