"""Pins by value: always what sorting all of them would give."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from shorthand import pin

from agentsched.kernel.cheapest import CheapestPins
from agentsched.model import Instant, Pin, PinId


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_sorting_gives(seed: int) -> None:
    rng = Random(seed)
    live: dict[PinId, Pin] = {}
    cheapest = CheapestPins(live)

    def put(one: Pin) -> None:
        live[one.pin] = one
        cheapest.put(one)

    for number in range(300):
        match rng.choice(("new", "new", "extend", "end")) if live else "new":
            case "new":
                put(pin(f"p{number:04d}", until=rng.randrange(5), value=float(rng.randrange(4))))
            case "extend":
                put(replace(rng.choice(list(live.values())), expires_at=Instant(rng.randrange(5))))
            case _:
                del live[rng.choice(list(live))]
        wanted = sorted(live.values(), key=lambda p: (p.value, p.expires_at, p.pin))
        assert list(cheapest) == wanted
        assert next(iter(cheapest), None) == (wanted[0] if wanted else None)
