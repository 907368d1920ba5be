"""What becomes of pins and warm-ups on modelled engines, as the live proxy's sinks would have it.

Pins are kept by engines that have our plugin. A warm-up is what it is on a stock engine: a request
of one token and of the lowest priority, on its way like any other, which competes with real steps,
is answered when it is done, and is dropped when the scheduler takes it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from agentsched.model import (
    ConversationId,
    HintAnswered,
    HintOutcome,
    Instant,
    Pin,
    PinId,
    Prefetch,
    Unpin,
    after,
    seconds,
)
from agentsched_adapters.hints import LOWEST_PRIORITY
from agentsched_bench.engine.requests import Finished, Generation, Refusal
from agentsched_bench.engine.tokens import RunChain
from agentsched_bench.sim.engines import SimEngine

#: As `agentsched_adapters.hints.WarmHints` waits for one.
_WARM_TIMEOUT: Final = seconds(120)

Deed = Callable[[Instant], None]
#: All of a conversation so far, and its tokens; None where nobody knows.
PrefixOf = Callable[[ConversationId], tuple[RunChain, int] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HintHost:
    """What hints need of the host: to plan a deed, to reach an engine as calls do (the deed runs
    when it is there), to look at the engine again, to tell the scheduler, and what was said."""

    later: Callable[[Instant, Deed], None]
    reach: Callable[[SimEngine, Deed], None]
    watch: Callable[[SimEngine], None]
    tell: Callable[[HintAnswered], None]
    prefix_of: PrefixOf


class SimHints:
    """All pins and warm-ups of one proxy. `pinned` and `warmed_tokens` count what was kept."""

    def __init__(self, host: HintHost) -> None:
        self._host = host
        #: All and only warm-ups that are not answered yet: their pins, and where they are computed.
        self._warming: dict[str, tuple[PinId, SimEngine]] = {}
        #: How often the proxy was started anew: a new one mints the same names for other pins.
        self._life = 0
        self.pinned = 0
        self.warmed_tokens = 0

    def perform(self, command: Pin | Unpin | Prefetch, engine: SimEngine, *, now: Instant) -> None:
        """Do it, or begin to. What came of a pin or a warm-up is told later, as an event."""
        outcome: HintOutcome | None = None
        match command:
            case Unpin():
                self._release(command, engine)
                return
            case Pin():
                outcome = self._pin(command, engine)
            case Prefetch():
                outcome = self._warm(command, engine, now=now)
        if outcome is not None:
            answer = HintAnswered(pin=command.pin, outcome=outcome)
            self._host.later(now, lambda _now: self._host.tell(answer))

    def _key(self, pin: PinId) -> str:
        return f"{self._life}/{pin}"

    def _pin(self, command: Pin, engine: SimEngine) -> HintOutcome:
        if not engine.traits.pins:
            return HintOutcome.UNSUPPORTED
        asked = self._host.prefix_of(command.conversation)
        if engine.is_lost or asked is None:
            return HintOutcome.FAILED if engine.is_lost else HintOutcome.REFUSED
        chain, tokens = asked
        key = self._key(command.pin)
        hashes = chain.hashes(tokens // chain.block_size)
        kept = engine.model.pin(key, hashes, tokens=tokens, value=command.value)
        self.pinned += kept > 0
        # A lease: it ends by itself, also when nobody is there to end it.
        self._host.later(command.expires_at, lambda _now: _unpin(engine, key))
        return HintOutcome.ACCEPTED if kept else HintOutcome.REFUSED

    def _warm(self, command: Prefetch, engine: SimEngine, *, now: Instant) -> HintOutcome | None:
        """Send the request; None while its answer is still to come."""
        if not engine.traits.warm:
            return HintOutcome.UNSUPPORTED
        asked = self._host.prefix_of(command.conversation)
        if asked is None:
            return HintOutcome.REFUSED
        chain, tokens = asked
        key = self._key(command.pin)
        request = Generation(
            id=key,
            chain=chain,
            prompt_tokens=tokens - 1,
            output_tokens=1,
            priority=LOWEST_PRIORITY,
        )
        self._warming[key] = (command.pin, engine)
        self._host.reach(engine, partial(self._deliver, engine, request))
        self._host.later(after(now, _WARM_TIMEOUT), partial(self._give_up, key))
        return None

    def _deliver(self, engine: SimEngine, request: Generation, now: Instant) -> None:
        if request.id not in self._warming:
            return
        if engine.is_lost:
            self._answer(request.id, HintOutcome.FAILED)
            return
        match engine.add(request, now=now):
            case None:
                self._host.watch(engine)
            case Refusal.TOO_LONG:
                self._answer(request.id, HintOutcome.REFUSED)
            case Refusal.QUEUE_FULL | Refusal.DUPLICATE:
                self._answer(request.id, HintOutcome.FAILED)

    def finished(self, done: Finished) -> bool:
        """An engine has computed something: whether it was a warm-up."""
        if done.id not in self._warming:
            return False
        self.warmed_tokens += done.prompt_tokens
        self._answer(done.id, HintOutcome.ACCEPTED)
        return True

    def lost(self, engine: SimEngine) -> None:
        """An engine died, and the warm-ups on it."""
        for key, (_, where) in list(self._warming.items()):
            if where is engine:
                self._answer(key, HintOutcome.FAILED)

    def forget(self) -> None:
        """The proxy died: its requests are hung up on, and nobody waits for an answer."""
        for key in list(self._warming):
            self._drop(key)
        self._life += 1

    def _release(self, command: Unpin, engine: SimEngine) -> None:
        key = self._key(command.pin)
        if key in self._warming:
            self._drop(key)
        else:
            _unpin(engine, key)

    def _give_up(self, key: str, _now: Instant) -> None:
        if key in self._warming:
            pin = self._drop(key)
            self._host.tell(HintAnswered(pin=pin, outcome=HintOutcome.FAILED))

    def _drop(self, key: str) -> PinId:
        pin, engine = self._warming.pop(key)
        # On its way still, or lost: then there is nothing to abort, and it will not be delivered.
        if engine.model.abort(key):
            self._host.watch(engine)
        return pin

    def _answer(self, key: str, outcome: HintOutcome) -> None:
        pin, _ = self._warming.pop(key)
        self._host.tell(HintAnswered(pin=pin, outcome=outcome))


def _unpin(engine: SimEngine, key: str) -> None:
    engine.model.unpin(key)
