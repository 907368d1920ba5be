"""HexGen-Flow's dispatcher (arXiv 2505.05286, section 7 of our notes).

    score(e) = alpha * t_base / t_e - (1 - alpha) * backlog_e / backlog_base

`t_e` is the mean time of a step of this agent on engine e, `t_base` the mean over the engines,
`backlog_e` the time of what e has to do, `backlog_base` the mean of those. They tune `alpha` by
replaying a recent trace on a grid; here it is a parameter.

Fails on agents: it weighs speeds and queues and knows no cache, so conversations wander.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import Command, EngineId, Event, Instant, StepFinished
from agentsched.policy import EngineView, StepView, World
from agentsched_policies.gone import GoneEngines
from agentsched_policies.step_log import StepLog

_RATE = 0.1
_AGENTS_MAX = 256


class Hexgen:
    """Fast engines with little to do."""

    def __init__(self, *, alpha: float = 0.5) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is between 0 and 1, not {alpha}")
        self._alpha = alpha
        self._log = StepLog()
        #: Mean nanoseconds of a step, by engine and agent.
        self._times: dict[tuple[EngineId, str], float] = {}
        self._agents: dict[str, None] = {}
        self._gone = GoneEngines()

    def observe(self, event: Event, *, now: Instant) -> None:
        forgotten = self._gone.observe(event)
        if forgotten is not None:
            self._times = {key: t for key, t in self._times.items() if key[0] != forgotten}
        step = self._log.observe(event, now=now)
        if step is None or step.engine is None or not isinstance(event, StepFinished):
            return
        if step.agent not in self._agents and len(self._agents) >= _AGENTS_MAX:
            return
        self._agents[step.agent] = None
        took, key = float(step.took(now=now)), (step.engine, step.agent)
        mean = self._times.get(key)
        self._times[key] = took if mean is None else mean + _RATE * (took - mean)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._log.decided(commands, now=now)

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        agent = world.programs[step.program].agent
        up = [e for e in world.engines.values() if e.is_up]
        known = [t for e in up if (t := self._times.get((e.engine, agent))) is not None]
        base = sum(known) / len(known) if known else 1.0
        times = {e.engine: self._times.get((e.engine, agent), base) for e in up}
        own = times.get(engine.engine, base)
        backlogs = {e.engine: e.running_steps * times[e.engine] for e in up}
        backlog_base = sum(backlogs.values()) / max(1, len(backlogs))
        share = backlogs.get(engine.engine, 0.0) / backlog_base if backlog_base else 0.0
        return self._alpha * base / max(1.0, own) - (1.0 - self._alpha) * share
