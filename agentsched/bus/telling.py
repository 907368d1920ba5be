"""What must be told to the other replicas now. Pure: time is an argument, in monotonic seconds.

States are told when they change. They are told again before they stop being believed: what an
engine holds and who waits, for only what is repeated is believed; and KV that is kept, which grows
all the time and is told at that slower pace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from agentsched.bus.messages import EngineMessage, TenantMessage
from agentsched.bus.topics import EngineTopic, TenantTopic
from agentsched.model import EngineId, TenantId

#: States are told this often where they changed, and this often in any case.
TELL_EVERY_S: Final = 0.5
TELL_AGAIN_S: Final = 3.0
#: Longer ago is not told: such a tenant is nobody's news.
_AGE_MAX_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What this replica served to one tenant so far, and whether a step of it waits here."""

    uncached_tokens: int = 0
    output_tokens: int = 0
    idle_token_s: int = 0
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What this replica holds and has served, at one moment."""

    engines: Mapping[EngineId, EngineMessage] = field(default_factory=dict)
    tenants: Mapping[TenantId, Served] = field(default_factory=dict)


class Telling:
    """What one replica told last. `epoch` says which of its lives this is."""

    def __init__(self, *, replica: str, epoch: str) -> None:
        self._replica = replica
        self._epoch = epoch
        self._engines: dict[EngineId, tuple[EngineMessage, float]] = {}
        self._tenants: dict[TenantId, tuple[Served, float]] = {}
        #: When a tenant had been served nothing yet; None where that was before we looked.
        self._unserved_at: dict[TenantId, float | None] = {}
        self._looked_at: float | None = None

    def forget(self) -> None:
        """Whoever hears us now has heard nothing yet: all is told again."""
        self._engines.clear()
        self._tenants.clear()

    def due(
        self, state: State, *, at: float
    ) -> Iterator[tuple[EngineTopic | TenantTopic, EngineMessage | TenantMessage]]:
        """What changed since it was told, and what was told too long ago to be believed."""
        self._look(state, at=at)
        for engine, message in state.engines.items():
            told = self._engines.get(engine)
            if told is None or told[0] != message or at - told[1] >= TELL_AGAIN_S:
                self._engines[engine] = message, at
                yield EngineTopic(engine, self._replica), message
        for tenant, served in state.tenants.items():
            if self._is_news(tenant, served, at=at):
                self._tenants[tenant] = served, at
                yield TenantTopic(tenant, self._replica), self._message(tenant, served, at=at)

    def _look(self, state: State, *, at: float) -> None:
        """Forget who is no more; note who is new."""
        for engine in self._engines.keys() - state.engines.keys():
            del self._engines[engine]
        for tenant in self._unserved_at.keys() - state.tenants.keys():
            del self._unserved_at[tenant]
            self._tenants.pop(tenant, None)
        for tenant in state.tenants.keys() - self._unserved_at.keys():
            self._unserved_at[tenant] = self._looked_at
        self._looked_at = at

    def _is_news(self, tenant: TenantId, served: Served, *, at: float) -> bool:
        told = self._tenants.get(tenant)
        if told is None:
            return True
        before, told_at = told
        if at - told_at >= TELL_AGAIN_S:
            return served.waits or served != before
        return _in_turn(served) != _in_turn(before)

    def _message(self, tenant: TenantId, served: Served, *, at: float) -> TenantMessage:
        since = self._unserved_at[tenant]
        is_new = since is not None and at - since <= _AGE_MAX_S
        return TenantMessage(
            epoch=self._epoch,
            uncached_tokens=served.uncached_tokens,
            output_tokens=served.output_tokens,
            idle_token_s=served.idle_token_s,
            waits=served.waits,
            age_s=at - since if is_new and since is not None else None,
        )


def _in_turn(served: Served) -> tuple[int, int, bool]:
    return served.uncached_tokens, served.output_tokens, served.waits
