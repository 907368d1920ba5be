"""Where a conversation's KV is, else where its program is, else where least runs."""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import EngineId, Event, Instant
from agentsched.policy import EngineView, StepView, World
from agentsched_policies.models import serves

#: Prices that differ from the fleet's mean by less than this share of it are taken to be alike.
_ALIKE = 0.5


class Affinity:
    """Scores of engines for a step, greatest first.

    `speed`: whether what runs on an engine counts by how long its tokens take there, so that a new
    program goes where it will be done first and not where the fewest steps run. Prices are learnt;
    those within a half of the mean of all engines with its model count as alike, since they follow
    the load as well. An engine whose price was not learnt yet is taken to be like the others: it
    has just joined, and a guess that is dearer than what they turned out to cost would keep it idle
    beside them.
    """

    def __init__(self, *, speed: bool) -> None:
        self._speed = speed
        #: The latest answers of `_price` by model, until something is observed.
        self._usual: dict[str, float] = {}

    def __getstate__(self) -> dict[str, object]:
        # An answer that is remembered is no knowledge.
        return {**vars(self), "_usual": {}}

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn, but prices may have."""
        self._usual.clear()

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        """3 at home; between 0 and 2 elsewhere, less the more runs there."""
        conversation = world.conversation(step)
        if conversation.engine == engine.engine:
            return 3.0
        # Below 1, and less the more runs there.
        room = 1.0 / (1.0 + self._load(engine, self._price(step, world)))
        return room + (1.0 if self._is_home(step, engine.engine, world) else 0.0)

    def best(
        self, step: StepView, engines: Sequence[EngineView], world: World, *, now: Instant
    ) -> EngineView:
        """What the scores come to, without asking for each."""
        conversations = world.programs[step.program].conversations
        home = conversations[step.conversation].engine
        if home is not None:
            for engine in engines:
                if engine.engine == home:
                    return engine
        near: Sequence[EngineView] = ()
        if len(conversations) > 1:
            homes = {c.engine for c in conversations.values() if c.is_resident}
            near = [engine for engine in engines if engine.engine in homes]
        usual = self._price(step, world)
        return min(near or engines, key=lambda e: (self._load(e, usual), e.engine))

    def _price(self, step: StepView, world: World) -> float:
        """What a token costs on the engines that have its model, in the mean of what was learnt; 0
        where that does not matter, or nothing was."""
        if not self._speed:
            return 0.0
        usual = self._usual.get(step.model)
        if usual is None:
            up = [e for e in world.engines.values() if e.is_up and e.is_priced]
            prices = [e.prefill_ns for e in up if serves(e.capabilities, step.model)]
            usual = self._usual[step.model] = sum(prices) / max(1, len(prices))
        return usual

    def _load(self, engine: EngineView, usual: float) -> float:
        """The steps that run there and the one to come, in those of an engine of usual speed."""
        steps = 1.0 + engine.running_steps
        if not usual or not engine.is_priced:
            return steps
        ratio = engine.prefill_ns / usual
        return steps * ratio if abs(ratio - 1.0) > _ALIKE else steps

    def _is_home(self, step: StepView, engine: EngineId, world: World) -> bool:
        """Whether a sibling conversation lives there: siblings share their first tokens."""
        siblings = world.programs[step.program].conversations.values()
        return any(c.engine == engine and c.is_resident for c in siblings)
