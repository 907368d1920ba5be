"""D2LPM (arXiv 2501.14312): longest prefix match between engines, under a deficit per tenant.

Every tenant has a quantum of tokens on every engine. A step goes to the engine that has most of its
prompt among those where its tenant's deficit is positive; a tenant that has used its quantum up
there goes to the engine with least to do, so that its locality cannot crowd one engine. When a
tenant's deficits are used up everywhere each gets its quantum again: on all engines that may be
given the same work, that is, so not on those of other models, nor on drained ones. Charged when a
step is sent: what the conversation had not computed before; corrected when it ends, by what the
engine says that it computed. (The paper's exact rule could not be verified; this is its
description.)

Fails where one tenant is most of the load: its quanta are used up in turn, which is round robin.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import (
    Capabilities,
    Command,
    EngineDrained,
    EngineId,
    EngineLost,
    EngineReported,
    Event,
    Instant,
    TenantId,
)
from agentsched.policy import EngineView, StepView, World
from agentsched_policies.bounded import Bounded
from agentsched_policies.gone import GoneEngines
from agentsched_policies.models import share_one
from agentsched_policies.uncached import UncachedLog


class Dlpm:
    """Longest match where the tenant has deficit left; `quantum` tokens on each engine."""

    def __init__(self, *, quantum: int = 32_768) -> None:
        if quantum < 1:
            raise ValueError(f"quantum is at least a token, not {quantum}")
        self._quantum = quantum
        self._log = UncachedLog()
        #: Tokens used of the quantum on each engine, by tenant.
        self._used: Bounded[TenantId, dict[EngineId, float]] = Bounded()
        #: What each engine can do that is there.
        self._engines: dict[EngineId, Capabilities] = {}
        self._drained: dict[EngineId, None] = {}
        self._gone = GoneEngines()

    def observe(self, event: Event, *, now: Instant) -> None:
        charge = self._log.observe(event, now=now)
        if charge is not None and charge.engine is not None:
            self._charge(charge.tenant, charge.engine, charge.tokens)
        if isinstance(event, EngineReported):
            self._engines[event.engine] = event.capabilities
        elif isinstance(event, EngineDrained):
            self._drained.pop(event.engine, None)
            if event.is_draining:
                self._drained[event.engine] = None
        elif isinstance(event, EngineLost):
            self._engines.pop(event.engine, None)
        forgotten = self._gone.observe(event)
        if forgotten is not None:
            self._drained.pop(forgotten, None)
            for _, used in self._used.items():
                used.pop(forgotten, None)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        for charge in self._log.decided(commands, now=now):
            if charge.engine is not None:
                self._charge(charge.tenant, charge.engine, charge.tokens)

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        used = (self._used.get(step.tenant) or {}).get(engine.engine, 0.0)
        unused = 1.0 / (1.0 + engine.running_steps)
        if used >= self._quantum:
            return unused
        found = step.prompt_tokens - world.missing_tokens(step, engine.engine)
        return 1.0 + found + unused

    def _charge(self, tenant: TenantId, engine: EngineId, tokens: float) -> None:
        used = self._used.get(tenant) or {}
        used[engine] = max(0.0, used.get(engine, 0.0) + tokens)
        there = self._engines
        here = there.get(engine, Capabilities())
        alike = [e for e in there if e not in self._drained and share_one(here, there[e])]
        while alike and all(used.get(e, 0.0) >= self._quantum for e in alike):
            for key in used:
                if key not in there or share_one(here, there[key]):
                    used[key] = max(0.0, used[key] - self._quantum)
        self._used.set(tenant, used)
