"""Health by traffic: engines that fail requests are ejected for a while, and retries have a budget.

Probes (see `fleet`) find engines that are gone. This finds those that answer their probes and fail
at work: an engine whose breaker opens is drained, its peers take its work, and after the ejection
the next good probe puts it back, where it eases in (`agentsched.kernel.slow_start`). The last
engine of a model that is up is never ejected, nor is more than a share of all.
"""

from __future__ import annotations

import logging

from agentsched.config_trust import BreakerConfig, RetriesConfig
from agentsched.model import EngineDrained, EngineId, Instant, between, in_seconds
from agentsched.proxy.breaker import Breaker
from agentsched.proxy.forms import EngineHealth
from agentsched.proxy.host import LiveHost

log = logging.getLogger(__name__)


class RetryBudget:
    """Tokens: each request brings a share of one, each retry takes one, `burst` are there at most.

    Without it a fleet that fails would be asked several times for everything that it fails.
    """

    def __init__(self, config: RetriesConfig) -> None:
        self._config = config
        self._tokens = float(config.burst)
        self.granted_total = 0
        self.refused_total = 0

    @property
    def tokens(self) -> float:
        """What is in it."""
        return self._tokens

    def request(self) -> None:
        """A request was sent to an engine for the first time."""
        self._tokens = min(float(self._config.burst), self._tokens + self._config.share)

    def would_grant(self) -> bool:
        """Whether a retry that is wanted may be. Takes nothing; a no is counted."""
        if self._tokens < 1.0:
            self.refused_total += 1
            return False
        return True

    def take(self) -> bool:
        """Ask for a retry; whether it may be."""
        if not self.would_grant():
            return False
        self._tokens -= 1.0
        self.granted_total += 1
        return True


class Health:
    """One breaker for each engine. Everything runs on the event loop's thread."""

    def __init__(self, host: LiveHost, config: BreakerConfig) -> None:
        self._host = host
        self._config = config
        self._breakers: dict[EngineId, Breaker] = {}
        #: Engines that an operator drained: an ejection's end must not bring them back.
        self._drained: set[EngineId] = set()

    def succeeded(self, engine: EngineId) -> None:
        """A request got its answer there."""
        if self._config.is_on:
            self._breaker(engine).record(failed=False, now=self._host.now())

    def failed(self, engine: EngineId, reason: str) -> None:
        """A request failed there, by the engine's fault; ejects the engine where that is due."""
        if not self._config.is_on:
            return
        now = self._host.now()
        breaker = self._breaker(engine)
        breaker.record(failed=True, now=now)
        if not breaker.wants_to_open(now=now):
            return
        if self._may_eject(engine):
            span = in_seconds(breaker.open(now=now))
            log.warning("engine %s is ejected for %g s: %s", engine, span, reason)
            self._host.feed(EngineDrained(engine=engine, is_draining=True))
        else:
            breaker.withheld_total += 1

    def probed(self, engine: EngineId) -> None:
        """A probe went well: an ejection whose time is over ends."""
        breaker = self._breakers.get(engine)
        now = self._host.now()
        if breaker is not None and breaker.is_due(now=now):
            self._readmit(engine, breaker, now=now)

    def drained(self, engine: EngineId, *, is_draining: bool, is_lasting: bool = True) -> None:
        """An operator drains an engine or puts it back: that is the last word.

        `is_lasting`: also of later processes. Not of one that goes: that may be configured again.
        """
        breaker = self._breakers.get(engine)
        if is_draining:
            self._drained.add(engine)
        else:
            self._drained.discard(engine)
            if breaker is not None and breaker.is_open:
                breaker.close(now=self._host.now())
        self._host.feed(
            EngineDrained(
                engine=engine, is_draining=is_draining, is_lasting=is_draining and is_lasting
            )
        )

    def forget(self, engine: EngineId) -> None:
        """The engine was removed."""
        self._breakers.pop(engine, None)
        self._drained.discard(engine)

    def shown(self, engine: EngineId) -> EngineHealth:
        """What the control plane says of it."""
        breaker = self._breakers.get(engine)
        if breaker is None:
            return EngineHealth(is_ejected=False, failures_in_a_row=0, ejections=0)
        left = None
        if breaker.open_until is not None:
            left = round(max(0.0, in_seconds(between(self._host.now(), breaker.open_until))), 3)
        return EngineHealth(
            is_ejected=breaker.is_open,
            returns_in_s=left,
            failures_in_a_row=breaker.failures_in_a_row,
            ejections=breaker.opened_total,
        )

    def told(self, engine: EngineId) -> Breaker:
        """Its breaker, to be read; that of an engine that nothing is known of is as new."""
        return self._breakers.get(engine) or Breaker(self._config)

    @property
    def ejected(self) -> list[EngineId]:
        """Engines that get no work for their failures."""
        return [engine for engine, breaker in self._breakers.items() if breaker.is_open]

    def _readmit(self, engine: EngineId, breaker: Breaker, *, now: Instant) -> None:
        breaker.close(now=now)
        log.info("engine %s gets work again", engine)
        if engine not in self._drained:
            self._host.feed(EngineDrained(engine=engine, is_draining=False))

    def _breaker(self, engine: EngineId) -> Breaker:
        breaker = self._breakers.get(engine)
        if breaker is None:
            breaker = self._breakers[engine] = Breaker(self._config)
        return breaker

    def _may_eject(self, engine: EngineId) -> bool:
        engines = self._host.scheduler.engines
        known = engines.get(engine)
        if known is None or not known.is_up:
            return False
        peers = [e for e in engines.values() if e.is_up and e.engine != engine]
        # Each of its models needs another engine; one that lists none is taken to have any.
        have = all(any(e.serves(m) for e in peers) for m in known.capabilities.models or ("",))
        # Those that were removed, or are gone, are known still and count for nothing.
        there = sum(e.is_alive for e in engines.values())
        ejected = sum(engines[e].is_alive for e in self.ejected) + 1
        return have and ejected <= max(1, self._config.ejected_share_max * there)
