"""What the other replicas said, as events for our scheduler. Pure: time is an argument.

What a peer says is believed while it is heard. One that said goodbye, whose last will came, or that
was silent for too long, is taken to hold nothing; what it served stays served.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from agentsched.bus.messages import EngineMessage, TenantMessage
from agentsched.model import (
    EngineId,
    Event,
    Instant,
    Nanos,
    PeerReported,
    ServedElsewhere,
    TenantId,
    between,
)

_PEERS_MAX: Final = 256
_TENANTS_PER_PEER_MAX: Final = 10_000
_ENGINES_PER_PEER_MAX: Final = 1_024


@dataclass(slots=True)
class _Peer:
    heard_at: Instant
    engines: dict[EngineId, EngineMessage] = field(default_factory=dict)
    #: Totals that were counted already, and of which life of the peer.
    served: OrderedDict[TenantId, tuple[str, int, int]] = field(default_factory=OrderedDict)


class Peers:
    """The other replicas. `silence` is how long one may say nothing before it counts as gone."""

    def __init__(self, *, silence: Nanos) -> None:
        self._silence = silence
        self._peers: dict[str, _Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def names(self) -> tuple[str, ...]:
        """Replicas that are heard, in the order in which they were met."""
        return tuple(self._peers)

    def names_of(self, tenant: TenantId) -> tuple[str, ...]:
        """Replicas that have said what they served to a tenant."""
        return tuple(name for name, peer in self._peers.items() if tenant in peer.served)

    def engine(
        self, replica: str, engine: EngineId, said: EngineMessage, *, now: Instant
    ) -> Iterator[Event]:
        """A peer says what it has on an engine."""
        peer = self._meet(replica, now=now)
        if peer is None or peer.engines.get(engine) == said:
            return
        if engine not in peer.engines and len(peer.engines) >= _ENGINES_PER_PEER_MAX:
            return
        peer.engines[engine] = said
        yield _report(replica, engine, said)

    def tenant(
        self, replica: str, tenant: TenantId, said: TenantMessage, *, now: Instant
    ) -> Iterator[Event]:
        """A peer says what it served to a tenant so far: what is new of it is charged here, too.

        What a peer had served before we met it is taken as known: we begin level.
        """
        peer = self._meet(replica, now=now)
        if peer is None:
            return
        before = peer.served.get(tenant)
        peer.served[tenant] = (said.epoch, said.uncached_tokens, said.output_tokens)
        peer.served.move_to_end(tenant)
        if len(peer.served) > _TENANTS_PER_PEER_MAX:
            peer.served.popitem(last=False)
        if before is None:
            return
        epoch, uncached, output = before
        if epoch != said.epoch:
            uncached = output = 0  # a new life counts from nothing
        new = (said.uncached_tokens - uncached, said.output_tokens - output)
        # A message that was overtaken tells less than we know.
        if min(new) < 0 or max(new) == 0:
            if min(new) < 0:
                peer.served[tenant] = before
            return
        yield ServedElsewhere(tenant=tenant, uncached_tokens=new[0], output_tokens=new[1])

    def gone(self, replica: str) -> Iterator[Event]:
        """A peer is no more: nothing of it is on any engine."""
        peer = self._peers.pop(replica, None)
        for engine in peer.engines if peer is not None else ():
            yield _report(replica, engine, EngineMessage(running_steps=0, resident_tokens=0))

    def expire(self, *, now: Instant) -> Iterator[Event]:
        """Peers that were silent for too long are gone."""
        silent = [
            name for name, p in self._peers.items() if between(p.heard_at, now) > self._silence
        ]
        for name in silent:
            yield from self.gone(name)

    def lost(self) -> Iterator[Event]:
        """Nobody is heard any more, for our own connection is gone: we decide alone."""
        for name in tuple(self._peers):
            yield from self.gone(name)

    def _meet(self, replica: str, *, now: Instant) -> _Peer | None:
        peer = self._peers.get(replica)
        if peer is None:
            if len(self._peers) >= _PEERS_MAX:
                return None
            peer = self._peers[replica] = _Peer(now)
        peer.heard_at = now
        return peer


def _report(replica: str, engine: EngineId, said: EngineMessage) -> PeerReported:
    return PeerReported(
        engine=engine,
        peer=replica,
        running_steps=said.running_steps,
        resident_tokens=said.resident_tokens,
    )
