"""ThunderAgent's admission: programs are active or paused, and a tick decides (arXiv 2602.13692).

The rules and their source are in `active_programs`. Steps of active programs go at once; those of
paused ones wait for the tick that resumes them. A wait of `resume_after_s` (1,800 s) ends by
force in their code; here the scheduler's own wait bound does that, and it is usually the tighter
one, so a step of this policy waits for `min(1800 s, max_wait)` at most.

Fails at light load (a new program that finds anybody queued waits for a tick), with shared prompts
(counted once a program, so most of the pool stays unused), with a program larger than the engine
(it waits for the bound), and with long pauses (acting programs count in full).
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import Command, Event, Instant, after, seconds
from agentsched.policy import Admission, Admitted, EngineView, Held, StepView, World
from agentsched_policies.active_programs import ActiveProgram, ActivePrograms


class ThunderAgent:
    """Tokens of active programs within each engine's pool."""

    def __init__(
        self, *, tick_s: float = 5.0, acting_weight: float = 1.0, resume_after_s: float = 1_800.0
    ) -> None:
        if resume_after_s <= 0:
            raise ValueError(f"resume_after_s must be positive, not {resume_after_s}")
        self._active = ActivePrograms(tick_s=tick_s, acting_weight=acting_weight)
        self._resume_after = seconds(resume_after_s)

    def observe(self, event: Event, *, now: Instant) -> None:
        self._active.observe(event, now=now)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        self._active.decided(commands, now=now)

    def admit(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> Admission:
        program = self._active.get(step.program)
        forced_at = after(step.arrived_at, self._resume_after)
        if not self._is_paused(step, program) or forced_at <= now:
            return Admitted()
        is_new = program is None or not (program.steps or program.running)
        is_first = is_new and self._active.is_queue_empty_but_for(step.program)
        if is_first and self._active.room(engine.engine) > 0:
            return Admitted()
        until = min(self._active.next_tick, forced_at)
        return Held(reason="paused", until=until, blocks_others=False)

    def _is_paused(self, step: StepView, program: ActiveProgram | None) -> bool:
        """Whether it waits for a tick, or would: of a step in a dry run nobody told us."""
        if self._active.has(step.step):
            return program is not None and program.is_paused
        return program is None or program.is_paused or program.is_marked

    def has_room(self, engine: EngineView, world: World, *, now: Instant) -> bool:
        return True
