"""Hints find the sink that can do something with them, in the time that it counts in."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from shorthand import Still, pin, prefetch, unpin

from agentsched.clock import MonotonicClock
from agentsched.model import SECOND, EngineId, HintOutcome, Instant, Pin, Prefetch, Unpin
from agentsched.proxy.fleet_hints import FleetHints, _FirstOf, _OnOwnClock, _Warming

ENGINE = EngineId("e")
YES, CLIPPED = HintOutcome.ACCEPTED, HintOutcome.CLIPPED
NO, NEVER, LOST = HintOutcome.REFUSED, HintOutcome.UNSUPPORTED, HintOutcome.FAILED
#: The host's clock, which went on from an earlier process.
HOST = Still(Instant(10**15))


@dataclass
class Sink:
    """Answers as told, and keeps what it was given."""

    outcome: HintOutcome = YES
    hints: list[Pin | Unpin | Prefetch] = field(default_factory=list)

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        self.hints.append(hint)
        return self.outcome


async def test_before_there_is_a_fleet_nobody_can_do_anything() -> None:
    hints = FleetHints(HOST)
    assert (len(hints), list(hints)) == (0, [])
    assert await hints[ENGINE].hint(pin()) is NEVER


@pytest.mark.parametrize(
    ("outcomes", "asked", "answer"),
    [
        ((YES, YES), 1, YES),
        ((CLIPPED, YES), 1, CLIPPED),
        ((NEVER, YES), 2, YES),
        ((NO, LOST, YES), 3, YES),
        ((NEVER, NO), 2, NO),
    ],
)
async def test_the_first_that_takes_it_is_the_last_that_is_asked(
    outcomes: tuple[HintOutcome, ...], asked: int, answer: HintOutcome
) -> None:
    sinks = [Sink(outcome) for outcome in outcomes]
    assert await _FirstOf(*sinks).hint(pin()) is answer
    assert sum(len(sink.hints) for sink in sinks) == asked


async def test_warm_ups_go_by_request_and_all_else_to_the_engines_own_sink() -> None:
    own, warming = Sink(), Sink()
    both = _Warming(own, warming)
    for hint in (pin(), prefetch(), unpin()):
        assert await both.hint(hint) is YES
    assert own.hints == [pin(), unpin()]
    assert warming.hints == [prefetch()]


async def test_a_pin_ends_when_it_does_in_the_adapters_own_time() -> None:
    sink, clock = Sink(), MonotonicClock()
    told = _OnOwnClock(sink, HOST)
    before = clock.now()
    await told.hint(pin(until=HOST.now() + 10 * SECOND))
    later = clock.now()
    await told.hint(unpin())
    [given, end] = sink.hints
    assert isinstance(given, Pin)
    assert before + 10 * SECOND <= given.expires_at <= later + 10 * SECOND
    assert end == unpin()
