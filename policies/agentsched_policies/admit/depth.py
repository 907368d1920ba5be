"""Keep a bounded number of steps in each engine, so that the rest of the queue stays ours to order.

With a depth of at least the engine's batch size this costs nothing; below it the engine idles.
With `fits`, it stands in for an engine's own waiting queue: what an engine would queue because its
pool has no room for one more running prompt waits here instead, where an order can be kept without
changing the engine. The published systems that reorder the queue inside an engine use it so.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import Admission, Admitted, EngineView, Held, StepView, World


class Depth:
    """Hold a step while its engine has `depth` of ours.

    `depth` None means what the engine says that it batches at once, or 256 where it does not say.
    `fits`: also while running prompts and this one exceed the engine's pool.
    """

    def __init__(self, *, depth: int | None = None, fits: bool = False) -> None:
        if depth is not None and depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        if not isinstance(fits, bool):  # the environment's texts are all true
            raise TypeError(f"fits is true or false, not {fits!r}")
        self._depth = depth
        self._fits = fits

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def admit(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> Admission:
        if not self.has_room(engine, world, now=now):
            return Held(reason=f"{self._of(engine)} steps on {engine.engine}")
        pool = engine.capabilities.kv_tokens
        if self._fits and pool is not None and engine.running_steps:
            # Running prompts that share their beginning hold it once, as the engine does.
            need = engine.running_tokens - self._shared(step, engine, world) + step.prompt_tokens
            if need > pool:
                return Held(reason="memory")
        return Admitted()

    def _shared(self, step: StepView, engine: EngineView, world: World) -> int:
        """Tokens that running prompts have in common, taken to be this step's first beginning."""
        head = step.prefixes[0].tokens if len(step.prefixes) > 1 else 0
        is_there = step.prompt_tokens - world.missing_tokens(step, engine.engine) >= head > 0
        return engine.running_steps * head if is_there else 0

    def has_room(self, engine: EngineView, world: World, *, now: Instant) -> bool:
        return engine.running_steps < self._of(engine)

    def _of(self, engine: EngineView) -> int:
        return self._depth or engine.capabilities.running_max or 256
