"""Hints go to the adapter of the engine that they are for, where it can do anything with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from agentsched.clock import Clock, MonotonicClock
from agentsched.model import EngineId, HintOutcome, Pin, Prefetch, Unpin, after, between
from agentsched.ports import Engine, HintSink
from agentsched.proxy.fleet import Fleet, Tier
from agentsched_adapters.hints import NoHints, WarmHints, WarmSource
from agentsched_adapters.lmcache import EngineTokens, LmcacheHints


class FleetHints(Mapping[EngineId, HintSink]):
    """The hint sink of each engine, engines that were added at run time included.

    Made before the fleet, which needs the host that needs this: see `follow`. `clock` is the
    host's, which need not be the process's own (it may go on from an earlier process).
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._fleet: Fleet | None = None
        self._none = NoHints()
        self._source: WarmSource | None = None
        #: Sinks of tiers below engines, made once for each adapter, by the adapter's `id`.
        self._tiers: dict[int, tuple[Engine, LmcacheHints]] = {}

    def follow(self, fleet: Fleet) -> None:
        """From now on, this fleet's adapters are asked; what hints opened closes with them."""
        self._fleet = fleet
        fleet.when_closed(self._closed)

    def warm_with(self, source: WarmSource) -> None:
        """From now on, prefixes are warmed with the requests of `source`."""
        self._source = source

    def __getitem__(self, engine: EngineId) -> HintSink:
        member = self._fleet.members[engine] if self._fleet is not None else None
        adapter = member.engine if member is not None else None
        has_hints = getattr(adapter, "hint", None) is not None
        own: HintSink = (
            _OnOwnClock(cast("HintSink", adapter), self._clock) if has_hints else self._none
        )
        if adapter is None or self._source is None:
            return own
        warming: HintSink = WarmHints(adapter, self._source)
        if member is not None and member.tier is not None:
            tier = self._tier(member.tier, adapter, self._source)
            own, warming = _FirstOf(own, tier), _FirstOf(tier, warming)
        return _Warming(own, warming)

    def _tier(self, tier: Tier, engine: Engine, source: WarmSource) -> HintSink:
        known = self._tiers.get(id(engine))
        if known is not None:
            return known[1]
        tokens = EngineTokens(engine, source)
        sink = LmcacheHints(tier.url, instance=tier.instance, tokens=tokens)
        # With the engine itself, so that no other object can get its id.
        self._tiers[id(engine)] = (engine, sink)
        return sink

    async def _closed(self, engine: Engine) -> None:
        """Nothing is asked of this adapter any more: close what was opened for its hints."""
        known = self._tiers.pop(id(engine), None)
        if known is not None:
            await known[1].aclose()

    def __iter__(self) -> Iterator[EngineId]:
        return iter(self._fleet.members if self._fleet is not None else ())

    def __len__(self) -> int:
        return len(self._fleet.members) if self._fleet is not None else 0


class _FirstOf:
    """The first sink that can do anything with a hint; the next one where it cannot."""

    def __init__(self, *sinks: HintSink) -> None:
        self._sinks = sinks

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        outcome = HintOutcome.UNSUPPORTED
        for sink in self._sinks:
            outcome = await sink.hint(hint)
            if outcome in (HintOutcome.ACCEPTED, HintOutcome.CLIPPED):
                break
        return outcome


class _Warming:
    """Warm-ups by requests, which every engine understands; all else goes to its own sink."""

    def __init__(self, own: HintSink, warming: HintSink) -> None:
        self._own = own
        self._warming = warming

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        sink = self._warming if isinstance(hint, Prefetch) else self._own
        return await sink.hint(hint)


class _OnOwnClock:
    """Tells a sink instants of the process's clock, in which adapters count."""

    def __init__(self, sink: HintSink, clock: Clock) -> None:
        self._sink = sink
        self._clock = clock
        self._own = MonotonicClock()

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        if isinstance(hint, Pin):
            left = between(self._clock.now(), hint.expires_at)
            hint = replace(hint, expires_at=after(self._own.now(), left))
        return await self._sink.hint(hint)
