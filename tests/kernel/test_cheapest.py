"""Pins by value: always what sorting all of them would give."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from agentsched.kernel.cheapest import CheapestPins
from agentsched.model import (
    ConversationId,
    EngineId,
    Instant,
    Pin,
    PinId,
    Prefix,
    PrefixId,
    ProgramId,
)


def make(number: int, rng: Random) -> Pin:
    return Pin(
        pin=PinId(f"p{number:04d}"),
        program=ProgramId("p"),
        engine=EngineId("e1"),
        conversation=ConversationId(f"c{number}"),
        prefix=Prefix(prefix=PrefixId("ab"), tokens=100),
        expires_at=Instant(rng.randrange(5)),
        value=float(rng.randrange(4)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_sorting_gives(seed: int) -> None:
    rng = Random(seed)
    live: dict[PinId, Pin] = {}
    cheapest = CheapestPins(live)
    for number in range(300):
        match rng.choice(("new", "new", "extend", "end")) if live else "new":
            case "new":
                pin = make(number, rng)
                live[pin.pin] = pin
                cheapest.put(pin)
            case "extend":
                pin = replace(rng.choice(list(live.values())), expires_at=Instant(rng.randrange(5)))
                live[pin.pin] = pin
                cheapest.put(pin)
            case _:
                del live[rng.choice(list(live))]
        wanted = sorted(live.values(), key=lambda p: (p.value, p.expires_at, p.pin))
        assert list(cheapest) == wanted
        assert next(iter(cheapest), None) == (wanted[0] if wanted else None)
