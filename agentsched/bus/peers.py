"""What the other replicas said, as events for our scheduler. Pure: time is an argument.

What a peer says is believed while it is heard. One that said goodbye, whose last will came, or that
was silent for too long, is taken to hold nothing; what it served stays served.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
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
    seconds,
)

_PEERS_MAX: Final = 256
_TENANTS_PER_PEER_MAX: Final = 10_000
_ENGINES_PER_PEER_MAX: Final = 1_024
#: How long it is told that a peer is gone, and of how many at most.
_MISSED_FOR: Final = seconds(600)
_MISSED_MAX: Final = 16
_NOTHING: Final = EngineMessage(running_steps=0, resident_tokens=0)


@dataclass(slots=True)
class _Peer:
    met_at: Instant
    heard_at: Instant
    #: Which of its lives this is, and how often it connected in it; empty until it has said so.
    life: tuple[str, int] = ("", 0)
    #: What was said last of each engine, and when.
    engines: dict[EngineId, tuple[EngineMessage, Instant]] = field(default_factory=dict)
    #: What was said last of each tenant, which was counted, and when.
    served: OrderedDict[TenantId, tuple[TenantMessage, Instant]] = field(
        default_factory=OrderedDict
    )
    #: Tenants that have a step waiting there, and when that was said.
    waiting: dict[TenantId, Instant] = field(default_factory=dict)


class Peers:
    """The other replicas. `silence` is how long one may say nothing before it counts as gone."""

    def __init__(self, *, silence: Nanos) -> None:
        self._silence = silence
        self._peers: dict[str, _Peer] = {}
        #: Who was heard and is not any more, since when; the latest last.
        self._missed: dict[str, Instant] = {}

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
        peer = self.meet(replica, now=now)
        if peer is None:
            return
        before = peer.engines.get(engine)
        if before is None and len(peer.engines) >= _ENGINES_PER_PEER_MAX:
            return
        peer.engines[engine] = said, now
        if before is None or before[0] != said:
            yield _report(replica, engine, said)

    def tenant(
        self, replica: str, tenant: TenantId, said: TenantMessage, *, now: Instant
    ) -> Iterator[Event]:
        """A peer says what it served to a tenant so far: what is new of it is charged here, too.

        What a peer had served before we met it is taken as known: we begin level.
        """
        peer = self.meet(replica, now=now)
        if peer is None:
            return
        before, said_at = peer.served.get(tenant, (None, now))
        if before is None or before.epoch != said.epoch:
            before = _beginning(said, met_at=peer.met_at, now=now)
        new = [after - was for was, after in zip(_totals(before), _totals(said), strict=True)]
        if min(new) < 0:
            # It was overtaken, and tells less than we know; or its account was forgotten there and
            # began anew, so late that what was said before is under way no more.
            if not _is_new(said, since=Instant(said_at + self._silence), now=now):
                return
            new = list(_totals(said))
        peer.served[tenant] = said, now
        peer.served.move_to_end(tenant)
        if len(peer.served) > _TENANTS_PER_PEER_MAX:
            forgotten, _ = peer.served.popitem(last=False)
            yield from self._stops_waiting(peer, forgotten)
        did_wait = self._waits(tenant)
        if said.waits:
            peer.waiting[tenant] = now
        else:
            peer.waiting.pop(tenant, None)
        if any(new) or self._waits(tenant) != did_wait:
            yield self._served(tenant, *new)

    def missed(self, *, now: Instant) -> Mapping[str, Instant]:
        """Peers that went lately and did not come back, and when that was noticed."""
        return {
            replica: at for replica, at in self._missed.items() if between(at, now) <= _MISSED_FOR
        }

    def gone(self, replica: str, *, now: Instant) -> Iterator[Event]:
        """A peer is no more: nothing of it is on any engine, and nobody waits there."""
        if replica in self._peers:
            self._missed.pop(replica, None)
            self._missed[replica] = now
            if len(self._missed) > _MISSED_MAX:
                del self._missed[next(iter(self._missed))]
        yield from self._drop(replica)

    def _drop(self, replica: str) -> Iterator[Event]:
        peer = self._peers.pop(replica, None)
        if peer is None:
            return
        for engine in peer.engines:
            yield _report(replica, engine, _NOTHING)
        for tenant in tuple(peer.waiting):
            yield from self._stops_waiting(peer, tenant)

    def silent(self, *, now: Instant) -> tuple[str, ...]:
        """Peers that have said nothing for too long."""
        peers = self._peers.items()
        return tuple(name for name, p in peers if between(p.heard_at, now) > self._silence)

    def expire(self, *, now: Instant) -> Iterator[Event]:
        """Peers that were silent for too long are gone; what was not said again is so no more."""
        for name in self.silent(now=now):
            yield from self.gone(name, now=now)
        for name, peer in self._peers.items():
            for engine, (_, at) in tuple(peer.engines.items()):
                if between(at, now) > self._silence:
                    del peer.engines[engine]
                    yield _report(name, engine, _NOTHING)
            for tenant, at in tuple(peer.waiting.items()):
                if between(at, now) > self._silence:
                    yield from self._stops_waiting(peer, tenant)

    def lost(self) -> Iterator[Event]:
        """Nobody is heard any more, for our own connection is gone: we decide alone."""
        self._missed.clear()
        for name in tuple(self._peers):
            yield from self._drop(name)

    def _waits(self, tenant: TenantId) -> bool:
        return any(tenant in peer.waiting for peer in self._peers.values())

    def _stops_waiting(self, peer: _Peer, tenant: TenantId) -> Iterator[Event]:
        if peer.waiting.pop(tenant, None) is not None and not self._waits(tenant):
            yield self._served(tenant, 0, 0, 0)

    def _served(self, tenant: TenantId, uncached: int, output: int, idle: int) -> ServedElsewhere:
        return ServedElsewhere(
            tenant=tenant,
            uncached_tokens=uncached,
            output_tokens=output,
            idle_token_s=idle,
            waits=self._waits(tenant),
        )

    def introduce(self, replica: str, epoch: str, connections: int, *, now: Instant) -> bool:
        """A peer says that it is there; whether it has heard nothing yet of what is told.

        That is so in each life of it, and each time that it comes back to the broker: what it had
        heard is forgotten when the broker is away, also where nobody else noticed that.
        """
        peer = self.meet(replica, now=now)
        if peer is None or peer.life == (epoch, connections):
            return False
        peer.life = epoch, connections
        return True

    def meet(self, replica: str, *, now: Instant) -> _Peer | None:
        """A peer is there: what it serves from now on is charged here. None: there are too many."""
        peer = self._peers.get(replica)
        if peer is None:
            if len(self._peers) >= _PEERS_MAX:
                return None
            peer = self._peers[replica] = _Peer(now, now)
            self._missed.pop(replica, None)
        peer.heard_at = now
        return peer


def _totals(said: TenantMessage) -> tuple[int, int, int]:
    return said.uncached_tokens, said.output_tokens, said.idle_token_s


def _beginning(said: TenantMessage, *, met_at: Instant, now: Instant) -> TenantMessage:
    """From where a tenant is counted: from nothing, if we knew the peer before it was served."""
    if not _is_new(said, since=met_at, now=now):
        return said
    return TenantMessage(epoch=said.epoch, uncached_tokens=0, output_tokens=0)


def _is_new(said: TenantMessage, *, since: Instant, now: Instant) -> bool:
    """Whether a tenant had been served nothing there at that instant yet."""
    return said.age_s is not None and now - seconds(said.age_s) >= since


def _report(replica: str, engine: EngineId, said: EngineMessage) -> PeerReported:
    return PeerReported(
        engine=engine,
        peer=replica,
        running_steps=said.running_steps,
        resident_tokens=said.resident_tokens,
    )
